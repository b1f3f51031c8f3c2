"""Importance corrections for a sampler whose log-probabilities differ from those of the trainer."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from collections.abc import Callable
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor
from typing_extensions import override

from aggregate_po.arguments import require_numbers
from aggregate_po.bounds import MAX_LOG_RATIO, bounded, log_ratio_of
from aggregate_po.masked import masked_sum
from aggregate_po.shapes import PerCompletion, PerToken


@dataclass(frozen=True)
class CorrectionWeights:
    """Detached correction weights of a rollout, which `PolicyBatch` passes to the objective; None means no effect.

    Any combination of the three is valid; the weight of a token is the product of what is given.

    Args:
        log_token: Log weights that are added to the log ratios on entry to the aggregator, after the exponent was
            chosen (eq. 20); shape `batch time`.
        kept: False on masked tokens, which have ratio one and no gradient; shape `batch time`.
        log_sequence: Log weights that are added to the log value of each completion after the sequence transform; -inf
            masks the completion; shape `batch`.
    """

    log_token: PerToken | None = None
    kept: PerToken | None = None
    log_sequence: PerCompletion | None = None

    def __post_init__(self) -> None:
        if self.kept is not None:
            object.__setattr__(self, "kept", self.kept.bool())  # a cast by `PolicyBatch.to` may have changed the type

    def patterns(self) -> dict[str, tuple[Tensor, str]]:
        """Return the tensors that are not None with their shape patterns, for `bind_shapes`."""
        words = {"log_token": "batch time", "kept": "batch time", "log_sequence": "batch"}
        return {
            f"correction.{name}": (getattr(self, name), pattern)
            for name, pattern in words.items()
            if getattr(self, name) is not None
        }

    def on_tokens(self, response_mask: PerToken) -> CorrectionWeights:
        """Return the weights without effect on padding and on empty completions, whatever their values there."""
        some = response_mask.any(dim=-1)
        return CorrectionWeights(
            log_token=None if self.log_token is None else torch.where(response_mask, self.log_token, 0),
            kept=None if self.kept is None else self.kept | ~response_mask,
            log_sequence=None if self.log_sequence is None else torch.where(some, self.log_sequence, 0),
        )

    def joined(self, other: CorrectionWeights) -> CorrectionWeights:
        """Return weights with the effect of both: the products of their weights, and the tokens that both keep.

        Example:
            >>> entropy = CorrectionWeights(kept=torch.tensor([[True, False]]))
            >>> entropy.joined(CorrectionWeights(log_token=torch.tensor([[0.5, 0.25]]))).log_token
            tensor([[0.5000, 0.2500]])
        """
        return CorrectionWeights(
            log_token=_both(torch.add, self.log_token, other.log_token),
            kept=_both(torch.logical_and, self.kept, other.kept),
            log_sequence=_both(torch.add, self.log_sequence, other.log_sequence),
        )

    def map(self, function: Any) -> CorrectionWeights:
        """Return a copy with a function, such as indexing, applied to each tensor."""
        changed = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: function(tensor) for name, tensor in changed.items() if tensor is not None})


def _both(combine: Callable[[Tensor, Tensor], Tensor], one: Tensor | None, other: Tensor | None) -> Tensor | None:
    """Return the combination of two tensors, or the one that there is."""
    if one is None or other is None:
        return other if one is None else one
    return combine(one, other)


class SamplerCorrection(ABC):
    r"""Importance weights that correct for a mismatch between the sampler and the trainer.

    The sampler's log-probabilities may differ from the trainer's because of other kernels, another precision, or
    weights that are one step old. Multiplying by $w_t = \pi_\mathrm{old}(o_t) / \pi_\mathrm{sampler}(o_t)$ turns an
    expectation under the sampler into one under the behavior policy.

    Subclass requirements:

    - Implement `weights`. Its argument is $\log w_t$, bounded to +-20 and 0 on padding. Return `CorrectionWeights` with
      a weight per token, a weight per completion, or a mask of the tokens to keep.
    - Leave `__call__` as it is. It computes $\log w_t$ outside any graph and calls `weights`.
    """

    @abstractmethod
    def weights(self, log_weight: PerToken, response_mask: PerToken) -> CorrectionWeights:
        r"""Return weights from $\log w_t$, which is 0 on padding and on tokens without a sampler log-probability.

        Args:
            log_weight: $\log w_t$, within +-20; shape `batch time`.
            response_mask: True on trained tokens; shape `batch time`.
        """

    def __call__(
        self, old_log_probs: PerToken, rollout_log_probs: PerToken, response_mask: PerToken
    ) -> CorrectionWeights:
        """Return detached weights from the log-probabilities of both policies.

        Args:
            old_log_probs: Log-probabilities under the behavior policy, computed by the trainer; shape `batch time`.
            rollout_log_probs: Log-probabilities that the sampler returned; a token whose value is not finite is not
                corrected; shape `batch time`.
            response_mask: True on trained tokens; shape `batch time`.
        """
        mask = response_mask.bool()
        with torch.no_grad():
            return self.weights(log_mismatch(old_log_probs, rollout_log_probs, mask), mask)


def log_mismatch(old_log_probs: PerToken, rollout_log_probs: PerToken, response_mask: PerToken) -> PerToken:
    """Return the trainer's minus the sampler's log-probability, within +-20; 0 on padding and on unknown values.

    Example:
        >>> log_mismatch(torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, torch.nan]]), torch.ones(1, 2))
        tensor([[0.5000, 0.0000]])
    """
    known = response_mask.bool() & torch.isfinite(rollout_log_probs)
    return bounded(log_ratio_of(old_log_probs, torch.where(known, rollout_log_probs, 0), known))


@dataclass(frozen=True)
class _WithinBounds(SamplerCorrection):
    """Correction whose weights are truncated to two bounds, or masked outside the bounds."""

    max_weight: float
    min_weight: float
    outside: Literal["truncate", "mask"]

    def __post_init__(self) -> None:
        if self.outside not in ("truncate", "mask"):
            raise ValueError(f'`outside` is {self.outside!r}; pass "truncate" or "mask".')
        require_numbers(min_weight=self.min_weight, max_weight=self.max_weight)
        if not (0 <= self.min_weight <= self.max_weight and self.min_weight < math.inf and self.max_weight > 0):
            raise ValueError(
                f"`min_weight` is {self.min_weight} and `max_weight` {self.max_weight}; pass two weights in this "
                "order, 0 or more, the second positive."
            )

    def _log_bounds(self) -> tuple[float, float]:
        return (math.log(self.min_weight) if self.min_weight > 0 else -math.inf), math.log(self.max_weight)

    def _inside(self, log_weight: Tensor) -> Tensor:
        lower, upper = self._log_bounds()
        return (log_weight >= lower) & (log_weight <= upper)


@dataclass(frozen=True)
class TokenCorrection(_WithinBounds):
    r"""One weight per token: low variance, and a bias that grows with the distance between the policies.

    Args:
        max_weight: Upper bound of the weights; `inf` means no upper bound.
        min_weight: Lower bound of the weights.
        outside: Rule for weights outside the bounds: "truncate" sets a weight to the nearer bound, and "mask" sets the
            gradient of its token to zero.

    Raises:
        ValueError: the bounds are out of order, or `outside` is neither word.

    Reference: "truncate" is truncated importance sampling, the default of verl; "mask" with two bounds is IcePop.
    """

    max_weight: float = 2.0
    min_weight: float = 0.0
    outside: Literal["truncate", "mask"] = "truncate"

    @override
    def weights(self, log_weight: PerToken, response_mask: PerToken) -> CorrectionWeights:
        if self.outside == "truncate":
            return CorrectionWeights(log_token=torch.where(response_mask, log_weight.clamp(*self._log_bounds()), 0))
        kept = self._inside(log_weight) | ~response_mask
        return CorrectionWeights(log_token=torch.where(kept, log_weight, 0), kept=kept)


@dataclass(frozen=True)
class SequenceCorrection(_WithinBounds):
    r"""One weight per completion, $\prod_t w_t$: unbiased without bounds, but of high variance.

    Args:
        max_weight: Upper bound of the weights; `inf` means no upper bound.
        min_weight: Lower bound of the weights.
        outside: Rule for weights outside the bounds: "truncate" sets a weight to the nearer bound, and "mask" sets the
            gradient of its completion to zero.

    Raises:
        ValueError: the bounds are out of order, or `outside` is neither word.

    Reference: masked at 3, TRL's default.
    """

    max_weight: float = 3.0
    min_weight: float = 0.0
    outside: Literal["truncate", "mask"] = "mask"

    @override
    def weights(self, log_weight: PerToken, response_mask: PerToken) -> CorrectionWeights:
        log_product = masked_sum(log_weight, response_mask).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        if self.outside == "truncate":
            return CorrectionWeights(log_sequence=log_product.clamp(*self._log_bounds()))
        return CorrectionWeights(log_sequence=torch.where(self._inside(log_product), log_product, -torch.inf))
