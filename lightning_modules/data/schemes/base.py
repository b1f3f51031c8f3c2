"""Base class of sampling schemes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from functools import partial
from typing import Any

from aggregate_po import PerCompletion, PerToken
from lightning_modules.data.groups import Groups, GroupSampler
from lightning_modules.tally import Tally

Stage = Callable[[int], Groups]  # returns this number of scored groups of this rank
Advantages = PerCompletion | PerToken


class SamplingScheme(ABC):
    """Base class of sampling schemes: a scheme selects the scored groups of a rollout from those of the stage below.

    Subclass requirements:

    - Implement `groups`. It calls the stage below as often as it likes, and keeps, drops or weights what that returns.
      All data-parallel ranks run the same code, each on its own groups, and must make the same calls: decide by numbers
      that `rollout.over_ranks` has reduced.
    - Override `first_count` if the first call of the stage below asks for another number than `count`, and
      `first_group_size` if it asks for groups of another size.
    - May override `weighted` to weight completions after their advantages are known.
    - Override `state_dict` and `load_state_dict` if the scheme remembers anything between rollouts. Within a rollout
      nothing is saved, because a resumed run repeats the rollout.

    `DynamicSampling` is an example of 40 lines.
    """

    @abstractmethod
    def groups(self, count: int, below: Stage, rollout: GroupSampler) -> Groups:
        """Return the groups of a rollout on this rank; all ranks must return the same number.

        Args:
            count: number of groups to return. Another number makes the rollout smaller or larger, and is taken into
                account in its totals; it must be a multiple of `rollout.updates`.
            below: stage below, which samples and scores groups of the next prompts.
            rollout: group sampler of the rollout; it samples groups of other prompts (`complete`) or of another size
                (`sized`), has a random `generator`, and reduces counts over ranks.
        """

    def first_count(self, count: int) -> int:
        """Return the number of groups that the first call of the stage below requests; they may be sampled ahead."""
        return count

    def first_group_size(self, group_size: int) -> int:
        """Return the size of the groups that the first call of the stage below samples."""
        return group_size

    def weighted(self, advantages: Advantages, groups: Groups) -> Advantages:
        """Return reweighted advantages, for example by the inverse probability that a group is kept.

        Args:
            advantages: advantages, estimated from the groups that `groups` returned; shape `batch` or `batch time`.
            groups: groups of this rank.
        """
        return advantages

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scheme, as tensors, numbers and strings only."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027, most schemes have no state
        """Restore what `state_dict` returned."""


def first_count(schemes: Sequence[SamplingScheme], count: int) -> int:
    """Return the number of groups that the first call of the innermost stage requests."""
    for scheme in reversed(schemes):
        count = scheme.first_count(count)
    return count


def first_group_size(schemes: Sequence[SamplingScheme], group_size: int) -> int:
    """Return the size of the groups that the first call of the innermost stage samples."""
    for scheme in reversed(schemes):
        group_size = scheme.first_group_size(group_size)
    return group_size


def groups_of_rollout(schemes: Sequence[SamplingScheme], rollout: GroupSampler, count: int) -> Groups:
    """Return the groups of a rollout on this rank, with the schemes applied; the first scheme is innermost.

    Raises:
        ValueError: the number of groups differs between ranks, or is not a multiple of the number of updates.
    """
    stage: Stage = rollout
    for scheme in schemes:
        stage = partial(scheme.groups, below=stage, rollout=rollout)
    groups = stage(count)
    if schemes:
        _check_number(len(groups), rollout, schemes)
    return groups


def _check_number(number: int, rollout: GroupSampler, schemes: Sequence[SamplingScheme]) -> None:
    reduced = rollout.over_ranks(Tally(minima={"groups": number}, maxima={"groups": number}))
    minimum, maximum = int(reduced.minima["groups"]), int(reduced.maxima["groups"])
    if minimum != maximum or number % rollout.updates or not number:
        found = f"{number} groups" if minimum == maximum else f"from {minimum} to {maximum} groups, by rank"
        raise ValueError(
            f"`schemes` {schemes!r} gave {found}; return the same number on each rank, a positive multiple of the "
            f"{rollout.updates} updates of a rollout."
        )


def weighted(schemes: Sequence[SamplingScheme], advantages: Advantages, groups: Groups) -> Advantages:
    """Return the advantages, reweighted by all schemes."""
    for scheme in schemes:
        advantages = scheme.weighted(advantages, groups)
    return advantages
