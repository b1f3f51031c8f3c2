"""Masks: tokens that have moved too far keep their ratio but lose their gradient."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from aggregate_po.batch import TokenRatios
from aggregate_po.masked import masked_mean
from aggregate_po.transforms.base import EvaluatedTransform, JointTransform

# Keeps the logarithm of the probability of all other tokens finite.
_SMALLEST = 1e-8


class RatioMask(JointTransform):
    """Takes the gradient of the tokens that a rule closes, and leaves their ratios as they are.

    Where a clip replaces the ratio by its bound, a mask keeps it: under a mean in which tokens see each other, a
    masked token still counts with the ratio that it has. A subclass writes `closed`.
    """

    @abstractmethod
    def closed(self, ratios: TokenRatios) -> Tensor:
        """True on tokens without gradient, by what is known of the policies and not of earlier transforms."""

    def evaluate(self, ratios: TokenRatios) -> EvaluatedTransform:
        """Return the log ratios, with derivative one where the token is open and zero where it is closed."""
        closed, log_ratio = self.closed(ratios), ratios.log_ratio
        value = torch.where(closed, log_ratio.detach(), log_ratio)
        return EvaluatedTransform(value, (~closed).to(log_ratio.dtype), closed)


@dataclass(frozen=True)
class TotalVariationMask(RatioMask):
    r"""Closes a token whose *probability* has moved too far in the direction of its advantage (eq. 14).

    $\pi - \pi_\mathrm{old}$ of the sampled token is the total variation between the two policies if all other tokens
    are taken as one. A rare token may thus grow by a large ratio, and a likely one may not.

    Args:
        max_increase: largest rise of the probability where the advantage is positive.
        max_decrease: largest fall elsewhere.

    Raises:
        ValueError: a bound is negative.

    Reference: divergence PPO, arXiv:2602.04879.
    """

    max_increase: float = 0.2
    max_decrease: float = 0.2

    def __post_init__(self) -> None:
        _require_non_negative(max_increase=self.max_increase, max_decrease=self.max_decrease)

    def closed(self, ratios: TokenRatios) -> Tensor:
        """See `RatioMask`."""
        old, new = _probabilities(ratios)
        return torch.where(ratios.advantages > 0, new - old > self.max_increase, old - new > self.max_decrease)


@dataclass(frozen=True)
class BernoulliKLMask(RatioMask):
    r"""Closes a token that moved in the direction of its advantage by too large a divergence (eq. 15).

    $\mathrm{KL}(\pi_\mathrm{old} \| \pi)$ of the choice between the sampled token and all others taken as one. A token
    on its way back is never closed.

    Args:
        max_divergence_high: largest divergence where the advantage is positive; nats.
        max_divergence_low: largest divergence elsewhere; nats.

    Raises:
        ValueError: a bound is negative.

    Reference: divergence PPO, arXiv:2602.04879.
    """

    max_divergence_low: float = 0.2
    max_divergence_high: float = 0.2

    def __post_init__(self) -> None:
        _require_non_negative(max_divergence_low=self.max_divergence_low, max_divergence_high=self.max_divergence_high)

    def closed(self, ratios: TokenRatios) -> Tensor:
        """See `RatioMask`."""
        old, new = _probabilities(ratios)
        others = torch.log((1 - old + _SMALLEST) / (1 - new + _SMALLEST))
        divergence = (1 - old) * others - old * ratios.raw_log_ratio
        rose = (divergence > self.max_divergence_high) & (new > old)
        fell = (divergence > self.max_divergence_low) & (new < old)
        return torch.where(ratios.advantages > 0, rose, fell)


@dataclass(frozen=True)
class StaleCompletionMask(RatioMask):
    r"""Closes all tokens of a completion that is pushed down although the policy has already left it (eq. 16).

    Args:
        max_divergence: largest mean of $\log \pi_\mathrm{old} - \log \pi$ over the tokens of a completion with negative
            advantage; nats.

    Reference: DeepSeek-V3.2, arXiv:2512.02556, "off-policy sequence masking".
    """

    max_divergence: float

    def closed(self, ratios: TokenRatios) -> Tensor:
        """See `RatioMask`."""
        if ratios.log_ratio.ndim != 2:
            raise ValueError(
                f"`log_ratio` has shape {tuple(ratios.log_ratio.shape)}, but StaleCompletionMask averages over tokens; "
                "pass it as `token_transform`."
            )
        divergence = rearrange(masked_mean(-ratios.raw_log_ratio, ratios.response_mask), "batch -> batch 1")
        closed = (ratios.advantages < 0) & (divergence > self.max_divergence)
        return closed.expand_as(ratios.log_ratio)


def _probabilities(ratios: TokenRatios) -> tuple[Tensor, Tensor]:
    """Of the sampled token, under the behaviour policy and under the one that is trained.

    Log-probabilities of a density may be positive; what they say is then no probability, and is taken as one.
    """
    old = ratios.old_log_probs.to(ratios.raw_log_ratio.dtype)
    return old.exp().clamp(max=1), (old + ratios.raw_log_ratio).exp().clamp(max=1)


def _require_non_negative(**bounds: float) -> None:
    for name, bound in bounds.items():
        if not bound >= 0:
            raise ValueError(f"`{name}` is {bound}; pass 0 or more.")
