"""Baseline tracked by a Kalman filter over the rewards of a group."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor
from typing_extensions import override

from aggregate_po.advantages.base import GroupAdvantage, Grouped, GroupedRewards
from aggregate_po.arguments import require_non_negative, require_positive

# Added to the standard deviation as in the paper's code, although that is never 0.
_DELTA = 1e-8

FilterOrder = Literal["sampled", "shuffled", "two_pass"]


@dataclass(frozen=True)
class KalmanBaseline(GroupAdvantage):
    r"""Rewards minus a baseline from a one-dimensional Kalman filter, divided by the filter's standard deviation.

    For each prompt, the filter starts from a baseline $x = 0$ of variance $P$ and processes the rewards $z$ one by one:
    $P \leftarrow P + Q$, $K = P / (P + R)$, $x \leftarrow x + K (z - x)$, $P \leftarrow (1 - K) P$. The advantage is
    $(z - x) / (\sqrt{P} + 10^{-8})$.

    Args:
        order: Order in which the filter processes the rewards.
            "sampled" processes rewards in the order of the completions, and uses $x$ and $P$ right after each reward;
            the result depends on the order, and the baseline of the first completion is nearly its own reward.
            "shuffled" does the same in a random order for each prompt, from `rollout.seed`.
            "two_pass" first processes all rewards of the group, then uses the same $x$ and $P$ for every completion;
            the filter runs without $Q$, because completions sampled together have no order in which a baseline could
            drift, and the result does not depend on the order.
        process_variance: Variance $Q$ of the drift of the baseline from one completion to the next.
        observation_variance: Variance $R$ of a reward around the baseline.
        prior_variance: Initial variance $P$ of the baseline.

    The initial baseline biases the filter toward 0: equal rewards and a group of one have advantage 0 only if the
    rewards are 0.

    Raises:
        ValueError: the order is unknown, a variance is negative, or one that must be positive is 0.

    Example:
        >>> KalmanBaseline()(GroupedRewards(torch.tensor([1.0, 0.0, 0.0, 0.0]), group_size=4))
        tensor([ 0.0995, -7.0481, -5.7514, -4.9725])

    Reference: KRPO, arXiv:2505.07527, whose code uses the order "sampled"; the other two orders are this library's.
    """

    order: FilterOrder = "sampled"
    process_variance: float = 1e-5
    observation_variance: float = 1e-2
    prior_variance: float = 1.0

    def __post_init__(self) -> None:
        if self.order not in get_args(FilterOrder):
            raise ValueError(f"`order` is {self.order!r}; pass one of {', '.join(get_args(FilterOrder))}.")
        require_non_negative(process_variance=self.process_variance)
        require_positive(observation_variance=self.observation_variance, prior_variance=self.prior_variance)

    @override
    def within_groups(self, rollout: GroupedRewards) -> Grouped:
        groups = rollout.groups
        if self.order == "two_pass":
            return self._after_all(groups)
        if self.order == "sampled":
            return self._after_each(groups)
        generator = torch.Generator().manual_seed(rollout.seed)
        # Sample on the CPU, where a seed gives the same order on every machine.
        places = torch.rand(groups.shape, generator=generator).argsort(dim=-1).to(groups.device)
        return self._after_each(groups.gather(-1, places)).gather(-1, places.argsort(dim=-1))

    def _after_each(self, groups: Grouped) -> Grouped:
        baseline, variance = torch.zeros_like(groups[:, 0]), self.prior_variance
        advantages: list[Tensor] = []
        for reward in groups.unbind(dim=-1):
            predicted = variance + self.process_variance
            gain = predicted / (predicted + self.observation_variance)
            baseline = baseline + gain * (reward - baseline)
            variance = (1 - gain) * predicted
            advantages.append((reward - baseline) / (variance**0.5 + _DELTA))
        return torch.stack(advantages, dim=-1)

    def _after_all(self, groups: Grouped) -> Grouped:
        # Without drift the filter ends at the posterior of a normal mean, in closed form.
        variance = 1 / (1 / self.prior_variance + groups.shape[-1] / self.observation_variance)
        baseline = groups.sum(dim=-1, keepdim=True) * variance / self.observation_variance
        return (groups - baseline) / (variance**0.5 + _DELTA)
