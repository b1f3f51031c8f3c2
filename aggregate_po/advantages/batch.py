"""Estimators that compare completions of different prompts by statistics of the whole rollout."""

from dataclasses import dataclass
from functools import partial

import torch
from einops import rearrange
from torch import Tensor
from typing_extensions import override

from aggregate_po.advantages.base import AdvantageEstimator, GroupedRewards
from aggregate_po.advantages.rounding import Grouped, without_rounding
from aggregate_po.advantages.statistics import centered, power_of_two, ratio, spread
from aggregate_po.arguments import require_non_negative, require_numbers
from aggregate_po.batch import PerCompletion, PerToken


@dataclass(frozen=True)
class BatchScaled(AdvantageEstimator):
    r"""Group-centered rewards divided by the unbiased standard deviation of all rewards of the rollout.

    $(R - \mu_\mathrm{group}) / (\sigma_\mathrm{batch} + \delta)$ does not amplify small differences within a group. A
    group of one and a group of equal rewards have advantage 0.

    Args:
        delta: Constant added to the standard deviation, against division by 0.

    Raises:
        ValueError: `delta` is negative.

    Example:
        >>> rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0])
        >>> BatchScaled()(GroupedRewards(rewards, group_size=4))
        tensor([ 1.4031, -0.4677, -0.4677, -0.4677,  0.4677,  0.4677,  0.4677, -1.4031])

    Reference: Lite PPO, arXiv:2508.08221; `scale_rewards="batch"` in TRL, where `delta` is 1e-4.
    """

    delta: float = 1e-6

    def __post_init__(self) -> None:
        require_non_negative(delta=self.delta)

    @override
    def __call__(self, rollout: GroupedRewards) -> PerCompletion:
        scale = spread(rearrange(rollout.known_rewards.double(), "batch -> 1 batch")).squeeze() + self.delta
        return rollout.rounded(ratio(_centered(rollout), scale))


@dataclass(frozen=True)
class WhitenedCentered(AdvantageEstimator):
    r"""Group-centered rewards, whitened over all tokens of the rollout.

    With $d = R - \mu_\mathrm{group}$ on each token, $A = (d - m) / \sqrt{s^2 + \delta}$, where the mean $m$ and the
    unbiased variance $s^2$ count a completion once for each of its tokens. A completion without tokens has advantage
    0. If the rewards of every group are equal, all advantages are 0. If only one group has equal rewards, its
    advantages are $-m / \sqrt{s^2 + \delta}$, where $m = 0$ if all lengths are equal.

    Args:
        variance_delta: Constant $\delta$ added to the variance, against division by 0.

    Raises:
        ValueError: `variance_delta` is negative; when called, if `lengths` are missing.

    Reference: the variant of REINFORCE++ with a baseline, arXiv:2501.03262.
    """

    variance_delta: float = 1e-8

    def __post_init__(self) -> None:
        require_non_negative(variance_delta=self.variance_delta)

    @override
    def __call__(self, rollout: GroupedRewards) -> PerCompletion:
        lengths = rollout.required("lengths", self)
        return rollout.rounded(_whitened(_centered(rollout), rollout.counted(lengths), self.variance_delta))


@dataclass(frozen=True)
class WhitenedReturns(AdvantageEstimator):
    r"""Discounted returns of the tokens, whitened over all tokens of the rollout; groups have no effect.

    The reward comes with the last token, so token $t$ of $n$ has the return $G_t = \gamma^{n-t} R$. Its advantage is
    $(G_t - m) / \sqrt{s^2 + \delta}$, with the mean and the unbiased variance over all tokens. A completion without
    tokens has advantage 0. If all returns are equal, all advantages are 0.

    Args:
        discount: Discount factor $\gamma$; at 1 the result has shape `batch`, because all tokens of a completion share
            one advantage; below 1 it has shape `batch time`.
        variance_delta: Constant $\delta$ added to the variance, against division by 0.

    Raises:
        ValueError: `discount` is not between 0 and 1, or `variance_delta` is negative; when called, if `lengths` are
            missing.

    Example:
        >>> rollout = GroupedRewards(torch.tensor([1.0, 0.0]), group_size=2, lengths=torch.tensor([2, 1]))
        >>> WhitenedReturns(discount=0.5)(rollout)
        tensor([[ 0.,  1.],
                [-1.,  0.]])

    Reference: REINFORCE++, arXiv:2501.03262.
    """

    discount: float = 1.0
    variance_delta: float = 1e-8

    def __post_init__(self) -> None:
        require_numbers(discount=self.discount)
        if not 0 <= self.discount <= 1:
            raise ValueError(f"`discount` is {self.discount}; pass a number from 0 to 1, 1 for none.")
        require_non_negative(variance_delta=self.variance_delta)

    @override
    def __call__(self, rollout: GroupedRewards) -> PerCompletion | PerToken:
        lengths = rollout.required("lengths", self)
        alone = rearrange(rollout.rewards.double(), "batch -> 1 batch")
        rewards = rearrange(without_rounding(alone, rollout.rewards.dtype), "1 batch -> batch")
        if self.discount == 1:
            return rollout.rounded(_whitened(rewards, rollout.counted(lengths), self.variance_delta))
        time = torch.arange(int(lengths.max()), device=lengths.device)
        tokens_after = rearrange(rollout.counted(lengths), "batch -> batch 1") - 1 - time
        mask = tokens_after >= 0
        returns = rearrange(rewards, "batch -> batch 1") * self.discount ** tokens_after.clamp(min=0).double()
        return rollout.rounded(_whitened(returns, mask, self.variance_delta))


@dataclass(frozen=True)
class ComponentNormalized(AdvantageEstimator):
    r"""Sum of individually group-normalized rewards, whitened over the rollout.

    With $z_k = (R_k - \mu_k) / (\sigma_k + \delta)$ for each reward and $s = \sum_k w_k z_k$ for each completion,
    $A = (s - \bar s) / \sqrt{\mathrm{var}(s) + 10^{-8}}$ over all completions. A reward of high variance does not
    dominate one of low variance. If every reward is constant in every group, all advantages are 0.

    Args:
        delta: Constant added to the standard deviation of each reward, against division by 0.

    Raises:
        ValueError: `delta` is negative; when called, if `components` are missing, or if `rewards` is not their weighted
            sum, because a term added to the total only would be lost.

    Reference: GDPO, arXiv:2601.05242, and TRL, where `delta` is 1e-4; verl whitens over tokens instead of completions.
    """

    delta: float = 1e-6

    def __post_init__(self) -> None:
        require_non_negative(delta=self.delta)

    @override
    def __call__(self, rollout: GroupedRewards) -> PerCompletion:
        components = rollout.required("components", self).double()
        weights = components.new_tensor(rollout.component_weights or [1.0] * components.shape[-1])
        weighted = weights * components
        given = (rollout.rewards, rollout.required("components", self))
        precision = max(torch.finfo(values.dtype).eps for values in given)
        if ((weighted.sum(dim=-1) - rollout.rewards).abs() > 16 * precision * weighted.abs().sum(dim=-1)).any():
            raise ValueError(
                "`rewards` is not the weighted sum of `components`, but ComponentNormalized reads these alone; leave "
                "the total as it is, for instance with `kl_in_reward` of 0 and a KL penalty in the objective."
            )
        scores = rollout.by_groups(partial(self._scores, weights))
        counts = rollout.counted(torch.ones_like(rollout.rewards))
        return rollout.rounded(_whitened(scores, counts, variance_delta=1e-8))

    def _scores(self, weights: Tensor, rollout: GroupedRewards) -> Grouped:
        components = rollout.required("components", self)
        columns = [without_rounding(rollout.grouped(column), components.dtype) for column in components.unbind(dim=-1)]
        groups = torch.stack(columns)
        scores = ratio(centered(groups), spread(groups) + self.delta)
        return (rearrange(weights, "component -> component 1 1") * scores).sum(dim=0)


def _centered(rollout: GroupedRewards) -> PerCompletion:
    return rollout.by_groups(lambda part: centered(part.groups))


def _whitened(values: Tensor, counts: Tensor, variance_delta: float) -> Tensor:
    """Subtract the mean and divide by the root of the unbiased variance plus `variance_delta`.

    Each value counts `counts` times. The result is zero where the count is zero, and everywhere if all values are equal
    or there is only one.
    """
    counts = counts.to(values.dtype)
    present, total = counts > 0, counts.sum()
    if not present.any() or values[present].min() == values[present].max():
        return torch.zeros_like(values)
    unit = power_of_two(values.flatten())
    values = values / unit
    deviations = values - (counts * values).sum() / total
    variance = (counts * deviations.square()).sum() / (total - 1)
    return torch.where(present, deviations * (variance + variance_delta / unit**2).rsqrt(), 0)
