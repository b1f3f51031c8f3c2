"""Masks: tokens that have moved too far keep their ratio but have no gradient."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from typing_extensions import override

from aggregate_po.arguments import require_finite, require_non_negative
from aggregate_po.masked import masked_mean
from aggregate_po.token_ratios import TokenRatios
from aggregate_po.transforms.base import EvaluatedTransform, JointTransform

# Keeps the log-probability of all other tokens finite.
_SMALLEST = 1e-8


class RatioMask(JointTransform):
    """Sets the gradient of clipped tokens to zero and keeps their ratios.

    A clip replaces the ratio by its bound, whereas a mask keeps the ratio. The ratio of a masked token therefore still
    affects the weights of the other tokens in a mean. A subclass implements `clipped`.
    """

    @abstractmethod
    def clipped(self, ratios: TokenRatios) -> Tensor:
        """Return True on tokens without gradient; the rule reads `raw_log_ratio` and not earlier transforms."""

    @override
    def evaluate(self, ratios: TokenRatios) -> EvaluatedTransform:
        """Return the log ratios, with derivative one where the token is unclipped and zero where it is clipped."""
        clipped, log_ratio = self.clipped(ratios), ratios.log_ratio
        value = torch.where(clipped, log_ratio.detach(), log_ratio)
        return EvaluatedTransform(value, (~clipped).to(log_ratio.dtype), clipped)


@dataclass(frozen=True)
class TotalVariationMask(RatioMask):
    r"""Masks tokens whose *probability* has moved too far in the direction of their advantage (eq. 14).

    The change $\pi - \pi_\mathrm{old}$ of the sampled token is the total variation between the two policies if all
    other tokens are merged into one. The ratio of a rare token may thus become large, and that of a likely token may
    not.

    Args:
        max_increase: Largest increase of the probability where the advantage is positive.
        max_decrease: Largest decrease of the probability where the advantage is not positive.

    Raises:
        ValueError: a bound is negative or not finite.

    Reference: divergence PPO, arXiv:2602.04879.
    """

    max_increase: float = 0.2
    max_decrease: float = 0.2

    def __post_init__(self) -> None:
        require_non_negative(max_increase=self.max_increase, max_decrease=self.max_decrease)

    @override
    def clipped(self, ratios: TokenRatios) -> Tensor:
        old, new = _probabilities(ratios)
        return torch.where(ratios.advantages > 0, new - old > self.max_increase, old - new > self.max_decrease)


@dataclass(frozen=True)
class BernoulliKLMask(RatioMask):
    r"""Masks tokens that moved in the direction of their advantage by too large a divergence (eq. 15).

    The divergence $\mathrm{KL}(\pi_\mathrm{old} \| \pi)$ is between Bernoulli distributions: the sampled token against
    all others. A token that moved against its advantage is never clipped.

    Args:
        max_divergence_high: Largest divergence where the advantage is positive; nats.
        max_divergence_low: Largest divergence where the advantage is not positive; nats.

    Raises:
        ValueError: a bound is negative or not finite.

    Reference: divergence PPO, arXiv:2602.04879.
    """

    max_divergence_low: float = 0.2
    max_divergence_high: float = 0.2

    def __post_init__(self) -> None:
        require_non_negative(max_divergence_low=self.max_divergence_low, max_divergence_high=self.max_divergence_high)

    @override
    def clipped(self, ratios: TokenRatios) -> Tensor:
        old, new = _probabilities(ratios)
        others = torch.log((1 - old + _SMALLEST) / (1 - new + _SMALLEST))
        divergence = (1 - old) * others - old * ratios.raw_log_ratio
        rose = (divergence > self.max_divergence_high) & (new > old)
        fell = (divergence > self.max_divergence_low) & (new < old)
        return torch.where(ratios.advantages > 0, rose, fell)


@dataclass(frozen=True)
class StaleCompletionMask(RatioMask):
    r"""Masks completions of negative advantage whose probability has already decreased too far (eq. 16).

    Args:
        max_divergence: Largest mean of $\log \pi_\mathrm{old} - \log \pi$ over the tokens of a completion with negative
            advantage; nats.

    Raises:
        ValueError: the bound is not finite; when called, if the mask is applied after the mean.

    Reference: DeepSeek-V3.2, arXiv:2512.02556, "off-policy sequence masking".
    """

    max_divergence: float

    def __post_init__(self) -> None:
        require_finite(max_divergence=self.max_divergence)

    @override
    def clipped(self, ratios: TokenRatios) -> Tensor:
        if ratios.log_ratio.ndim != 2:
            raise ValueError(
                f"`log_ratio` has shape {tuple(ratios.log_ratio.shape)}, but StaleCompletionMask averages over tokens; "
                "pass it as `token_transform`."
            )
        mean = masked_mean(-ratios.raw_log_ratio, ratios.response_mask, ratios.mean_weights)
        divergence = rearrange(mean, "batch -> batch 1")
        clipped = (ratios.advantages < 0) & (divergence > self.max_divergence)
        return clipped.expand_as(ratios.log_ratio)


def _probabilities(ratios: TokenRatios) -> tuple[Tensor, Tensor]:
    """Return the probability of the sampled token under the behavior policy and under the trained policy.

    The log of a density may be positive; the result is then clamped to one.
    """
    old = ratios.old_log_probs.to(ratios.raw_log_ratio.dtype)
    return old.exp().clamp(max=1), (old + ratios.raw_log_ratio).exp().clamp(max=1)
