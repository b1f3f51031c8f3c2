"""The context that an advantage estimator sees, and the interface of estimators."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass
from typing import Annotated

import torch
from einops import rearrange
from torch import Tensor

from aggregate_po.batch import PerCompletion, PerToken
from aggregate_po.shapes import bind_shapes, require_shape

Grouped = Annotated[Tensor, "prompt group"]

_REMEDIES = {
    "lengths": "pass the tokens of each completion, `GroupedRewards(..., lengths=...)`",
    "components": "pass the single rewards, `GroupedRewards(..., components=...)`, shape `batch component`",
}


@dataclass(frozen=True)
class GroupedRewards:
    """The rewards of a whole rollout, over all ranks, and what else an estimator may need to know of it.

    An estimator is called once for the rollout of all ranks. Statistics of one rank's completions alone would make the
    gradient depend on how the rollout is divided.

    Args:
        rewards: one per completion, the completions of one prompt next to each other; shape `batch`.
        group_size: completions per prompt.
        lengths: tokens of each completion, trained or not; shape `batch`.
        components: the single rewards, where `rewards` is the weighted sum of several; shape `batch component`.
        component_weights: weights of that sum; 1 for each when None.
        seed: for estimators that draw at random; the same on every rank.

    Whole numbers become floating-point numbers.

    Raises:
        TypeError: rewards, lengths or components are not a tensor.
        ValueError: the rewards are none, not finite or do not divide into groups, or shapes disagree.
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
        """The rewards as `prompt group`, in float64, in which all estimators compute."""
        return self.grouped(self.rewards)

    def grouped(self, values: PerCompletion) -> Grouped:
        """Any numbers of the completions as `prompt group`, in float64."""
        return rearrange(values.double(), "(prompt group) -> prompt group", group=self.group_size)

    def rounded(self, advantages: Tensor) -> Tensor:
        """Advantages in the precision of the rewards, inside its finite range; the shape stays as it is."""
        limits = torch.finfo(self.rewards.dtype)
        # In float64, because the limits of a wider precision are no numbers of a narrower one.
        return advantages.double().clamp(limits.min, limits.max).to(self.rewards.dtype)

    def required(self, name: str, reader: object) -> Tensor:
        """The field of this name, for an estimator that cannot do without it.

        Raises:
            ValueError: the field is None.
        """
        value = getattr(self, name)
        if value is None:
            raise ValueError(f"`{name}` is None, but {type(reader).__name__} reads it; {_REMEDIES[name]}.")
        return value


class AdvantageEstimator(ABC):
    """Turns the rewards of a rollout into advantages, finite for all rewards that float32 can express.

    Subclass requirements:

    - Implement `__call__`. It sees the rollout of all ranks and returns finite advantages, detached, one per completion
      or one per token. Compute in float64, and end with `step.rounded`.
    - Return the same advantages for the same `step` on every rank. Take randomness from `step.seed` only.
    - Derive from `GroupAdvantage` instead if only completions of one prompt are compared.

    `aggregate_po.testing.check_advantage` checks these requirements.
    """

    @abstractmethod
    def __call__(self, step: GroupedRewards) -> PerCompletion | PerToken:
        """Advantages, in the precision of the rewards.

        Args:
            step: rewards of the rollout.

        Returns:
            Shape `batch`; or `batch time`, `time` being the longest length, where each token has its own.

        Raises:
            ValueError: a field is missing that this estimator reads, or rewards are outside its range.
        """


class GroupAdvantage(AdvantageEstimator):
    """Compares the completions of one prompt with each other; the rewards of other prompts make no difference."""

    @abstractmethod
    def within_groups(self, step: GroupedRewards) -> Grouped:
        """Advantages of each group, from `step.groups`; shape `prompt group`, float64."""

    def __call__(self, step: GroupedRewards) -> PerCompletion:
        """See `AdvantageEstimator`."""
        advantages = self.within_groups(step)
        require_shape(self, "within_groups", advantages, "`prompt group`", step.groups.shape)
        return step.rounded(rearrange(advantages, "prompt group -> (prompt group)"))


def centered(groups: Grouped) -> Grouped:
    """Less the mean; exactly 0 where all rewards are equal, whatever the mean rounds to."""
    all_equal = groups.amax(dim=-1, keepdim=True) == groups.amin(dim=-1, keepdim=True)
    return torch.where(all_equal, 0, groups - groups.mean(dim=-1, keepdim=True))


def spread(groups: Grouped, ddof: int = 1) -> Tensor:
    """Standard deviation of each group, 0 for a group of one; shape `(prompt, 1)`."""
    return groups.std(dim=-1, keepdim=True, correction=ddof if groups.shape[-1] > 1 else 0)


def ratio(numerator: Tensor, denominator: Tensor) -> Tensor:
    """The quotient, and 0 where the numerator is: equal rewards would give 0/0."""
    return torch.where(numerator == 0, 0, numerator / denominator)


def require_non_negative(**numbers: float) -> None:
    """Check arguments of an estimator.

    Raises:
        ValueError: a number is negative.
    """
    for name, number in numbers.items():
        if not number >= 0:
            raise ValueError(f"`{name}` is {number}; pass 0 or more.")
