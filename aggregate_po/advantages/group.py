"""Estimators that compare the completions of one group."""

from dataclasses import dataclass

import torch
from typing_extensions import override

from aggregate_po.advantages.base import GroupAdvantage, GroupedRewards
from aggregate_po.advantages.rounding import Grouped
from aggregate_po.advantages.statistics import centered, ratio, spread
from aggregate_po.arguments import require_non_negative


@dataclass(frozen=True)
class GroupNormalized(GroupAdvantage):
    r"""Rewards minus the group mean, divided by the group's standard deviation: $(R - \mu) / (\sigma + \delta)$.

    Args:
        ddof: Delta degrees of freedom: 1 for the unbiased standard deviation, 0 for that of the population.
        delta: Constant added to the standard deviation, against division by 0.

    A group of one and a group of equal rewards have advantage 0.

    Raises:
        ValueError: `ddof` is neither 0 nor 1, or `delta` is negative.

    Example:
        >>> GroupNormalized()(GroupedRewards(torch.tensor([1.0, 0.0, 0.0, 0.0]), group_size=4))
        tensor([ 1.5000, -0.5000, -0.5000, -0.5000])

    Reference: GRPO, arXiv:2402.03300. Released code uses `ddof=1`, which papers leave open, and TRL a `delta` of 1e-4.
    """

    ddof: int = 1
    delta: float = 1e-6

    def __post_init__(self) -> None:
        if self.ddof not in (0, 1):
            raise ValueError(
                f"`ddof` is {self.ddof}; pass 1 for the unbiased standard deviation or 0 for the population's."
            )
        require_non_negative(delta=self.delta)

    @override
    def within_groups(self, rollout: GroupedRewards) -> Grouped:
        return ratio(centered(rollout.groups), spread(rollout.groups, self.ddof) + self.delta)


@dataclass(frozen=True)
class GroupCentered(GroupAdvantage):
    r"""Rewards minus the group mean: $R - \mu$.

    A group of one and a group of equal rewards have advantage 0.

    Reference: Dr. GRPO, arXiv:2503.20783.
    """

    @override
    def within_groups(self, rollout: GroupedRewards) -> Grouped:
        return centered(rollout.groups)


@dataclass(frozen=True)
class LeaveOneOut(GroupAdvantage):
    r"""Rewards minus the mean of the other rewards in the group: $R_i - \frac{1}{G-1}\sum_{j \ne i} R_j$.

    A group of one and a group of equal rewards have advantage 0.

    Reference: RLOO, arXiv:2402.14740. In verl, the advantage in a group of one is the reward.
    """

    @override
    def within_groups(self, rollout: GroupedRewards) -> Grouped:
        return centered(rollout.groups) * (rollout.group_size / max(rollout.group_size - 1, 1))


@dataclass(frozen=True)
class LengthWeightedCentered(GroupAdvantage):
    r"""Rewards minus the length-weighted group mean: $R_i - \sum_j n_j R_j / \sum_j n_j$.

    This baseline minimizes the variance if the squared gradient norm of a completion is proportional to its length. A
    group of one, a group of equal rewards and a group without any token have advantage 0.

    Raises:
        ValueError: when called, if `lengths` are missing.

    Example:
        >>> rewards, lengths = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([10, 20, 30, 40])
        >>> LengthWeightedCentered()(GroupedRewards(rewards, group_size=4, lengths=lengths))
        tensor([ 0.9000, -0.1000, -0.1000, -0.1000])

    Reference: OPO, arXiv:2505.23585.
    """

    @override
    def within_groups(self, rollout: GroupedRewards) -> Grouped:
        lengths = rollout.grouped(rollout.required("lengths", self))
        tokens = lengths.sum(dim=-1, keepdim=True)
        # Center first, so that equal rewards give exactly 0.
        rewards = centered(rollout.groups)
        baseline = (lengths * rewards).sum(dim=-1, keepdim=True) / tokens.clamp(min=1)
        return torch.where(tokens > 0, rewards - baseline, 0)


@dataclass(frozen=True)
class MeanNormalized(GroupAdvantage):
    r"""Rewards minus the group mean, divided by the mean: $(R - \mu) / \mu$, for non-negative rewards.

    The expected gradient is that of $\log \mathrm{E}[R]$, so rarely solved prompts have a larger weight. A group of
    one, a group of equal rewards and a group of mean 0 have advantage 0.

    Raises:
        ValueError: when called, if a reward is negative; dividing by a negative mean would flip every sign.

    Example:
        >>> MeanNormalized()(GroupedRewards(torch.tensor([1.0, 0.0, 0.0, 0.0]), group_size=4))
        tensor([ 3., -1., -1., -1.])

    Reference: MaxRL, arXiv:2602.02710.
    """

    @override
    def within_groups(self, rollout: GroupedRewards) -> Grouped:
        if rollout.rewards.min() < 0:
            raise ValueError(
                f"`rewards` has {rollout.rewards.min().item()}, but MeanNormalized divides by their mean; pass "
                "rewards of 0 or more, with nothing subtracted from them, or use GroupNormalized."
            )
        return ratio(centered(rollout.groups), rollout.groups.mean(dim=-1, keepdim=True))


@dataclass(frozen=True)
class BestOfGroup(GroupAdvantage):
    r"""Lead of the best completion over the second best, divided by the group's standard deviation; 0 for all others.

    The advantage of the best completion is $(R_{(1)} - R_{(2)}) / (\sigma + \delta)$ with the unbiased $\sigma$. Up to
    the division, the expected gradient is that of the best reward of a group. If two completions tie for the best, and
    in a group of one, the advantage is 0.

    Args:
        delta: Constant added to the standard deviation, against division by 0.

    Raises:
        ValueError: `delta` is negative.

    Example:
        >>> BestOfGroup(delta=0.0)(GroupedRewards(torch.tensor([1.0, 0.0, 0.0, 0.0]), group_size=4))
        tensor([2., 0., 0., 0.])

    Reference: pass@k training, arXiv:2503.19595, as in verl, which raises for groups of one.
    """

    delta: float = 1e-6

    def __post_init__(self) -> None:
        require_non_negative(delta=self.delta)

    @override
    def within_groups(self, rollout: GroupedRewards) -> Grouped:
        groups = rollout.groups
        if rollout.group_size == 1:
            return torch.zeros_like(groups)
        best, second = groups.topk(2, dim=-1).values.split(1, dim=-1)
        lead = ratio(best - second, spread(groups) + self.delta)
        return torch.where(groups == best, lead, 0)
