"""Design of the flow-matching experiment: objectives, rollouts and seeds."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from aggregate_po import PessimisticClip, PolicyObjective, PowerMean, objective_of
from lightning_modules.flow import InverseStepSize, StepWeights, StepWindow

STEPS, SHIFT = 10, 3.0  # the shift of Stable Diffusion 3, so that steps differ in their length
GROUP_SIZE, PROMPTS_PER_ROLLOUT, UPDATES_PER_ROLLOUT = 32, 4, 2
ROLLOUTS, EVERY = 80, 5  # rollouts of a run, and between two evaluations
HELD_OUT, EVALUATION_STEPS = 256, 40  # samples of an evaluation, and steps of their ODE
LEARNING_RATE = 3e-3
SEEDS = (0, 1, 2, 3, 4)
CLIP = 1e-4  # of Flow-GRPO
PICTURED, PICTURED_AT = 128, -0.7  # samples of a picture, and the proxy at which they are taken, besides both ends


def power_mean(exponent: float) -> PolicyObjective:
    """Return the power mean of the ratios with the clip of Flow-GRPO."""
    return PolicyObjective(PowerMean(exponent), PessimisticClip(CLIP, CLIP))


@dataclass(frozen=True)
class Variant:
    """An objective of the experiment.

    Args:
        name: name in tables and plots.
        path: name of a recipe, or import path of a recipe, an objective or an aggregator.
        arguments: arguments of the recipe.
        step_weights: weights of the steps; equal when None.
        window: stochastic steps; all when None.
    """

    name: str
    path: str
    arguments: Mapping[str, Any] = field(default_factory=dict)
    step_weights: StepWeights | None = None
    window: StepWindow | None = None

    def objective(self) -> PolicyObjective:
        """Return a new objective."""
        return objective_of(self.path, **self.arguments)


VARIANTS = (
    Variant("flow_grpo", "flow_grpo"),
    Variant("grpo_guard", "grpo_guard", {"steps": STEPS}, InverseStepSize()),
    Variant("ratio_norm", "grpo_guard", {"steps": STEPS}),
    Variant("flow_dppo", "flow_dppo"),
    Variant("window", "flow_grpo", window=StepWindow(size=2, every=5)),
    Variant("geometric", "experiments.flow.design.power_mean", {"exponent": 0.0}),
    Variant("harmonic", "experiments.flow.design.power_mean", {"exponent": -1.0}),
)


def variant(name: str) -> Variant:
    """Return the variant of the experiment with this name, or a new one for a recipe or an import path."""
    known = {each.name: each for each in VARIANTS}
    return known.get(name, Variant(name, name))
