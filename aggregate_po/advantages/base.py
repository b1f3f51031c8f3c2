"""Interface of advantage estimators, and the context that an estimator receives."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Iterator
from dataclasses import dataclass, replace
from typing import Any

import torch
from einops import rearrange
from torch import Tensor
from typing_extensions import override

from aggregate_po.advantages.rounding import Grouped, without_rounding
from aggregate_po.advantages.scored import filled, with_company, within_lengths
from aggregate_po.batch import PerCompletion, PerToken
from aggregate_po.shapes import bind_shapes, require_shape

_REMEDIES = {
    "lengths": "pass the tokens of each completion, `GroupedRewards(..., lengths=...)`",
    "components": "pass the single rewards, `GroupedRewards(..., components=...)`, shape `batch component`",
    "step_rewards": "pass a reward for each step, `GroupedRewards(..., step_rewards=...)`, shape `batch time`",
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
        scored: False for completions without a reward, such as one whose reward function was killed; shape `batch`;
            None means that all have one.
        step_rewards: Reward of each step, such as a denoising step, arbitrary beyond `lengths`; shape `batch time`.

    A completion without a reward is out of its group: it has advantage 0, and the advantages of the others are those of
    a smaller group. So are all completions of a group in which fewer than two have a reward, if one has none. Their
    rewards and components, whatever is passed, become the mean of the others in the group, or in the rollout if the
    group has no others.

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
    scored: PerCompletion | None = None
    step_rewards: PerToken | None = None

    def __post_init__(self) -> None:
        self._check_shapes()
        if self.scored is not None:
            object.__setattr__(self, "scored", with_company(self.scored.bool(), self.group_size))
        for name in ("rewards", "components", "step_rewards"):
            values = getattr(self, name)
            if values is None:
                continue
            values = values if values.is_floating_point() else values.float()
            if name == "step_rewards" and self.lengths is not None:
                values = within_lengths(values, self.lengths)
            if self.scored is not None:
                values = filled(values, self.scored, self.group_size)
            if not torch.isfinite(values).all():
                raise ValueError(f"`{name}` has values that are not finite; pass a finite number for each completion.")
            object.__setattr__(self, name, values)

    def _check_shapes(self) -> None:
        if isinstance(self.rewards, Tensor) and self.rewards.ndim != 1:
            raise ValueError(
                f"`rewards` has shape {tuple(self.rewards.shape)}; pass one reward per completion, shape `batch`."
            )
        optional = {
            "lengths": (self.lengths, "batch"),
            "components": (self.components, "batch component"),
            "scored": (self.scored, "batch"),
            "step_rewards": (self.step_rewards, "batch time"),
        }
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

    @property
    def groups(self) -> Grouped:
        """Rewards as `prompt group`, in float64, the precision of all estimators; equal where rounding differs only."""
        return without_rounding(self.grouped(self.rewards), self.rewards.dtype)

    def grouped(self, values: PerCompletion) -> Grouped:
        """Return per-completion values as `prompt group`, in float64."""
        return rearrange(values.double(), "(prompt group) -> prompt group", group=self.group_size)

    def by_groups(self, function: Callable[[GroupedRewards], Grouped]) -> PerCompletion:
        """Return a value for each completion that depends on the rewards of its group alone; shape `batch`, float64.

        Args:
            function: returns the values of a rollout in which all completions have a reward; shape `prompt group`. It
                is called once for each number of completions with a reward that groups have. Completions without a
                reward have the value 0.
        """
        if self.scored is None:
            return rearrange(function(self), "prompt group -> (prompt group)")
        values = self.rewards.new_zeros(self.rewards.shape, dtype=torch.float64)
        for rows, part in self._complete_parts(self.scored):
            values[rows] = rearrange(function(part), "prompt group -> (prompt group)")
        return values

    def _complete_parts(self, scored: Tensor) -> Iterator[tuple[Tensor, GroupedRewards]]:
        """Yield the groups with the same number of rewards, without other completions, and their rows in the batch."""
        present = rearrange(scored, "(prompt group) -> prompt group", group=self.group_size)
        sizes = present.sum(dim=-1)
        for size in filter(None, sizes.unique().tolist()):
            rows = (present & (sizes == size).unsqueeze(-1)).flatten().nonzero().squeeze(-1)
            fields: dict[str, Any] = {
                name: value[rows] for name, value in vars(self).items() if isinstance(value, Tensor)
            }
            yield rows, replace(self, **{**fields, "group_size": size, "scored": None})

    @property
    def known_rewards(self) -> PerCompletion:
        """Rewards of the completions that have one; those of all completions, which are 0, if none has."""
        return self.rewards if self.scored is None or not self.scored.any() else self.rewards[self.scored]

    def counted(self, counts: PerCompletion) -> PerCompletion:
        """Return counts such as lengths, with 0 for completions without a reward; shape `batch`."""
        return counts if self.scored is None else torch.where(self.scored, counts, 0)

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
    - Return 0 for completions without a reward, where `rollout.scored` is False, and for all others the advantages of a
      rollout without them; `rollout.by_groups` and `rollout.counted` help. RolloutDataModule sets the former to 0 in
      any case. An estimator that does not look at `scored` sees the mean reward of the group in their place.
    - Override `needs_step_rewards` to return True if it reads `rollout.step_rewards`.
    - Derive from `GroupAdvantage` instead if only completions of one prompt are compared.

    `aggregate_po.testing.check_advantage` checks these requirements.
    """

    @property
    def needs_step_rewards(self) -> bool:
        """Whether the reward of each step is read, which only `FlowDataModule` has."""
        return False

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

    A subclass implements `within_groups`, which sees complete groups only: where completions have no reward, it is
    called once for each size of the groups that are left.
    """

    @abstractmethod
    def within_groups(self, rollout: GroupedRewards) -> Grouped:
        """Return the advantages of each group, from `rollout.groups`; shape `prompt group`, float64."""

    @override
    def __call__(self, rollout: GroupedRewards) -> PerCompletion:
        return rollout.rounded(rollout.by_groups(self._checked))

    def _checked(self, rollout: GroupedRewards) -> Grouped:
        advantages = self.within_groups(rollout)
        require_shape(self, "within_groups", advantages, "`prompt group`", rollout.groups.shape)
        return advantages
