"""Estimators that change the rewards and hand them on to another estimator."""

from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor

from aggregate_po.advantages.base import AdvantageEstimator, GroupedRewards, require_non_negative
from aggregate_po.batch import PerCompletion, PerToken


@dataclass(frozen=True)
class OverlongShaping(AdvantageEstimator):
    r"""Takes a penalty off the rewards of completions that come near the longest length that sampling allows.

    Up to `max_completion_length - cache_length` tokens it is 0, from there it rises linearly to `penalty` at
    `max_completion_length`. Where there are several rewards, it is one more of them, with weight 1.

    Args:
        estimator: receives the shaped rewards.
        max_completion_length: tokens after which a completion is cut off.
        cache_length: tokens before that over which the penalty rises.
        penalty: the largest one.

    Raises:
        TypeError: `estimator` is not an AdvantageEstimator.
        ValueError: `cache_length` is not between 1 and `max_completion_length`, or `penalty` is negative; when called,
            if `lengths` are missing.

    Goes with `truncated: score` of RolloutDataModule, which leaves the reward of a completion that was cut off to the
    penalty. Leaving such completions out of the loss instead is `truncated: mask`.

    Example:
        >>> from aggregate_po.advantages import GroupCentered
        >>> shaping = OverlongShaping(GroupCentered(), max_completion_length=20480, cache_length=4096)
        >>> shaping.reward_change(torch.tensor([16384, 18432, 20480])).tolist()
        [0.0, -0.5, -1.0]

    Reference: DAPO, arXiv:2503.14476, with 20480 and 4096 tokens.
    """

    estimator: AdvantageEstimator
    max_completion_length: int
    cache_length: int
    penalty: float = 1.0

    def __post_init__(self) -> None:
        _require_estimator(self.estimator)
        if not 1 <= self.cache_length <= self.max_completion_length:
            raise ValueError(
                f"`cache_length` is {self.cache_length}; pass 1 or more tokens, at most `max_completion_length`="
                f"{self.max_completion_length}."
            )
        require_non_negative(penalty=self.penalty)

    def __call__(self, step: GroupedRewards) -> PerCompletion | PerToken:
        """See `AdvantageEstimator`."""
        change = self.reward_change(step.required("lengths", self)).to(step.rewards.dtype)
        changes: dict[str, Any] = {"rewards": step.rewards + change}
        if step.components is not None:
            components = (step.components, rearrange(change, "batch -> batch 1"))
            changes["components"] = torch.cat(components, dim=-1)
            if step.component_weights is not None:
                changes["component_weights"] = (*step.component_weights, 1.0)
        return self.estimator(replace(step, **changes))

    def reward_change(self, lengths: PerCompletion) -> Tensor:
        """What is added to the rewards of completions of these lengths, 0 or negative; shape `batch`."""
        left = self.max_completion_length - lengths.double()
        return self.penalty * (left / self.cache_length - 1).clamp(-1, 0)


@dataclass(frozen=True)
class LengthCorrected(AdvantageEstimator):
    r"""Divides the rewards by the lengths of their completions: $R_i / n_i$ in place of $R_i$.

    Where there are several rewards, each is divided. A completion without tokens keeps its reward.

    Args:
        estimator: receives the rewards per token.

    Raises:
        TypeError: `estimator` is not an AdvantageEstimator.
        ValueError: when called, if `lengths` are missing.

    Example:
        >>> from aggregate_po.advantages import GroupNormalized
        >>> rewards, lengths = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([10, 20, 30, 40])
        >>> LengthCorrected(GroupNormalized(ddof=0, delta=0.0))(GroupedRewards(rewards, 4, lengths))
        tensor([ 1.7321, -0.5774, -0.5774, -0.5774])

    Reference: TIC-GRPO, arXiv:2508.02833.
    """

    estimator: AdvantageEstimator

    def __post_init__(self) -> None:
        _require_estimator(self.estimator)

    def __call__(self, step: GroupedRewards) -> PerCompletion | PerToken:
        """See `AdvantageEstimator`."""
        lengths = step.required("lengths", self).clamp(min=1)
        components = step.components
        if components is not None:
            components = components / rearrange(lengths, "batch -> batch 1")
        return self.estimator(replace(step, rewards=step.rewards / lengths, components=components))


def _require_estimator(estimator: object) -> None:
    if not isinstance(estimator, AdvantageEstimator):
        raise TypeError(
            f"`estimator` is {estimator!r}; pass an instance of a subclass of aggregate_po.AdvantageEstimator."
        )
