"""Design of the study: objectives, learning rates, updates per rollout and seeds, fixed before the runs."""

from __future__ import annotations

import itertools
from collections.abc import Iterator, Mapping
from dataclasses import dataclass, field
from typing import Any

from aggregate_po import AdvantageEstimator, ArithmeticMean, PessimisticClip, PolicyObjective, PowerMean, objective_of
from aggregate_po.advantages import GroupCentered, GroupNormalized

MAX_COMPLETION_LENGTH = 40  # tokens
ROLLOUTS = 30
SEEDS = (0, 1, 2, 3, 4)
UPDATES_PER_ROLLOUT = (1, 4, 16)
FIDELITY_TASK = "addition"
LEARNING_RATES = (5e-5, 8.4e-5, 1.4e-4, 2.4e-4, 4e-4, 6.7e-4, 1.1e-3)


def grpo_no_clip() -> PolicyObjective:
    """Return the arithmetic mean without a clip."""
    return PolicyObjective(ArithmeticMean())


def quadratic() -> PolicyObjective:
    """Return the quadratic mean, exponent 2, with the clip of GMPO."""
    return PolicyObjective(PowerMean(2.0), PessimisticClip.log(0.4, 0.4))


@dataclass(frozen=True)
class Variant:
    """An objective of the study.

    Args:
        name: name in tables and plots.
        path: name of a recipe, or import path of a recipe, an objective or an aggregator.
        arguments: arguments of the recipe.
        advantages: advantage estimator that the method is published with.
    """

    name: str
    path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    advantages: AdvantageEstimator = field(default_factory=GroupNormalized)

    def objective(self) -> PolicyObjective:
        """Return a new objective."""
        return objective_of(self.path, **self.arguments)


# Mean and clip apart: two means with no clip, the clip of GRPO or that of GMPO; and four exponents with one clip.
CORE = (
    Variant("grpo", "grpo"),
    Variant("grpo_wide_clip", "grpo_wide_clip"),
    Variant("grpo_no_clip", "experiments.study.design.grpo_no_clip"),
    Variant("gmpo", "gmpo"),
    Variant("gmpo_narrow_clip", "gmpo", {"log_clip": 0.2}),
    Variant("gmpo_no_clip", "gmpo_no_clip"),
    Variant("hmpo", "hmpo"),
    Variant("quadratic", "experiments.study.design.quadratic"),
    Variant("pmpo", "pmpo"),
    Variant("gspo", "gspo"),
)
FURTHER = (
    Variant("holder_po", "holder_po"),
    Variant("dr_grpo", "dr_grpo", {"max_completion_length": MAX_COMPLETION_LENGTH}, GroupCentered()),
    Variant("dapo", "dapo"),
    Variant("ctpo", "ctpo"),
    Variant("kpo", "kpo"),
    Variant("gmpo_sequence_clip", "gmpo_sequence_clip"),
    Variant("gmpo_without_length_norm", "gmpo_without_length_norm"),
)
# With one update per rollout every ratio is 1, and these stand for all: one mean, and the other normalizations.
ON_POLICY = ("grpo", "gmpo", "dr_grpo", "dapo")


@dataclass(frozen=True)
class Job:
    """A training run.

    Args:
        task: name of the task, see `experiments.study.tasks`.
        variant: objective.
        updates: updates per rollout.
        learning_rate: learning rate.
        seed: seed of prompts and sampling.
    """

    task: str
    variant: Variant
    updates: int
    learning_rate: float
    seed: int

    @property
    def name(self) -> str:
        """Name of the run, which is that of its folder."""
        return f"{self.task}-{self.variant.name}-{self.updates}-{self.learning_rate:g}-{self.seed}"


@dataclass(frozen=True)
class Ladder:
    """Runs that differ in their learning rate alone, from the smallest; two collapses in a row end the ladder."""

    jobs: tuple[Job, ...]


@dataclass(frozen=True)
class Grid:
    """Seeds, updates per rollout and learning rates of the runs of a task.

    Args:
        seeds: seeds of prompts and sampling.
        updates: updates per rollout.
        learning_rates: learning rates, rising.
    """

    seeds: tuple[int, ...] = SEEDS
    updates: tuple[int, ...] = UPDATES_PER_ROLLOUT
    learning_rates: tuple[float, ...] = LEARNING_RATES


def ladders(task: str, variants: tuple[Variant, ...] = (), grid: Grid = Grid()) -> Iterator[Ladder]:
    """Yield the runs of a task, in the order in which to make them.

    Args:
        task: name of the task.
        variants: objectives; those of the study when empty, `CORE` with all seeds before `FURTHER`.
        grid: seeds, updates per rollout and learning rates.
    """
    for part in (variants,) if variants else (CORE, FURTHER):
        for seed, updates, variant in itertools.product(grid.seeds, reversed(grid.updates), part):
            if updates > 1 or variants or variant.name in ON_POLICY:
                yield Ladder(tuple(Job(task, variant, updates, rate, seed) for rate in grid.learning_rates))
