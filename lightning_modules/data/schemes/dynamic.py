"""Dynamic sampling, which replaces groups whose rewards are all equal."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal, get_args

from typing_extensions import override

from lightning_modules.data.groups import Groups, GroupSampler
from lightning_modules.data.schemes.base import SamplingScheme, Stage
from lightning_modules.data.schemes.totals import total
from lightning_modules.tally import Tally

BoundRule = Literal["error", "smaller"]


@dataclass(frozen=True)
class DynamicSampling(SamplingScheme):
    """Samples further prompts until a rollout has enough groups with signal, those whose rewards are not all equal.

    In each round every rank samples the number of prompts that the rank with the most missing groups needs, so that
    in-process engines stay synchronized. Surplus groups are dropped. The scheme logs `groups/sampled`, `groups/kept`,
    `groups/without_signal`, `groups/surplus` (dropped groups with signal), `groups/rounds`, and `groups/reward`, the
    mean reward of the completions in all rounds; `reward` is the mean over the groups that are kept. Around `Replay`
    its rounds have replayed groups, too.

    Args:
        max_rounds: Maximum number of sampling rounds of a rollout, the first one included.
        oversampling: Number of prompts that a round samples per missing group.
        at_bound: Behavior when groups are missing after the last round: "error" stops the run, and "smaller" makes a
            smaller rollout. It then has as many groups on each rank as the rank with the fewest, and at least one
            group per update, even if that has no signal.

    Raises:
        ValueError: an argument is out of its range.
        RuntimeError: by `groups`, if groups are missing and `at_bound` is "error".

    Reference: DAPO, arXiv:2503.14476, section 3.2.
    """

    max_rounds: int = 10
    oversampling: float = 1.0
    at_bound: BoundRule = "error"

    def __post_init__(self) -> None:
        if self.max_rounds < 1:
            raise ValueError(f"`max_rounds` is {self.max_rounds}; pass 1 or more.")
        if not 1 <= self.oversampling < math.inf:
            raise ValueError(f"`oversampling` is {self.oversampling}; pass 1, or a larger number of prompts per group.")
        if self.at_bound not in get_args(BoundRule):
            raise ValueError(f"`at_bound` is {self.at_bound!r}; pass one of {', '.join(get_args(BoundRule))}.")

    @override
    def first_count(self, count: int) -> int:
        return math.ceil(count * self.oversampling)

    @override
    def groups(self, count: int, below: Stage, rollout: GroupSampler) -> Groups:
        rounds: list[Groups] = []
        missing, kept = count, 0
        while missing and len(rounds) < self.max_rounds:
            rounds.append(below(self.first_count(missing)))
            kept += int(rounds[-1].have_signal.sum())
            missing = int(rollout.over_ranks(Tally(maxima={"missing": max(count - kept, 0)})).maxima["missing"])
        size = self._size_at_bound(count, kept, rollout) if missing else count
        sampled = Groups.joined(rounds)
        # Groups with signal come first; the order of prompts is kept otherwise.
        chosen = (~sampled.have_signal).long().argsort(stable=True)[:size]
        memory = rollout.memory_of(self)
        memory["rounds"] = memory.get("rounds", 0) + len(rounds)
        metrics = _metrics(total(self, _counted(sampled, len(chosen)), rollout), memory["rounds"])
        return sampled.select(chosen, {**sampled.metrics, **metrics})

    def _size_at_bound(self, count: int, kept: int, rollout: GroupSampler) -> int:
        """Return the number of groups per rank when some are missing after the last round."""
        fewest = int(rollout.over_ranks(Tally(minima={"kept": kept})).minima["kept"])
        if self.at_bound == "error":
            raise RuntimeError(
                f"after `max_rounds`={self.max_rounds} rounds of sampling a rank has {fewest} of the {count} groups "
                "with rewards that are not all equal; use prompts that the policy sometimes solves, raise `max_rounds` "
                "or `oversampling`, or pass at_bound='smaller'."
            )
        return max(fewest // rollout.updates, 1) * rollout.updates


def _counted(sampled: Groups, size: int) -> Tally:
    """Return the counts of the groups sampled on this rank, of which `size` are kept."""
    with_signal = int(sampled.have_signal.sum())
    return Tally(
        sums={
            "groups/sampled": len(sampled),
            "groups/kept": size,
            "groups/without_signal": len(sampled) - with_signal,
            "groups/surplus": max(with_signal - size, 0),
            "completions": int(sampled.scored.sum()),
            "reward": float(sampled.rewards[sampled.scored].double().sum()),
        }
    )


def _metrics(counted: Tally, rounds: int) -> dict[str, float]:
    counts = dict(counted.sums)
    reward = counts.pop("reward") / max(counts.pop("completions"), 1)
    return {**counts, "groups/reward": reward, "groups/rounds": rounds}
