"""A mean, a transform, an estimator, a recipe, a reward and a data set of a user's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from aggregate_po import (
    AdvantageEstimator,
    GroupedRewards,
    PerCompletion,
    PessimisticClip,
    PolicyObjective,
    RatioTransform,
    TokenAggregator,
    TokenRatios,
    masked_logsumexp,
)
from lightning_modules import PromptDataset


@dataclass(frozen=True)
class LehmerMean(TokenAggregator):
    """Ratio of consecutive power sums, `sum r^p / sum r^(p-1)`."""

    order: float = 2.0

    @override
    def log_aggregate(self, tokens: TokenRatios) -> PerCompletion:
        x, mask = tokens.log_ratio, tokens.response_mask
        return masked_logsumexp(self.order * x, mask) - masked_logsumexp((self.order - 1) * x, mask)


class Tanh(RatioTransform):
    """Smooth bound on the log ratio."""

    @override
    def __call__(self, ratios: TokenRatios) -> Tensor:
        return torch.tanh(ratios.log_ratio)


class Signs(AdvantageEstimator):
    """Advantages without a scale."""

    @override
    def __call__(self, step: GroupedRewards) -> PerCompletion:
        return (step.rewards - step.rewards.mean()).sign()


class Doubles(PromptDataset):
    """Doubles of small numbers."""

    @override
    def __len__(self) -> int:
        return 8

    @override
    def __getitem__(self, index: Any) -> Any:
        return {"prompt": f"{index}+{index}=", "answer": str(2 * index)}


def lehmer_po(order: float = 2.0, log_clip: float = 0.4) -> PolicyObjective:
    """Lehmer mean of clipped token ratios.

    Args:
        order: Order of the mean.
        log_clip: Bound on the log ratio of a token.
    """
    return PolicyObjective(LehmerMean(order), PessimisticClip.log(log_clip, log_clip))


def even_digits(completion: str, example: Mapping[str, Any]) -> float:
    """Return a reward in which completions of an untrained model differ."""
    return float(sum(character in "02468" for character in completion) + len(str(example["answer"])))
