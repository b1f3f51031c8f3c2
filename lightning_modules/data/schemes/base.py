"""Base class of sampling schemes."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from aggregate_po import PerCompletion, PerToken
from lightning_modules.data.groups import Groups, GroupSampler
from lightning_modules.prompts import Candidate, CandidateStage

Stage = Callable[[int], Groups]  # returns this number of scored groups of this rank
Advantages = PerCompletion | PerToken


@dataclass(frozen=True)
class CandidateContext:
    """Numbers and the seed of a choice of prompts.

    Args:
        multiple: number that a rollout's number of prompts, over all ranks, must be a multiple of.
        size: number of prompts of the data set.
        seed: seed of the scheme's choices; that of the run and of the scheme's place among the schemes. A choice at
            random has a seed derived from this one and from the position of the candidate, so that it is made again
            alike.
    """

    multiple: int
    size: int
    seed: int


class SamplingScheme(ABC):
    """Base class of sampling schemes: a scheme selects the scored groups of a rollout from those of the stage below.

    Subclass requirements:

    - Implement `groups`. It calls the stage below as often as it likes, and keeps, drops or weights what that returns.
      All data-parallel ranks run the same code, each on its own groups, and must make the same calls: decide by numbers
      that `rollout.over_ranks` has reduced.
    - Override `first_count` if the first call of the stage below asks for another number than `count`, and
      `first_group_size` if it asks for groups of another size.
    - May override `candidates` to skip prompts before anything is sampled for them.
    - May override `weighted` to weight completions after their advantages are known. Completions whose advantages
      become 0 are left out of the forward pass, unless the objective has penalties, and still count in its totals.
    - Override `gives_weights` if the scheme gives weights in some of its settings only, or to candidates: a group
      objective has no definition for weights, so a run with one ends before anything is sampled.
    - Override `gives_old_groups` if the scheme returns groups of earlier rollouts.
    - Override `reads_texts` if the scheme reads the texts of completions, which samples of flow-matching models lack.
    - Override `state_dict` and `load_state_dict` if the scheme remembers anything between rollouts. Within a rollout
      nothing is saved, because a resumed run repeats the rollout; `rollout.memory_of` keeps what its calls share.

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

    def candidates(self, count: int, below: CandidateStage, context: CandidateContext) -> Sequence[Candidate]:
        """Return the prompts of all ranks to sample next; all of them unless a subclass skips some.

        It runs on every rank, must return the same there, and returns the same when it is called again with the same
        state. So it sees prompts by their index alone, and what it knows of them comes from all ranks.

        Args:
            count: number of prompts that the ranks together ask for. Fewer make the rollout smaller: the number must be
                a multiple of the number of ranks, and that of a full rollout of `context.multiple`.
            below: stage below, which returns the next candidates.
            context: numbers and the seed of the choice.
        """
        return below(count)

    def weighted(self, advantages: Advantages, groups: Groups, seed: int) -> Advantages:
        """Return reweighted advantages, for example by the inverse probability that a completion is kept.

        Args:
            advantages: advantages, estimated from the groups that `groups` returned and multiplied by their weights;
                shape `batch` or `batch time`.
            groups: groups of this rank.
            seed: seed of random choices; different for each rollout, rank and scheme.
        """
        return advantages

    @property
    def gives_weights(self) -> bool:
        """Whether `candidates` or `weighted` may give weights; unless overridden, whether `weighted` is."""
        return type(self).weighted is not SamplingScheme.weighted

    @property
    def gives_old_groups(self) -> bool:
        """Whether some groups may be those of earlier rollouts; False unless a subclass says so."""
        return False

    @property
    def reads_texts(self) -> bool:
        """Whether the scheme makes prompts of the texts of completions; False unless a subclass says so."""
        return False

    def state_dict(self) -> dict[str, Any]:
        """Return the state of the scheme, as tensors, numbers and strings only."""
        return {}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:  # noqa: B027, most schemes have no state
        """Restore what `state_dict` returned."""
