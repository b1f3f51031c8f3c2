"""Estimators that look at one group at a time."""

from dataclasses import dataclass

import torch

from aggregate_po.advantages.base import (
    GroupAdvantage,
    Grouped,
    GroupedRewards,
    centered,
    ratio,
    require_non_negative,
    spread,
)


@dataclass(frozen=True)
class GroupNormalized(GroupAdvantage):
    r"""Rewards less their group's mean, over its standard deviation: $(R - \mu) / (\sigma + \delta)$.

    Args:
        ddof: 1 for the unbiased standard deviation, 0 for that of the population.
        delta: added to the standard deviation.

    A group of one, and equal rewards, have advantage 0.

    Raises:
        ValueError: `ddof` is neither 0 nor 1, or `delta` is negative.

    Example:
        >>> GroupNormalized()(GroupedRewards(torch.tensor([1.0, 0.0, 0.0, 0.0]), group_size=4))
        tensor([ 1.5000, -0.5000, -0.5000, -0.5000])

    Reference: GRPO, arXiv:2402.03300. Papers write "std"; released code uses `ddof=1`, and 1e-4 for `delta` in TRL.
    """

    ddof: int = 1
    delta: float = 1e-6

    def __post_init__(self) -> None:
        if self.ddof not in (0, 1):
            raise ValueError(
                f"`ddof` is {self.ddof}; pass 1 for the unbiased standard deviation or 0 for the population's."
            )
        require_non_negative(delta=self.delta)

    def within_groups(self, step: GroupedRewards) -> Grouped:
        """See `GroupAdvantage`."""
        return ratio(centered(step.groups), spread(step.groups, self.ddof) + self.delta)


@dataclass(frozen=True)
class GroupCentered(GroupAdvantage):
    r"""Rewards less their group's mean: $R - \mu$.

    A group of one, and equal rewards, have advantage 0.

    Reference: Dr. GRPO, arXiv:2503.20783.
    """

    def within_groups(self, step: GroupedRewards) -> Grouped:
        """See `GroupAdvantage`."""
        return centered(step.groups)


@dataclass(frozen=True)
class LeaveOneOut(GroupAdvantage):
    r"""Rewards less the mean of the others in their group: $R_i - \frac{1}{G-1}\sum_{j \ne i} R_j$.

    A group of one has no others, and advantage 0, as have equal rewards.

    Reference: RLOO, arXiv:2402.14740. verl leaves the reward of a group of one as it is.
    """

    def within_groups(self, step: GroupedRewards) -> Grouped:
        """See `GroupAdvantage`."""
        return centered(step.groups) * (step.group_size / max(step.group_size - 1, 1))


@dataclass(frozen=True)
class LengthWeightedCentered(GroupAdvantage):
    r"""Rewards less their group's mean, in which long completions count more: $R_i - \sum_j n_j R_j / \sum_j n_j$.

    The baseline of least variance, if the squared length of a completion's gradient grows with its tokens. A group of
    one, equal rewards, and a group without any token have advantage 0.

    Raises:
        ValueError: when called, if `lengths` are missing.

    Example:
        >>> rewards, lengths = torch.tensor([1.0, 0.0, 0.0, 0.0]), torch.tensor([10, 20, 30, 40])
        >>> LengthWeightedCentered()(GroupedRewards(rewards, group_size=4, lengths=lengths))
        tensor([ 0.9000, -0.1000, -0.1000, -0.1000])

    Reference: OPO, arXiv:2505.23585.
    """

    def within_groups(self, step: GroupedRewards) -> Grouped:
        """See `GroupAdvantage`."""
        lengths = step.grouped(step.required("lengths", self))
        tokens = lengths.sum(dim=-1, keepdim=True)
        # From rewards that are centred already, so that equal ones give exactly 0.
        rewards = centered(step.groups)
        baseline = (lengths * rewards).sum(dim=-1, keepdim=True) / tokens.clamp(min=1)
        return torch.where(tokens > 0, rewards - baseline, 0)


@dataclass(frozen=True)
class MeanNormalized(GroupAdvantage):
    r"""Rewards less their group's mean, over the mean: $(R - \mu) / \mu$, for rewards such as 0 and 1.

    Its expectation is the gradient of $\log \mathrm{E}[R]$, so a prompt counts the more, the more rarely it is solved.
    A group of one, equal rewards, and a group whose mean is 0 have advantage 0.

    Raises:
        ValueError: when called, if a reward is negative; the logarithm of a negative mean is not defined, and dividing
            by it would turn every sign around.

    Example:
        >>> MeanNormalized()(GroupedRewards(torch.tensor([1.0, 0.0, 0.0, 0.0]), group_size=4))
        tensor([ 3., -1., -1., -1.])

    Reference: MaxRL, arXiv:2602.02710.
    """

    def within_groups(self, step: GroupedRewards) -> Grouped:
        """See `GroupAdvantage`."""
        if step.rewards.min() < 0:
            raise ValueError(
                f"`rewards` has {step.rewards.min().item()}, but MeanNormalized divides by their mean; pass rewards of "
                "0 or more with nothing taken off them, or use GroupNormalized."
            )
        return ratio(centered(step.groups), step.groups.mean(dim=-1, keepdim=True))


@dataclass(frozen=True)
class BestOfGroup(GroupAdvantage):
    r"""The best completion's lead over the second best, over the group's standard deviation; 0 for all others.

    Its expectation is the gradient of the best reward of a group, up to the division:
    $(R_{(1)} - R_{(2)}) / (\sigma + \delta)$ with the unbiased $\sigma$. Where two are best, and in a group of one, the
    advantage is 0.

    Args:
        delta: added to the standard deviation.

    Raises:
        ValueError: `delta` is negative.

    Example:
        >>> BestOfGroup(delta=0.0)(GroupedRewards(torch.tensor([1.0, 0.0, 0.0, 0.0]), group_size=4))
        tensor([2., 0., 0., 0.])

    Reference: pass@k training, arXiv:2503.19595, as in verl, which refuses groups of one.
    """

    delta: float = 1e-6

    def __post_init__(self) -> None:
        require_non_negative(delta=self.delta)

    def within_groups(self, step: GroupedRewards) -> Grouped:
        """See `GroupAdvantage`."""
        groups = step.groups
        if step.group_size == 1:
            return torch.zeros_like(groups)
        best, second = groups.topk(2, dim=-1).values.split(1, dim=-1)
        lead = ratio(best - second, spread(groups) + self.delta)
        return torch.where(groups == best, lead, 0)
