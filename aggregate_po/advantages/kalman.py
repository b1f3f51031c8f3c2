"""A baseline that is tracked through the rewards of a group by a Kalman filter."""

from dataclasses import dataclass
from typing import Literal, get_args

import torch
from torch import Tensor

from aggregate_po.advantages.base import GroupAdvantage, Grouped, GroupedRewards, require_non_negative

# Added to the standard deviation; of no consequence, since that is never 0, but what the paper's code does.
_DELTA = 1e-8

FilterOrder = Literal["sampled", "shuffled", "two_pass"]


@dataclass(frozen=True)
class KalmanBaseline(GroupAdvantage):
    r"""Rewards less a baseline from a one-dimensional Kalman filter, over the filter's standard deviation.

    The filter starts from a baseline $x = 0$ of variance $P$ for each prompt, and takes in one reward $z$ after
    another: $P \leftarrow P + Q$, $K = P / (P + R)$, $x \leftarrow x + K (z - x)$, $P \leftarrow (1 - K) P$. The
    advantage is $(z - x) / (\sqrt{P} + 10^{-8})$.

    Args:
        order: "sampled" takes the rewards in the order of the completions, with $x$ and $P$ right after each reward's
            own step; the result depends on the order, and the first completion's baseline is nearly its own reward.
            "shuffled" does the same in an order drawn for each prompt from `step.seed`, so that no place is favoured.
            "two_pass" first takes in all rewards of the group, then gives every completion the same $x$ and $P$; the
            filter runs without $Q$, since completions drawn at once have no order in which a baseline could drift,
            and then the order makes no difference.
        process_variance: $Q$, how far the baseline may drift from one completion to the next.
        observation_variance: $R$, of a reward about the baseline.
        prior_variance: $P$ at the start.

    The filter is drawn towards 0 by its start: neither equal rewards nor a group of one have advantage 0, unless the
    rewards are 0.

    Raises:
        ValueError: the order is unknown, a variance is negative, or one that must be positive is 0.

    Example:
        >>> KalmanBaseline()(GroupedRewards(torch.tensor([1.0, 0.0, 0.0, 0.0]), group_size=4))
        tensor([ 0.0995, -7.0481, -5.7514, -4.9725])

    Reference: KRPO, arXiv:2505.07527, whose code has the order "sampled"; the other two are this library's.
    """

    order: FilterOrder = "sampled"
    process_variance: float = 1e-5
    observation_variance: float = 1e-2
    prior_variance: float = 1.0

    def __post_init__(self) -> None:
        if self.order not in get_args(FilterOrder):
            raise ValueError(f"`order` is {self.order!r}; pass one of {', '.join(get_args(FilterOrder))}.")
        require_non_negative(process_variance=self.process_variance)
        for name in ("observation_variance", "prior_variance"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; pass a positive number.")

    def within_groups(self, step: GroupedRewards) -> Grouped:
        """See `GroupAdvantage`."""
        groups = step.groups
        if self.order == "two_pass":
            return self._after_all(groups)
        if self.order == "sampled":
            return self._after_each(groups)
        generator = torch.Generator().manual_seed(step.seed)
        # Drawn on the CPU, where the same seed gives the same order whatever the machine.
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
