"""Dynamic pruning of prompts before they are sampled, and of completions before they are trained on."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import torch
from einops import rearrange
from torch import Tensor
from typing_extensions import override

from aggregate_po.arguments import require_non_negative
from lightning_modules.data.groups import Groups, GroupSampler
from lightning_modules.data.schemes.base import Advantages, CandidateContext, SamplingScheme, Stage
from lightning_modules.data.schemes.history import PromptHistory
from lightning_modules.prompts import Candidate, CandidateStage
from lightning_modules.seeding import derived_seed
from lightning_modules.validation import require_fraction, require_one_of

PruningMethod = Literal["random", "fraction"]

_ROUNDING = 1 - 1e-9  # numbers that are equal to the mean on paper are not below it


@dataclass(eq=False)
class DynamicPruning(SamplingScheme):
    """Prunes prompts of little signal before they are sampled, and completions of small advantage before training.

    A prompt is prunable if the running standard deviation of the rewards in its groups is below the mean over all
    prompts; one that has not been sampled yet is not. A completion is prunable if the magnitude of its advantage is
    below the mean of its group, and not 0; advantages are estimated before. By default prunable ones are dropped at
    random, and those that are kept are multiplied by the inverse of the probability that they are, so that the expected
    gradient is the one without pruning: exactly where an objective is normalized by the number of completions, and up
    to the estimate of the total number of tokens where it is normalized by that and prompts are pruned.

    Pruned prompts save sampling and training, and make the rollout smaller: their number is rounded down so that the
    rest divides among ranks and updates. Pruned completions save training, and only with an objective without
    penalties, which have a gradient on every completion. The scheme logs `prompts/skipped`;
    `completions/trained_ratio` is the fraction of the sampled completions that are trained on.

    Args:
        prompt_rate: Fraction of the prunable prompts that is pruned, from 0 to below 1; the variance of the gradient
            grows quickly above 0.7.
        completion_rate: Probability that a prunable completion is pruned, from 0 to below 1.
        prompt_threshold: Multiple of the mean below which the standard deviation of a prompt makes it prunable.
        completion_threshold: Multiple of the mean below which the advantage of a completion makes it prunable.
        method: Choice among the prunable: "random" with the weights above, or "fraction", which prunes the lowest ones
            without any weights and is biased.
        momentum: Weight of the past in the running standard deviation, from 0 to below 1.

    Raises:
        ValueError: an argument is out of its range.

    Reference: arXiv:2603.04135, whose algorithm prunes a fraction, and whose proof is that of the random choice.
    """

    prompt_rate: float = 0.5
    completion_rate: float = 0.5
    prompt_threshold: float = 1.0
    completion_threshold: float = 1.0
    method: PruningMethod = "random"
    momentum: float = 0.5

    def __post_init__(self) -> None:
        require_fraction(
            below=1.0, prompt_rate=self.prompt_rate, completion_rate=self.completion_rate, momentum=self.momentum
        )
        require_non_negative(prompt_threshold=self.prompt_threshold, completion_threshold=self.completion_threshold)
        require_one_of(PruningMethod, method=self.method)
        self._deviations = PromptHistory(self.momentum)

    # Prompts

    @override
    def candidates(self, count: int, below: CandidateStage, context: CandidateContext) -> Sequence[Candidate]:
        batch = below(count)
        limit = self.prompt_threshold * self._deviations.mean * _ROUNDING
        scores = {one.position: self._deviations.average(one.index) for one in batch}
        prunable = {position: score for position, score in scores.items() if score is not None and score < limit}
        number = int(self.prompt_rate * len(prunable))
        number -= number % math.gcd(len(batch), context.multiple)
        if self.method == "random":
            pruned = sorted(prunable, key=lambda position: derived_seed(context.seed, position))[:number]
            factor = len(prunable) / (len(prunable) - number) if number else 1.0
        else:
            pruned, factor = sorted(prunable, key=lambda position: (prunable[position], position))[:number], 1.0
        kept = (one for one in batch if one.position not in set(pruned))
        return [replace(one, weight=one.weight * factor) if one.position in prunable else one for one in kept]

    @override
    def groups(self, count: int, below: Stage, rollout: GroupSampler) -> Groups:
        groups = below(count)
        self._deviations.add(groups, deviations(groups), rollout)
        return replace(groups, metrics={**groups.metrics, "prompts/skipped": rollout.skipped})

    # Completions

    @override
    def weighted(self, advantages: Advantages, groups: Groups, seed: int) -> Advantages:
        magnitudes = advantages.abs() if advantages.ndim == 1 else advantages.abs().amax(dim=-1)
        magnitudes = rearrange(magnitudes, "(prompt group) -> prompt group", group=groups.group_size)
        counts = _verdicts(groups).sum(dim=-1, keepdim=True).clamp(min=1)
        # Completions without a verdict have an advantage of 0.
        limits = self.completion_threshold * magnitudes.sum(dim=-1, keepdim=True) / counts * _ROUNDING
        prunable = (magnitudes < limits) & (magnitudes > 0)
        if self.method == "random":
            generator = torch.Generator().manual_seed(seed)
            chances = torch.rand(magnitudes.shape, generator=generator, dtype=torch.double)
            factors = random_factors(prunable, chances, self.completion_rate)
        else:
            factors = fraction_factors(prunable, magnitudes, self.completion_rate)
        factors = rearrange(factors, "prompt group -> (prompt group)")
        return advantages * (factors if advantages.ndim == 1 else factors.unsqueeze(-1))

    @property
    @override
    def gives_weights(self) -> bool:
        return self.completion_rate > 0 or (self.prompt_rate > 0 and self.method == "random")

    # State

    @override
    def state_dict(self) -> dict[str, Any]:
        return self._deviations.state_dict()

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._deviations.load_state_dict(state)


def deviations(groups: Groups) -> Tensor:
    """Return the standard deviation of the rewards of each group, NaN for fewer than two verdicts; shape `prompt`."""
    counts = _verdicts(groups).sum(dim=-1)
    # Missing rewards are at the mean of the others, so they add nothing to the sum of squares.
    found = groups.by_prompt.double().std(dim=-1, correction=0) * (groups.group_size / counts.double()).sqrt()
    return torch.where(counts > 1, found, math.nan)


def _verdicts(groups: Groups) -> Tensor:
    return rearrange(groups.scored, "(prompt group) -> prompt group", group=groups.group_size)


def random_factors(prunable: Tensor, chances: Tensor, rate: float) -> Tensor:
    """Return 0 for prunable entries whose chance is below the rate, `1 / (1 - rate)` for the others, 1 elsewhere.

    Args:
        prunable: mask of the prunable entries.
        chances: random numbers from 0 to 1; the shape is that of the mask.
        rate: probability that a prunable entry is pruned.
    """
    return torch.where(prunable, (chances >= rate).double() / (1 - rate), 1.0)


def fraction_factors(prunable: Tensor, magnitudes: Tensor, rate: float) -> Tensor:
    """Return 0 for a fraction of the prunable entries of each row, those of the smallest magnitude, and 1 elsewhere.

    Args:
        prunable: mask of the prunable entries; shape `prompt group`.
        magnitudes: magnitudes of the entries; shape `prompt group`.
        rate: fraction that is pruned, rounded down.
    """
    place = magnitudes.masked_fill(~prunable, math.inf).argsort(dim=-1, stable=True).argsort(dim=-1)
    number = (rate * prunable.sum(dim=-1, keepdim=True)).long()
    return (~(prunable & (place < number))).double()
