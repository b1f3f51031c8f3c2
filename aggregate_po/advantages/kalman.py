"""Baselines tracked by a Kalman filter over the rewards of a group."""

from abc import abstractmethod
from dataclasses import dataclass
from typing import Any, Literal, get_args, get_type_hints

import torch
from torch import Tensor
from typing_extensions import override

from aggregate_po.advantages.base import GroupAdvantage, GroupedRewards
from aggregate_po.advantages.rounding import Grouped
from aggregate_po.arguments import require_non_negative, require_positive

# Added to the standard deviation as in the paper's code, although that is never 0.
_DELTA = 1e-8

FilterOrder = Literal["sampled", "shuffled", "two_pass"]
InnovationOrder = Literal["sampled", "shuffled", "leave_one_out"]


@dataclass(frozen=True)
class KalmanAdvantage(GroupAdvantage):
    r"""Advantage from a one-dimensional Kalman filter over the rewards of each prompt.

    The filter starts from a baseline $x = 0$ of variance $P$ and processes the rewards $z$ one by one. Before each, it
    predicts it: $x^-$ is the baseline so far and $P^- = P + Q$ its variance. Afterwards, with $K = P^- / (P^- + R)$,
    $x = x^- + K (z - x^-)$ and $P = (1 - K) P^-$. A subclass implements the advantage of each reward from its
    prediction, and the one that does not depend on an order.

    Args:
        order: Order in which the filter processes the rewards.
        process_variance: Variance $Q$ of the drift of the baseline from one completion to the next.
        observation_variance: Variance $R$ of a reward around the baseline.
        prior_variance: Initial variance $P$ of the baseline.

    Raises:
        ValueError: the order is unknown, a variance is negative, or one that must be positive is 0.
    """

    order: Any = "sampled"
    process_variance: float = 1e-5
    observation_variance: float = 1e-2
    prior_variance: float = 1.0

    def __post_init__(self) -> None:
        orders = get_args(get_type_hints(type(self))["order"])
        if self.order not in orders:
            raise ValueError(f"`order` is {self.order!r}; pass one of {', '.join(orders)}.")
        require_non_negative(process_variance=self.process_variance)
        require_positive(observation_variance=self.observation_variance, prior_variance=self.prior_variance)

    @abstractmethod
    def predicted(self, groups: Grouped, baselines: Grouped, variances: Tensor) -> Grouped:
        """Return the advantages of rewards in the order of the filter.

        Args:
            groups: Rewards $z$; shape `(prompt, group)`.
            baselines: Predictions $x^-$ of the rewards; shape `(prompt, group)`.
            variances: Their variances $P^-$; shape `(group,)`.
        """

    @abstractmethod
    def unordered(self, groups: Grouped) -> Grouped:
        """Return the advantages by a filter without $Q$, which do not depend on an order; shape `(prompt, group)`."""

    @override
    def within_groups(self, rollout: GroupedRewards) -> Grouped:
        groups = rollout.groups
        if self.order == "sampled":
            return self._in_order(groups)
        if self.order != "shuffled":
            return self.unordered(groups)
        generator = torch.Generator().manual_seed(rollout.seed)
        # Sample on the CPU, where a seed gives the same order on every machine.
        places = torch.rand(groups.shape, generator=generator).argsort(dim=-1).to(groups.device)
        return self._in_order(groups.gather(-1, places)).gather(-1, places.argsort(dim=-1))

    def posterior_variance(self, rewards: int) -> float:
        """Return the variance of the baseline after some rewards, without drift: that of a normal mean."""
        return 1 / (1 / self.prior_variance + rewards / self.observation_variance)

    def _in_order(self, groups: Grouped) -> Grouped:
        baseline, variance = torch.zeros_like(groups[:, 0]), self.prior_variance
        baselines, variances = [], []
        for reward in groups.unbind(dim=-1):
            predicted = variance + self.process_variance
            baselines.append(baseline)
            variances.append(predicted)
            gain = predicted / (predicted + self.observation_variance)
            baseline = baseline + gain * (reward - baseline)
            variance = (1 - gain) * predicted
        return self.predicted(groups, torch.stack(baselines, dim=-1), groups.new_tensor(variances))


@dataclass(frozen=True)
class KalmanBaseline(KalmanAdvantage):
    r"""Rewards minus the filter's baseline, over the filter's standard deviation: $(z - x) / (\sqrt{P} + 10^{-8})$.

    Baseline $x$ and variance $P$ are those *after* the filter has seen the reward itself, so the baseline of the first
    completion is nearly its own reward. `KalmanInnovation` has the prediction before it.

    Args:
        order: Order in which the filter processes the rewards.
            "sampled" processes rewards in the order of the completions, and uses $x$ and $P$ right after each reward;
            the result depends on the order.
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

    @override
    def predicted(self, groups: Grouped, baselines: Grouped, variances: Tensor) -> Grouped:
        gains = variances / (variances + self.observation_variance)
        residuals = groups - (baselines + gains * (groups - baselines))
        return residuals / (((1 - gains) * variances).sqrt() + _DELTA)

    @override
    def unordered(self, groups: Grouped) -> Grouped:
        variance = self.posterior_variance(groups.shape[-1])
        baseline = groups.sum(dim=-1, keepdim=True) * variance / self.observation_variance
        return (groups - baseline) / (variance**0.5 + _DELTA)


@dataclass(frozen=True)
class KalmanInnovation(KalmanAdvantage):
    r"""Rewards minus the filter's prediction, in its standard deviations: $(z - x^-) / \sqrt{P^- + R}$.

    The prediction $x^-$ is made before the filter sees the reward, and $P^- + R$ is the variance of the reward around
    it. If rewards vary as the filter assumes, the advantages of a group have variance 1 and are uncorrelated.

    Args:
        order: Rewards that a prediction is made from.
            "sampled" predicts each reward from those of the earlier completions of the prompt; the result depends on
            the order, and the first prediction is 0.
            "shuffled" does the same in a random order for each prompt, from `rollout.seed`.
            "leave_one_out" predicts each reward from all others of the prompt, without $Q$; the result does not depend
            on the order.
        process_variance: Variance $Q$ of the drift of the baseline from one completion to the next.
        observation_variance: Variance $R$ of a reward around the baseline.
        prior_variance: Initial variance $P$ of the baseline.

    The initial baseline biases predictions toward 0, most of all in small groups: equal rewards have advantage 0 only
    if they are 0.

    Raises:
        ValueError: the order is unknown, a variance is negative, or one that must be positive is 0.

    Example:
        >>> KalmanInnovation("leave_one_out")(GroupedRewards(torch.tensor([1.0, 0.0, 0.0, 0.0]), group_size=4))
        tensor([ 8.6639, -2.8784, -2.8784, -2.8784])

    Reference: a correction of KRPO, arXiv:2505.07527, which divides what remains after the reward has entered its own
    baseline; both forms are this library's.
    """

    order: InnovationOrder = "sampled"

    @override
    def predicted(self, groups: Grouped, baselines: Grouped, variances: Tensor) -> Grouped:
        return (groups - baselines) / (variances + self.observation_variance).sqrt()

    @override
    def unordered(self, groups: Grouped) -> Grouped:
        variance = self.posterior_variance(groups.shape[-1] - 1)
        others = groups.sum(dim=-1, keepdim=True) - groups
        return (groups - others * variance / self.observation_variance) / (variance + self.observation_variance) ** 0.5
