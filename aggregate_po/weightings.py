"""Rules for the weights of the tokens in every mean, from positions and entropies."""

from __future__ import annotations

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

from typing_extensions import override

from aggregate_po.arguments import require_finite, require_numbers
from aggregate_po.masked import masked_length, masked_softmax
from aggregate_po.shapes import PerToken


class TokenWeighting(ABC):
    """Weights of the tokens of a rollout, which `PolicyBatch.mean_weights` passes to the objective.

    A weighting sees the completions of all ranks together, once per rollout, before the rollout is split into optimizer
    steps. So the weights are constants to the gradient, and no split changes them.

    Subclass requirements:

    - Implement `__call__`. Padding must have no effect, and permuting the completions must permute the weights.
    - Override `needs_entropies` to return True if it reads the entropies.

    `aggregate_po.testing.check_token_weighting` checks these requirements.
    """

    @property
    def needs_entropies(self) -> bool:
        """Whether the entropies are read."""
        return False

    @abstractmethod
    def __call__(self, response_mask: PerToken, entropies: PerToken | None) -> PerToken:
        """Return weights from 0 to a million, or booleans, which narrow the mask; arbitrary on padding; `batch time`.

        Args:
            response_mask: True on trained tokens of the rollout, boolean; shape `batch time`.
            entropies: Entropy of the behavior policy's distribution of each token, arbitrary on padding; None unless
                they are needed; shape `batch time`; nats.
        """


@dataclass(frozen=True)
class TopEntropy(TokenWeighting):
    """Trains on the tokens of highest entropy only, at which a completion forks.

    The threshold is the quantile `1 - share` of the entropies of all response tokens of the rollout; ties with it are
    kept. The means are over the kept tokens. Published code divides the sum over them by the number of *all* tokens,
    which makes the gradient smaller by about the factor `share`.

    Args:
        share: Fraction of the tokens to train on, above 0 and at most 1.

    Raises:
        ValueError: the share is out of its range; when called, if there are no entropies.

    Example:
        >>> import torch
        >>> TopEntropy(0.5)(torch.ones(1, 4).bool(), torch.tensor([[0.1, 2.0, 0.3, 1.0]]))
        tensor([[False,  True, False,  True]])

    Reference: "Beyond the 80/20 rule", arXiv:2506.01939.
    """

    share: float = 0.2

    def __post_init__(self) -> None:
        require_numbers(share=self.share)
        if not 0 < self.share <= 1:
            raise ValueError(f"`share` is {self.share}; pass the fraction of tokens to train on, above 0, at most 1.")

    @property
    @override
    def needs_entropies(self) -> bool:
        return True

    @override
    def __call__(self, response_mask: PerToken, entropies: PerToken | None) -> PerToken:
        if entropies is None:
            raise ValueError("`entropies` is None, but TopEntropy ranks tokens by them; pass shape `batch time`.")
        values = entropies[response_mask]
        if not len(values):
            return response_mask
        # Rounding of the product must not move the quantile by a token.
        below = math.ceil((1 - self.share) * (len(values) - 1) - 1e-9)
        return response_mask & (entropies >= values.kthvalue(below + 1).values)


@dataclass(frozen=True)
class PositionWeights(TokenWeighting):
    r"""Weights by the position of a token in its completion, $w_t \propto t^a \, b^t$ with $t$ from 1.

    The weights of a completion sum to its length, so that no normalizer sees a difference.

    Args:
        power: Power $a$ of the position; below 0 early tokens count more.
        base: Base $b$ of the exponential, above 0; below 1 early tokens count more.

    Raises:
        ValueError: an argument is not finite, or the base is not above 0.

    Example:
        >>> import torch
        >>> PositionWeights(power=-1.0)(torch.ones(1, 3).bool(), None)
        tensor([[1.6364, 0.8182, 0.5455]])
    """

    power: float = 0.0
    base: float = 1.0

    def __post_init__(self) -> None:
        require_finite(power=self.power, base=self.base)
        if self.base <= 0:
            raise ValueError(f"`base` is {self.base}; pass a number above 0, where 1 weights all positions alike.")

    @override
    def __call__(self, response_mask: PerToken, entropies: PerToken | None) -> PerToken:
        positions = response_mask.cumsum(dim=-1).clamp(min=1).double()
        shares = masked_softmax(self.power * positions.log() + math.log(self.base) * positions, response_mask)
        return (masked_length(response_mask).unsqueeze(-1) * shares).float()
