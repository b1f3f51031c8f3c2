"""Normalisation by a beta distribution that is fitted to the success rates of the prompts."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from aggregate_po.advantages.base import AdvantageEstimator, Grouped, GroupedRewards, centered
from aggregate_po.batch import PerCompletion

_MAX_WEIGHT = 1e6

# Success rates whose variance is below this differ by rounding only, and the fit would be noise.
_SMALLEST_VARIANCE = 1e-12


@dataclass(frozen=True)
class BetaNormalized(AdvantageEstimator):
    r"""Rewards less their group's mean $p$, over a beta density of $p$ that follows the prompts of the rollout.

    $A = (R - p) / f(p; \alpha, \beta)$. The $p$ of all prompts, of mean $\mu$ and unbiased variance $v$, are taken for
    draws from a beta distribution with $a = \kappa\mu$, $b = \kappa(1-\mu)$, $\kappa = \mu(1-\mu)/v - 1$; then
    $\alpha = 1 + a/3$ and $\beta = 1 + b/3$ give the gradient the least variance. At $\alpha = \beta = 1$ this is
    `GroupCentered`, at 1.5 it is `GroupNormalized` but for the factor $\pi/8$ and the kind of standard deviation.

    Bounds: $\alpha$ and $\beta$ are at least 1, so a negative $a$ or $b$ (success rates further apart than any beta
    distribution has them) counts as 0; $1/f$ is at most $10^6$. One prompt, or prompts of equal rates, say nothing
    about the distribution: $\alpha = \beta = 1$. A group of one, and equal rewards, have advantage 0.

    Rewards are meant to be 0 and 1, and may lie between. Other rewards are first mapped linearly to [0, 1]: from
    `reward_range` where that is given; else, if any lies outside [0, 1], from the smallest and the largest reward of
    the rollout.

    Args:
        reward_range: the smallest and the largest reward that can be, so that the map is the same in every rollout.

    Raises:
        ValueError: `reward_range` does not rise; when called, if a reward is outside it.

    Example:
        >>> rewards = torch.tensor([1.0, 0.0, 0.0, 0.0, 1.0, 1.0, 1.0, 0.0, 1.0, 1.0, 0.0, 0.0, 1.0, 1.0, 1.0, 1.0])
        >>> BetaNormalized()(GroupedRewards(rewards, group_size=4))[:8]
        tensor([ 0.7546, -0.2515, -0.2515, -0.2515,  0.2243,  0.2243,  0.2243, -0.6730])

    Reference: BNPO, arXiv:2506.02864.
    """

    reward_range: tuple[float, float] | None = None

    def __post_init__(self) -> None:
        if self.reward_range is not None and not self.reward_range[0] < self.reward_range[1]:
            raise ValueError(
                f"`reward_range` is {self.reward_range}; pass the smallest and the largest reward, in this order."
            )

    def __call__(self, step: GroupedRewards) -> PerCompletion:
        """See `AdvantageEstimator`."""
        groups = self._mapped(step.groups)
        rates = groups.mean(dim=-1)
        weights = beta_density(rates, *fitted_shape(rates)).reciprocal().clamp(max=_MAX_WEIGHT)
        advantages = rearrange(weights, "prompt -> prompt 1") * centered(groups)
        return step.rounded(rearrange(advantages, "prompt group -> (prompt group)"))

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
    """The shape of the density by which advantages are divided, from the mean rewards of the prompts.

    Args:
        rates: success rate of each prompt; shape `prompt`.

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
    """Density of the beta distribution, also at 0 and 1; shape of `rates`."""
    normalization = torch.lgamma(alpha) + torch.lgamma(beta) - torch.lgamma(alpha + beta)
    # x * log(y) that is 0 where x is, because 0 * log(0) at a bound would be NaN.
    logarithm = torch.special.xlogy(alpha - 1, rates) + torch.special.xlog1py(beta - 1, -rates)
    return torch.exp(logarithm - normalization)
