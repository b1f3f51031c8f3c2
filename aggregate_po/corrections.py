"""Corrections for a sampler whose probabilities differ from those that the trainer computes."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass, fields, replace
from typing import Any, Literal

import torch
from torch import Tensor

from aggregate_po.bounds import MAX_LOG_RATIO, bounded, log_ratio_of
from aggregate_po.masked import masked_sum
from aggregate_po.shapes import PerCompletion, PerToken


@dataclass(frozen=True)
class CorrectionWeights:
    """Detached weights of a rollout that `PolicyBatch` hands to any objective; a field is None where it has no effect.

    Args:
        log_token: added to the log ratios that the aggregator averages, after an exponent was chosen (eq. 20); shape
            `batch time`.
        kept: False on tokens that count with ratio one and without gradient; shape `batch time`.
        log_sequence: added to the log value of the completion, after the sequence transform, -inf for one that is left
            out; shape `batch`.
    """

    log_token: PerToken | None = None
    kept: PerToken | None = None
    log_sequence: PerCompletion | None = None

    def __post_init__(self) -> None:
        if self.kept is not None:
            object.__setattr__(self, "kept", self.kept.bool())  # also after a change of precision

    def patterns(self) -> dict[str, tuple[Tensor, str]]:
        """The tensors that there are, with their shapes in words, to be checked against a batch."""
        words = {"log_token": "batch time", "kept": "batch time", "log_sequence": "batch"}
        return {
            f"correction.{name}": (getattr(self, name), pattern)
            for name, pattern in words.items()
            if getattr(self, name) is not None
        }

    def map(self, function: Any) -> CorrectionWeights:
        """The weights with a function applied to each tensor, such as an index."""
        changed = {field.name: getattr(self, field.name) for field in fields(self)}
        return replace(self, **{name: function(tensor) for name, tensor in changed.items() if tensor is not None})


class SamplerCorrection(ABC):
    r"""Weights that make up for drawing from one policy and training another.

    The sampler's log-probabilities may differ from the trainer's: other kernels, another precision, weights that are
    a step old. With $w_t = \pi_\mathrm{old}(o_t) / \pi_\mathrm{sampler}(o_t)$ an expectation over the sampler becomes
    one over the behaviour policy.

    Subclass requirements:

    - Implement `weights`. Its argument is $\log w_t$, bounded to +-20 and 0 on padding. Return `CorrectionWeights` with
      a weight per token, a weight per completion, or a mask of the tokens to keep.
    - Leave `__call__` as it is. It computes $\log w_t$ outside any graph and calls `weights`.
    """

    @abstractmethod
    def weights(self, log_weight: PerToken, response_mask: PerToken) -> CorrectionWeights:
        r"""Weights from $\log w_t$, 0 on padding and where the sampler gave none; shape `batch time`."""

    def __call__(
        self, old_log_probs: PerToken, rollout_log_probs: PerToken, response_mask: PerToken
    ) -> CorrectionWeights:
        """Weights from the log-probabilities of both policies, outside any graph.

        Args:
            old_log_probs: under the behaviour policy as the trainer computes it; shape `batch time`.
            rollout_log_probs: as the sampler gave them; a token where it gave no finite number is left out of the
                correction; shape `batch time`.
            response_mask: True on trained tokens; shape `batch time`.
        """
        mask = response_mask.bool()
        with torch.no_grad():
            return self.weights(log_mismatch(old_log_probs, rollout_log_probs, mask), mask)


def log_mismatch(old_log_probs: PerToken, rollout_log_probs: PerToken, response_mask: PerToken) -> PerToken:
    """Log-probability of the trainer less that of the sampler, within +-20; 0 on padding and where none is known.

    Example:
        >>> log_mismatch(torch.tensor([[-1.0, -2.0]]), torch.tensor([[-1.5, torch.nan]]), torch.ones(1, 2))
        tensor([[0.5000, 0.0000]])
    """
    known = response_mask.bool() & torch.isfinite(rollout_log_probs)
    return bounded(log_ratio_of(old_log_probs, torch.where(known, rollout_log_probs, 0), known))


@dataclass(frozen=True)
class _WithinBounds(SamplerCorrection):
    """A correction whose weights are held between two bounds, or dropped outside them."""

    max_weight: float
    min_weight: float
    outside: Literal["truncate", "mask"]

    def __post_init__(self) -> None:
        if self.outside not in ("truncate", "mask"):
            raise ValueError(f'`outside` is {self.outside!r}; pass "truncate" or "mask".')
        if not 0 <= self.min_weight <= self.max_weight or self.max_weight == 0:
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
    r"""A weight for each token: little variance, and a bias that grows with the distance of the policies.

    Args:
        max_weight: weights are at most this; `inf` for no bound.
        min_weight: weights are at least this.
        outside: "truncate" a weight to the nearer bound, or "mask" its token, which then has no gradient.

    Raises:
        ValueError: the bounds are out of order, or `outside` is neither word.

    Reference: truncated importance sampling, as verl has it by default; masked between two bounds, IcePop.
    """

    max_weight: float = 2.0
    min_weight: float = 0.0
    outside: Literal["truncate", "mask"] = "truncate"

    def weights(self, log_weight: PerToken, response_mask: PerToken) -> CorrectionWeights:
        """See `SamplerCorrection`."""
        if self.outside == "truncate":
            return CorrectionWeights(log_token=torch.where(response_mask, log_weight.clamp(*self._log_bounds()), 0))
        kept = self._inside(log_weight) | ~response_mask
        return CorrectionWeights(log_token=torch.where(kept, log_weight, 0), kept=kept)


@dataclass(frozen=True)
class SequenceCorrection(_WithinBounds):
    r"""One weight for the completion, $\prod_t w_t$: unbiased without bounds, and of large variance.

    Args:
        max_weight: weights are at most this; `inf` for no bound.
        min_weight: weights are at least this.
        outside: "truncate" a weight to the nearer bound, or "mask" its completion, which then has no gradient.

    Raises:
        ValueError: the bounds are out of order, or `outside` is neither word.

    Reference: masked at 3, TRL's default.
    """

    max_weight: float = 3.0
    min_weight: float = 0.0
    outside: Literal["truncate", "mask"] = "mask"

    def weights(self, log_weight: PerToken, response_mask: PerToken) -> CorrectionWeights:
        """See `SamplerCorrection`."""
        log_product = masked_sum(log_weight, response_mask).clamp(-MAX_LOG_RATIO, MAX_LOG_RATIO)
        if self.outside == "truncate":
            return CorrectionWeights(log_sequence=log_product.clamp(*self._log_bounds()))
        return CorrectionWeights(log_sequence=torch.where(self._inside(log_product), log_product, -torch.inf))
