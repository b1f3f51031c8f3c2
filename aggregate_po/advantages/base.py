"""Interface of advantage estimators, and the context that an estimator receives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from einops import rearrange
from torch import Tensor
from typing_extensions import override

from aggregate_po.batch import PerCompletion, PerToken
from aggregate_po.shapes import bind_shapes, require_shape

Grouped = Annotated[Tensor, "prompt group"]

# Relative rounding errors of sums of up to thousands of terms; real rewards are further apart.
_ROUNDING = {torch.float64: 1e-12, torch.float32: 1e-6}

_REMEDIES = {
    "lengths": "pass the tokens of each completion, `GroupedRewards(..., lengths=...)`",
    "components": "pass the single rewards, `GroupedRewards(..., components=...)`, shape `batch component`",
}


@dataclass(frozen=True)
class GroupedRewards:
    """Rewards of a whole rollout, over all ranks, with everything else that an estimator may need.

    An estimator is called once with the rollout of all ranks. Statistics over the completions of one rank alone would
    make the gradient depend on how the rollout is sharded.

    Args:
        rewards: One reward per completion, with the completions of one prompt next to each other; shape `batch`.
        group_size: Completions per prompt.
        lengths: Tokens of each completion, trained or not; shape `batch`.
        components: Individual rewards, if `rewards` is their weighted sum; shape `batch component`.
        component_weights: Weights of that sum; None means 1 for each.
        seed: Random seed for estimators that sample; the same on every rank.

    Integer rewards are converted to floating point. Rewards of a group that differ by rounding only, as `0.1 + 0.2` and
    `0.3` do, are equal in `groups`; see `equal_up_to_rounding`.

    Raises:
        TypeError: rewards, lengths or components are not a tensor.
        ValueError: the rewards are empty, not finite or not a multiple of `group_size`, or shapes disagree.
    """

    rewards: PerCompletion
    group_size: int
    lengths: PerCompletion | None = None
    components: Tensor | None = None
    component_weights: tuple[float, ...] | None = None
    seed: int = 0

    def __post_init__(self) -> None:
        if isinstance(self.rewards, Tensor) and self.rewards.ndim != 1:
            raise ValueError(
                f"`rewards` has shape {tuple(self.rewards.shape)}; pass one reward per completion, shape `batch`."
            )
        optional = {"lengths": (self.lengths, "batch"), "components": (self.components, "batch component")}
        given = {name: pair for name, pair in optional.items() if pair[0] is not None}
        sizes = bind_shapes(rewards=(self.rewards, "batch"), **given)
        if not sizes["batch"]:
            raise ValueError("`rewards` is empty; pass the rewards of at least one group.")
        if self.group_size < 1 or sizes["batch"] % self.group_size:
            raise ValueError(
                f"`rewards` has batch={sizes['batch']}, which `group_size`={self.group_size} does not divide; pass "
                "whole groups, the completions of one prompt next to each other."
            )
        if self.component_weights is not None and len(self.component_weights) != sizes.get("component", 0):
            raise ValueError(
                f"`component_weights` is {self.component_weights}, but `components` has {sizes.get('component', 0)} "
                "rewards; pass one weight for each."
            )
        for name in ("rewards", "components"):
            values = getattr(self, name)
            if values is None:
                continue
            if not torch.isfinite(values).all():
                raise ValueError(f"`{name}` has values that are not finite; pass a finite number for each completion.")
            object.__setattr__(self, name, values if values.is_floating_point() else values.float())

    @property
    def groups(self) -> Grouped:
        """Rewards as `prompt group`, in float64, the precision of all estimators; equal where rounding differs only."""
        return without_rounding(self.grouped(self.rewards), self.rewards.dtype)

    def grouped(self, values: PerCompletion) -> Grouped:
        """Return per-completion values as `prompt group`, in float64."""
        return rearrange(values.double(), "(prompt group) -> prompt group", group=self.group_size)

    def rounded(self, advantages: Tensor) -> Tensor:
        """Return advantages in the precision of the rewards, clamped to its finite range."""
        limits = torch.finfo(self.rewards.dtype)
        # Clamp in float64, because a narrower precision cannot represent the limits of a wider one.
        return advantages.double().clamp(limits.min, limits.max).to(self.rewards.dtype)

    def required(self, name: str, reader: object) -> Tensor:
        """Return the field of this name, for an estimator that requires it.

        Raises:
            ValueError: the field is None.
        """
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"`{name}` is None, but {type(reader).__name__} reads it; {_REMEDIES[name]}.")
        return value


class AdvantageEstimator(ABC):
    """Turns the rewards of a rollout into advantages, which are finite for all finite float32 rewards.

    Subclass requirements:

    - Implement `__call__`. It sees the rollout of all ranks and returns finite advantages, detached, one per completion
      or one per token. Compute in float64, and end with `rollout.rounded`.
    - Return the same advantages for the same `rollout` on every rank. Take randomness from `rollout.seed` only.
    - Derive from `GroupAdvantage` instead if only completions of one prompt are compared.

    `aggregate_po.testing.check_advantage` checks these requirements.
    """

    @abstractmethod
    def __call__(self, rollout: GroupedRewards) -> PerCompletion | PerToken:
        """Return advantages in the precision of the rewards.

        Args:
            rollout: Rewards of the rollout.

        Returns:
            Advantages of shape `batch`; or per-token advantages of shape `batch time`, up to the longest length.

        Raises:
            ValueError: the estimator needs a field that is missing, or a reward is outside its range.
        """


class GroupAdvantage(AdvantageEstimator):
    """Compares the completions of one prompt with each other; rewards of other prompts have no effect.

    A subclass implements `within_groups`.
    """

    @abstractmethod
    def within_groups(self, rollout: GroupedRewards) -> Grouped:
        """Return the advantages of each group, from `rollout.groups`; shape `prompt group`, float64."""

    @override
    def __call__(self, rollout: GroupedRewards) -> PerCompletion:
        advantages = self.within_groups(rollout)
        require_shape(self, "within_groups", advantages, "`prompt group`", rollout.groups.shape)
        return rollout.rounded(rearrange(advantages, "prompt group -> (prompt group)"))


def equal_up_to_rounding(groups: Grouped, dtype: torch.dtype = torch.float64) -> Tensor:
    """Return True for groups whose values are equal, or differ by the rounding errors of a sum; shape `prompt`.

    The difference may be $10^{-12}$ of the largest magnitude in float64, and $10^{-6}$ of it in float32. In a narrower
    precision, where a rounding error is as large as a real difference, the values must be equal.

    Args:
        groups: values of each group, shape `prompt group`.
        dtype: precision in which the values were computed.

    Example:
        >>> equal_up_to_rounding(torch.tensor([[0.1 + 0.2, 0.3], [1.0, 1.0 + 1e-9]], dtype=torch.float64))
        tensor([ True, False])
    """
    difference = groups.amax(dim=-1).double() - groups.amin(dim=-1).double()
    return difference <= _ROUNDING.get(dtype, 0.0) * groups.abs().amax(dim=-1).double()


def without_rounding(groups: Grouped, dtype: torch.dtype) -> Grouped:
    """Return the values with those of a group replaced by the first one where they differ by rounding only."""
    equal = rearrange(equal_up_to_rounding(groups, dtype), "prompt -> prompt 1")
    return torch.where(equal, groups[:, :1], groups)


def centered(groups: Grouped) -> Grouped:
    """Subtract the mean of each group; exactly 0 for equal rewards, whatever the mean rounds to."""
    all_equal = groups.amax(dim=-1, keepdim=True) == groups.amin(dim=-1, keepdim=True)
    unit = power_of_two(groups)
    return torch.where(all_equal, 0, groups - (groups / unit).mean(dim=-1, keepdim=True) * unit)


def spread(groups: Grouped, ddof: int = 1) -> Tensor:
    """Return the standard deviation of each group, 0 for a group of one; shape `(prompt, 1)`."""
    unit = power_of_two(groups)
    return unit * (groups / unit).std(dim=-1, keepdim=True, correction=ddof if groups.shape[-1] > 1 else 0)


def power_of_two(values: Tensor) -> Tensor:
    """Return a unit for rows whose squares or sums would overflow float64, without rounding; 1 for all others."""
    huge = values.abs().amax(dim=-1, keepdim=True) > 2.0**400
    return torch.where(huge, values.new_tensor(2.0**600), values.new_tensor(1.0))


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """Return the quotient, and 0 for a numerator of 0; equal rewards would give 0/0."""
    return torch.where(numerator == 0, 0, numerator / denominator)
