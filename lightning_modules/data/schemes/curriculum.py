"""Curriculum, which samples the prompts that the policy sometimes solves."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any

from typing_extensions import override

from aggregate_po.arguments import require_finite
from lightning_modules.data.groups import Groups, GroupSampler
from lightning_modules.data.schemes.base import CandidateContext, SamplingScheme, Stage
from lightning_modules.data.schemes.history import PromptHistory
from lightning_modules.prompts import Candidate, CandidateStage
from lightning_modules.seeding import uniform_number
from lightning_modules.validation import require_fraction

_PASSES = 4  # over the data set without enough prompts; then all are taken


@dataclass(eq=False)
class Curriculum(SamplingScheme):
    """Skips prompts whose running pass rate is outside a band, before anything is sampled for them.

    The pass rate of a prompt is an exponential average of the mean reward of its groups, for rewards from 0 to 1. A
    prompt that has not been sampled yet is taken, and so is a share of the others, at random, since the policy changes.
    A rollout has as many prompts as without a curriculum, later ones of the order in place of skipped ones; if four
    passes over the data set have not enough of them, the next prompts are taken whatever their rate.

    The scheme logs `prompts/skipped`, `curriculum/known`, the number of prompts with a pass rate,
    `curriculum/in_band`, the fraction of these whose rate is in the band, and `curriculum/pass_rate`, their mean.

    Args:
        low: Lowest mean reward of the band.
        high: Highest mean reward of the band.
        exploration: Fraction of the prompts outside the band that are sampled nevertheless.
        momentum: Weight of the past in the running pass rate, from 0 to below 1.

    Raises:
        ValueError: an argument is out of its range.
    """

    low: float = 0.05
    high: float = 0.95
    exploration: float = 0.1
    momentum: float = 0.5

    def __post_init__(self) -> None:
        require_finite(low=self.low, high=self.high)
        if self.low > self.high:
            raise ValueError(f"`low` is {self.low} and `high` is {self.high}; pass a band, with the lower one first.")
        require_fraction(exploration=self.exploration)
        require_fraction(below=1.0, momentum=self.momentum)
        self._rates = PromptHistory(self.momentum)

    @override
    def candidates(self, count: int, below: CandidateStage, context: CandidateContext) -> Sequence[Candidate]:
        chosen: list[Candidate] = []
        examined = 0
        while len(chosen) < count:
            batch = below(count - len(chosen))
            chosen += [one for one in batch if examined > _PASSES * context.size or self._takes(one, context.seed)]
            examined += len(batch)
        return chosen[:count]

    def _takes(self, candidate: Candidate, seed: int) -> bool:
        rate = self._rates.average(candidate.index)
        in_band = rate is None or self.low <= rate <= self.high
        return in_band or uniform_number(seed, candidate.position) < self.exploration

    @override
    def groups(self, count: int, below: Stage, rollout: GroupSampler) -> Groups:
        groups = below(count)
        self._rates.add(groups, groups.by_prompt.mean(dim=-1), rollout)
        in_band = sum(self.low <= rate <= self.high for rate in self._rates)
        metrics = {
            "prompts/skipped": rollout.skipped,
            "curriculum/known": len(self._rates),
            "curriculum/in_band": in_band / max(len(self._rates), 1),
            "curriculum/pass_rate": self._rates.mean,
        }
        return replace(groups, metrics={**groups.metrics, **metrics})

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._rates.state_dict()

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._rates.load_state_dict(state)
