"""The interface of a sampling scheme."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from aggregate_po import PerCompletion, PerToken
from lightning_modules.data.groups import Groups, GroupSampler
from lightning_modules.tally import Tally

Stage = Callable[[int], Groups]  # so many scored groups of this rank
Advantages = PerCompletion | PerToken


class SamplingScheme(ABC):
    """Decides which scored groups make up a rollout; it wraps a stage that gives groups, and is such a stage itself.

    Subclass requirements:

    - Implement `groups`. It calls the stage below as often as it likes, and keeps, drops or weights what that returns.
      All data-parallel ranks run the same code, each on its own groups, and must make the same calls: decide by numbers
      that `rollout.over_ranks` has reduced.
    - Override `first_count` if the first call of the stage below asks for another number than `count`.
    - May override `weighted` to weight completions after their advantages are known.
    - Override `state_dict` and `load_state_dict` if the scheme remembers anything between rollouts. Within a rollout
      nothing is saved, because a resumed run repeats the rollout.

    `DynamicSampling` is an example of 40 lines.
    """

    @abstractmethod
    def groups(self, count: int, below: Stage, rollout: GroupSampler) -> Groups:
        """Return this rank's groups of a rollout, as many on each rank.

        Args:
            count: groups that are wanted; a different number makes the rollout smaller or larger, which its totals
                follow. It must be a multiple of `rollout.updates`.
            below: samples and scores groups of the next prompts.
            rollout: completes other prompts (`complete`), knows the group size and reduces counts over the ranks.
        """

    def first_count(self, count: int) -> int:
        """Return the groups that the first call of the stage below asks for, which may be sampled ahead."""
        return count

    def weighted(self, advantages: Advantages, groups: Groups) -> Advantages:
        """Return the advantages with a weight on each, such as one over the probability of having been kept.

        Args:
            advantages: estimated on all groups that `groups` returned; shape `batch` or `batch time`.
            groups: of this rank.
        """
        return advantages

    def state_dict(self) -> dict[str, Any]:
        """Return what the scheme remembers; tensors, numbers and texts only."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027, most schemes remember nothing
        """Restore what `state_dict` returned."""


def first_count(schemes: Sequence[SamplingScheme], count: int) -> int:
    """Return the groups that the first call of the innermost stage asks for."""
    for scheme in reversed(schemes):
        count = scheme.first_count(count)
    return count


def groups_of_rollout(schemes: Sequence[SamplingScheme], rollout: GroupSampler, count: int) -> Groups:
    """Return this rank's groups of a rollout, with the schemes applied, the first one innermost.

    Raises:
        ValueError: the schemes gave another number of groups on this rank than on others, or one that does not divide
            into updates.
    """
    stage: Stage = rollout
    for scheme in schemes:
        stage = partial(scheme.groups, below=stage, rollout=rollout)
    groups = stage(count)
    if schemes:
        _check_number(len(groups), rollout, schemes)
    return groups


def _check_number(number: int, rollout: GroupSampler, schemes: Sequence[SamplingScheme]) -> None:
    everywhere = rollout.over_ranks(Tally(minima={"groups": number}, maxima={"groups": number}))
    fewest, most = int(everywhere.minima["groups"]), int(everywhere.maxima["groups"])
    if fewest != most or number % rollout.updates or not number:
        found = f"{number} groups" if fewest == most else f"from {fewest} to {most} groups, by rank"
        raise ValueError(
            f"`schemes` {schemes!r} gave {found}; return the same number on each rank, a positive multiple of the "
            f"{rollout.updates} updates of a rollout."
        )


def weighted(schemes: Sequence[SamplingScheme], advantages: Advantages, groups: Groups) -> Advantages:
    """Return the advantages with the weights of all schemes on them."""
    for scheme in schemes:
        advantages = scheme.weighted(advantages, groups)
    return advantages
