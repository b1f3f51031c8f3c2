"""A mean, a recipe and a reward of a user's own."""

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from typing_extensions import override

from aggregate_po import PerCompletion, PessimisticClip, PolicyObjective, TokenAggregator, TokenRatios, masked_logsumexp


@dataclass(frozen=True)
class LehmerMean(TokenAggregator):
    """Ratio of consecutive power sums, `sum r^p / sum r^(p-1)`."""

    order: float = 2.0

    @override
    def log_aggregate(self, tokens: TokenRatios) -> PerCompletion:
        x, mask = tokens.log_ratio, tokens.response_mask
        return masked_logsumexp(self.order * x, mask) - masked_logsumexp((self.order - 1) * x, mask)


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
