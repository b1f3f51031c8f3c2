"""The sampling schemes of a run, wrapped around each other."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from functools import partial

from lightning_modules.data.groups import Groups, GroupSampler
from lightning_modules.data.schemes.base import Advantages, CandidateContext, SamplingScheme, Stage
from lightning_modules.prompts import (
    Candidate,
    CandidateStage,
    Example,
    Prompt,
    PromptDataset,
    PromptOrder,
    PromptStream,
)
from lightning_modules.seeding import derived_seed
from lightning_modules.tally import Tally

_CHOICES = 0x5C4E3E  # keeps the seeds of choices apart from those of sampling


class SchemeStack:
    """Applies the sampling schemes of a run; the first one is innermost.

    Args:
        schemes: sampling schemes.
        seed: seed of the run.
    """

    def __init__(self, schemes: Sequence[SamplingScheme], seed: int) -> None:
        self.schemes, self._seed = tuple(schemes), seed
        self._seeds = [derived_seed(seed, _CHOICES, number) for number in range(len(self.schemes))]
        self._first_states = [scheme.state_dict() for scheme in self.schemes]

    def reset(self) -> None:
        """Let all schemes forget an earlier run."""
        for scheme, state in zip(self.schemes, self._first_states, strict=True):
            scheme.load_state_dict(state)

    @property
    def stages(self) -> dict[str, SamplingScheme]:
        """The schemes by the names under which checkpoints have their state."""
        return {f"scheme_{number}": scheme for number, scheme in enumerate(self.schemes)}

    def first_sizes(self, count: int, group_size: int) -> tuple[int, int]:
        """Return number and size of the groups that the first call of the innermost stage requests."""
        for scheme in reversed(self.schemes):
            count, group_size = scheme.first_count(count), scheme.first_group_size(group_size)
        return count, group_size

    def stream(
        self,
        dataset: PromptDataset | Sequence[Example],
        prompt_of: Callable[[Example, str], Prompt],
        rank: int,
        ranks: int,
        updates: int,
    ) -> PromptStream:
        """Return the stream of the prompts of a rank that the schemes choose.

        Args:
            dataset: examples of the data set.
            prompt_of: tokenizes the prompt of an example, given the example and its place for error messages.
            rank: data-parallel rank.
            ranks: number of data-parallel ranks.
            updates: number of updates of a rollout.
        """

        def choose(count: int, below: CandidateStage) -> Sequence[Candidate]:
            return self.candidates(count, below, multiple=ranks * updates, size=len(stream.order))

        stream = PromptStream(dataset, PromptOrder(len(dataset), self._seed), prompt_of, rank, ranks, choose)
        return stream

    def candidates(self, count: int, below: CandidateStage, multiple: int, size: int) -> Sequence[Candidate]:
        """Return the prompts of all ranks to sample next; `multiple` and `size` are those of `CandidateContext`."""
        for scheme, seed in zip(self.schemes, self._seeds, strict=True):
            below = partial(scheme.candidates, below=below, context=CandidateContext(multiple, size, seed))
        return below(count)

    def groups(self, rollout: GroupSampler, count: int) -> Groups:
        """Return the groups of a rollout on this rank.

        Raises:
            ValueError: the number of groups differs between ranks, or is not a multiple of the number of updates.
        """
        stage: Stage = rollout
        for scheme in self.schemes:
            stage = partial(scheme.groups, below=stage, rollout=rollout)
        groups = stage(count)
        if self.schemes:
            self._check_number(len(groups), rollout)
        return groups

    def weighted(self, advantages: Advantages, groups: Groups, *place: int) -> Advantages:
        """Return the advantages, multiplied by the weights of the groups and reweighted by all schemes.

        Args:
            advantages: advantages of the completions of this rank; shape `batch` or `batch time`.
            groups: groups of this rank.
            place: numbers of the rollout and of the rank.
        """
        weights = groups.weights.repeat_interleave(groups.group_size)
        advantages = advantages * (weights if advantages.ndim == 1 else weights.unsqueeze(-1))
        for scheme, seed in zip(self.schemes, self._seeds, strict=True):
            advantages = scheme.weighted(advantages, groups, derived_seed(seed, *place))
        return advantages

    def _check_number(self, number: int, rollout: GroupSampler) -> None:
        reduced = rollout.over_ranks(Tally(minima={"groups": number}, maxima={"groups": number}))
        minimum, maximum = int(reduced.minima["groups"]), int(reduced.maxima["groups"])
        if minimum != maximum or number % rollout.updates or not number:
            found = f"{number} groups" if minimum == maximum else f"from {minimum} to {maximum} groups, by rank"
            raise ValueError(
                f"`schemes` {self.schemes!r} gave {found}; return the same number on each rank, a positive multiple of "
                f"the {rollout.updates} updates of a rollout."
            )
