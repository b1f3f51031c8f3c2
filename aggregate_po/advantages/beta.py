"""Normalization by a beta distribution fitted to the success rates of the prompts."""

import math
from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from typing_extensions import override

from aggregate_po.advantages.base import AdvantageEstimator, GroupedRewards
from aggregate_po.advantages.rounding import Grouped
from aggregate_po.advantages.statistics import centered
from aggregate_po.arguments import require_numbers
from aggregate_po.batch import PerCompletion

_MAX_WEIGHT = 1e6

# Below this variance, success rates differ by rounding only, and a fit would be noise.
_SMALLEST_VARIANCE = 1e-12


@dataclass(frozen=True)
class BetaNormalized(AdvantageEstimator):
    r"""Group-centered rewards divided by a beta density of the group mean $p$, fitted to the rollout.

    $A = (R - p) / f(p; \alpha, \beta)$. The $p$ of all prompts, with mean $\mu$ and unbiased variance $v$, are
    modeled as samples from a beta distribution with $a = \kappa\mu$, $b = \kappa(1-\mu)$, $\kappa = \mu(1-\mu)/v - 1$;
    then $\alpha = 1 + a/3$ and $\beta = 1 + b/3$ minimize the variance of the gradient. At $\alpha = \beta = 1$ the
    estimator equals `GroupCentered`; at 1.5, for rewards 0 and 1, it equals `GroupNormalized(ddof=0, delta=0)` up to a
    factor $\pi/8$.

    Bounds: $\alpha$ and $\beta$ are at least 1, so a negative $a$ or $b$ (success rates further apart than any beta
    distribution has them) counts as 0; $1/f$ is at most $10^6$. One prompt, or prompts of equal rates, do not
    determine the distribution: $\alpha = \beta = 1$. A group of one and a group of equal rewards have advantage 0.

    The estimator is made for rewards in [0, 1]. Other rewards are first mapped linearly to [0, 1]: from `reward_range`
    if given; otherwise, if any reward is outside [0, 1], from the smallest and the largest reward of the rollout.

    Args:
        reward_range: Smallest and largest possible reward; with them the mapping to [0, 1] is the same in every
            rollout.

    Raises:
        ValueError: `reward_range` is not increasing; when called, if a reward is outside the range.

    Example:
        >>> rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
        >>> BetaNormalized()(GroupedRewards(rewards, group_size=4))[:8]
        tensor([ 0.7546, -0.2515, -0.2515, -0.2515,  0.2243,  0.2243,  0.2243, -0.6730])

    Reference: BNPO, arXiv:2506.02864.
    """

    reward_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        for end in self.reward_range or ():
            require_numbers(reward_range=end)
        if self.reward_range is not None and not -math.inf < self.reward_range[0] < self.reward_range[1] < math.inf:
            raise ValueError(
                f"`reward_range` is {self.reward_range}; pass the smallest and the largest reward, in this order and "
                "finite."
            )

    @override
    def __call__(self, rollout: GroupedRewards) -> PerCompletion:
        groups = self._mapped(rollout.groups)
        rates = groups.mean(dim=-1)  # completions without a reward have the mean of the others
        counted = rates if rollout.scored is None else rates[rollout.grouped(rollout.scored).any(dim=-1)]
        weights = beta_density(rates, *fitted_shape(counted)).reciprocal().clamp(max=_MAX_WEIGHT)
        advantages = rearrange(weights, "prompt -> prompt 1") * centered(groups)
        return rollout.rounded(rollout.counted(rearrange(advantages, "prompt group -> (prompt group)")))

    def _mapped(self, groups: Grouped) -> Grouped:
        low, high = groups.min(), groups.max()
        if self.reward_range is not None:
            smallest, largest = self.reward_range
            if low < smallest or high > largest:
                raise ValueError(
                    f"`rewards` lie between {low.item()} and {high.item()}, but `reward_range` is {self.reward_range}; "
                    "widen it, or pass None to map each rollout from its own range."
                )
            return (groups - smallest) / (largest - smallest)
        if low >= 0 and high <= 1:
            return groups
        return (groups - low) / torch.where(high > low, high - low, 1)


def fitted_shape(rates: Tensor) -> tuple[Tensor, Tensor]:
    """Return the shape parameters of the beta density, from the success rates of the prompts.

    Args:
        rates: Success rate of each prompt; shape `prompt`.

    Returns:
        `alpha` and `beta`, both at least 1.
    """
    one = rates.new_ones(())
    if len(rates) < 2 or (variance := rates.var()) < _SMALLEST_VARIANCE:
        return one, one
    mean = rates.mean()
    concentration = mean * (1 - mean) / variance - 1
    alpha, beta = 1 + concentration * mean / 3, 1 + concentration * (1 - mean) / 3
    return alpha.clamp(min=1), beta.clamp(min=1)


def beta_density(rates: Tensor, alpha: Tensor, beta: Tensor) -> Tensor:
    """Return the density of the beta distribution, also at 0 and 1; shape of `rates`."""
    normalization = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)
    # xlogy is 0 where its first argument is 0; 0 * log(0) at a bound would be NaN.
    logarithm = torch.special.xlogy(alpha - 1, rates) + torch.special.xlog1py(beta - 1, -rates)
    return torch.exp(logarithm - normalization)
