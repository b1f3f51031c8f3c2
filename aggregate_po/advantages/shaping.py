"""Estimators that change the rewards and pass them to another estimator."""

import math
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from typing_extensions import override

from aggregate_po.advantages.base import AdvantageEstimator, GroupedRewards
from aggregate_po.arguments import require_non_negative
from aggregate_po.batch import PerCompletion, PerToken


@dataclass(frozen=True)
class OverlongShaping(AdvantageEstimator):
    r"""Subtracts a length penalty from the rewards of completions near the maximum length.

    Up to `max_completion_length - cache_length` tokens the penalty is 0; beyond, it rises linearly to `penalty` at
    `max_completion_length`. With several rewards, the penalty becomes a further component of weight 1.

    Args:
        estimator: Estimator that receives the shaped rewards.
        max_completion_length: Number of tokens at which completions are truncated.
        cache_length: Number of tokens before `max_completion_length` over which the penalty rises.
        penalty: Largest penalty, for a completion of `max_completion_length` tokens.

    Raises:
        TypeError: `estimator` is not an AdvantageEstimator.
        ValueError: `cache_length` is not between 1 and `max_completion_length`, or `penalty` is negative; when called,
            if `lengths` are missing.

    Use it with `truncated: score` of RolloutDataModule, which keeps truncated completions and their rewards. To exclude
    truncated completions from the loss instead, use `truncated: mask`.

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
        require_estimator(self.estimator)
        if not 1 <= self.cache_length <= self.max_completion_length < math.inf:
            raise ValueError(
                f"`cache_length` is {self.cache_length}; pass 1 or more tokens, at most `max_completion_length`="
                f"{self.max_completion_length}, a finite number."
            )
        require_non_negative(penalty=self.penalty)

    @property
    @override
    def needs_step_rewards(self) -> bool:
        return self.estimator.needs_step_rewards

    @override
    def __call__(self, rollout: GroupedRewards) -> PerCompletion | PerToken:
        return self.estimator(_changed(rollout, self.reward_change(rollout.required("lengths", self))))

    def reward_change(self, lengths: PerCompletion) -> Tensor:
        """Return the change of the reward of completions of these lengths, 0 or negative; shape `batch`."""
        left = self.max_completion_length - lengths.double()
        return self.penalty * (left / self.cache_length - 1).clamp(-1, 0)


@dataclass(frozen=True)
class LengthPenalty(AdvantageEstimator):
    r"""Subtracts $c$ times the distance of the length to a target: $R_i - c\,\mathrm{abs}(n_i - n^*)$, not $R_i$.

    With several rewards, the penalty becomes a further component of weight 1. It makes short wrong answers better than
    long ones, too, so choose $c$ such that a right answer of any length is worth more than a wrong one.

    Args:
        estimator: Estimator that receives the penalized rewards.
        per_token: Penalty $c$ of a token.
        target_length: Number of tokens $n^*$ that costs nothing.

    Raises:
        TypeError: `estimator` is not an AdvantageEstimator.
        ValueError: a number is negative; when called, if `lengths` are missing.

    Example:
        >>> from aggregate_po.advantages import GroupCentered
        >>> rewards, lengths = torch.tensor([1.0, 1.0, 0.0, 0.0]), torch.tensor([10, 20, 10, 20])
        >>> LengthPenalty(GroupCentered(), per_token=0.01)(GroupedRewards(rewards, 4, lengths))
        tensor([ 0.5500,  0.4500, -0.4500, -0.5500])

    Reference: LCPO-Exact of L1, arXiv:2503.04697, where `per_token` is 0.0003 and each prompt has its target.
    """

    estimator: AdvantageEstimator
    per_token: float
    target_length: int = 0

    def __post_init__(self) -> None:
        require_estimator(self.estimator)
        require_non_negative(per_token=self.per_token, target_length=self.target_length)

    @property
    @override
    def needs_step_rewards(self) -> bool:
        return self.estimator.needs_step_rewards

    @override
    def __call__(self, rollout: GroupedRewards) -> PerCompletion | PerToken:
        distance = (rollout.required("lengths", self).double() - self.target_length).abs()
        return self.estimator(_changed(rollout, -self.per_token * distance))


@dataclass(frozen=True)
class LengthCorrected(AdvantageEstimator):
    r"""Divides each reward by the length of its completion: $R_i / n_i$ in place of $R_i$.

    With several rewards, each component is divided. A completion without tokens keeps its reward.

    Args:
        estimator: Estimator that receives the rewards per token.

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
        require_estimator(self.estimator)

    @property
    @override
    def needs_step_rewards(self) -> bool:
        return self.estimator.needs_step_rewards

    @override
    def __call__(self, rollout: GroupedRewards) -> PerCompletion | PerToken:
        lengths = rollout.required("lengths", self).clamp(min=1)
        components = rollout.components
        if components is not None:
            components = components / rearrange(lengths, "batch -> batch 1")
        return self.estimator(replace(rollout, rewards=rollout.rewards / lengths, components=components))


def _changed(rollout: GroupedRewards, change: Tensor) -> GroupedRewards:
    """Return the rollout with a further reward of weight 1, of shape `batch`, added to the total."""
    change = change.to(rollout.rewards.dtype)
    changes: dict[str, Any] = {"rewards": rollout.rewards + change}
    if rollout.components is not None:
        components = (rollout.components, rearrange(change, "batch -> batch 1"))
        changes["components"] = torch.cat(components, dim=-1)
        if rollout.component_weights is not None:
            changes["component_weights"] = (*rollout.component_weights, 1.0)
    return replace(rollout, **changes)


def require_estimator(estimator: object) -> None:
    """Check the argument of an estimator that wraps another one.

    Raises:
        TypeError: it is no estimator.
    """
    if not isinstance(estimator, AdvantageEstimator):
        raise TypeError(
            f"`estimator` is {estimator!r}; pass an instance of a subclass of aggregate_po.AdvantageEstimator."
        )
