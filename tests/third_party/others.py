"""A mean by its generator, a prefix aggregate, a suffix weight, a transform, a penalty and a group objective."""

from dataclasses import dataclass

import torch
from torch import Tensor

from aggregate_po import (
    GroupObjective,
    GroupValues,
    KolmogorovMean,
    Penalty,
    PolicyBatch,
    PrefixAggregate,
    RatioTransform,
    SuffixWeight,
    TokenRatios,
    masked_sum,
)


@dataclass(frozen=True)
class AsinhMean(KolmogorovMean):
    """Mean of `asinh(log ratio)`: the geometric mean of small changes, deaf to large ones; not homogeneous."""

    def generator(self, log_ratio: Tensor) -> Tensor:
        return torch.asinh(log_ratio)

    def inverse(self, values: Tensor) -> Tensor:
        return torch.sinh(values)


@dataclass(frozen=True)
class PrefixMaximum(PrefixAggregate):
    """Largest ratio of the prefix."""

    def log_prefix(self, tokens: TokenRatios) -> Tensor:
        values = torch.where(tokens.response_mask, tokens.log_ratio, -torch.inf)
        return values.cummax(dim=-1).values


@dataclass(frozen=True)
class EarlierCountsMore(SuffixWeight):
    """Weight of a token from the number of tokens to come: 2 - rate^k, so that only the last has 1."""

    rate: float = 0.9

    def weights(self, tokens: TokenRatios) -> Tensor:
        remaining = tokens.lengths.unsqueeze(-1) - tokens.response_mask.cumsum(dim=-1)
        return 2 - self.rate ** remaining.to(tokens.log_ratio.dtype)


@dataclass(frozen=True)
class TanhLimit(RatioTransform):
    """Smooth bound on the absolute log ratio."""

    limit: float = 2.0

    def __call__(self, ratios: TokenRatios) -> Tensor:
        return self.limit * torch.tanh(ratios.log_ratio / self.limit)


@dataclass(frozen=True)
class Proximity(Penalty):
    """Huber cost of the distance from the behavior policy, more for completions of larger advantage."""

    coefficient: float = 0.1

    def token_costs(self, log_probs: Tensor, batch: PolicyBatch) -> Tensor:
        distance = (log_probs - batch.old_log_probs.to(log_probs)).clamp(-100, 100)
        cost = torch.nn.functional.huber_loss(distance, torch.zeros_like(distance), reduction="none")
        return self.coefficient * (1 + batch.advantages.abs().unsqueeze(-1)) * cost


@dataclass(frozen=True)
class CompletionSum(GroupObjective):
    """Mean of advantage times value: an objective without a group objective, whose completions are independent."""

    def __call__(self, groups: GroupValues) -> Tensor:
        return masked_sum(groups.shares * groups.advantages * groups.log_values.clamp(max=20).exp(), groups.mask)
