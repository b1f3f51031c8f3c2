r"""Clip of proximal policy optimization against its surrogate without a clip and an early stop of the inner epochs.

Each rollout is trained on for many epochs. With the clip a step has no gradient once its ratio has left
$[1 - \epsilon, 1 + \epsilon]$ in the direction of its advantage, but other steps may move that ratio further. The
early stop drops the remaining epochs when the mean of $|r - 1|$ over the rollout exceeds a bound; it is the
`RatioDeviationStop` of the library.

Reference: "You may not need ratio clipping in PPO", arXiv:2202.00079.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import torch
from lightning import seed_everything
from matplotlib.axes import Axes
from matplotlib.figure import Figure

from aggregate_po import PolicyObjective
from aggregate_po.recipes import espo, grpo
from experiments.classical.control.actor import Actor, StepPolicy
from experiments.classical.control.environments import Environments
from experiments.classical.control.ratio_range import RatioRange
from experiments.classical.control.rollouts import Rollouts, Sizes
from experiments.classical.control.training import fit
from experiments.classical.shared.curves import Table, band, curve_of, plot_panel, point
from experiments.figures.style import COLORS, legend_below, panels
from experiments.workers import results_of
from lightning_modules import RatioDeviationStop

CLIP, BOUND = 0.2, 0.25
COPIES, HIDDEN = 8, 64
TASKS = {
    "CartPole-v1": Sizes(steps=256, epochs=20, minibatches=8, discount=0.99, decay=0.95, learning_rate=3e-4),
    "Pendulum-v1": Sizes(steps=256, epochs=20, minibatches=8, discount=0.9, decay=0.95, learning_rate=3e-4),
}
# On a single token the arithmetic mean is the ratio, so these are the surrogates of the paper.
VARIANTS: Mapping[str, tuple[Callable[[], PolicyObjective], float | None]] = {
    f"clip at {CLIP}": (lambda: grpo(CLIP, CLIP), None),
    "no clip": (espo, None),
    f"no clip, stop at {BOUND}": (espo, BOUND),
}
ROLLOUTS = {"CartPole-v1": 20, "Pendulum-v1": 40}
SHORT = {"rollouts": {"CartPole-v1": 2}, "seeds": 2, "workers": 1}


@dataclass(frozen=True)
class Job:
    """A run of a variant on a task, with a seed and a number of rollouts."""

    task: str
    variant: str
    seed: int
    rollouts: int


def train(job: Job) -> tuple[list[list[list[float]]], list[float]]:
    """Return what a run measured: the ratios of each epoch of each rollout, and the return after each rollout."""
    seed_everything(job.seed, verbose=False)
    objective, bound = VARIANTS[job.variant]
    environments, sizes = Environments(job.task, COPIES, job.seed), TASKS[job.task]
    policy = StepPolicy(environments, HIDDEN)
    rollouts = Rollouts(environments, policy, sizes, HIDDEN)
    measures = RatioRange(rollouts)
    callbacks = [measures, *([RatioDeviationStop(bound)] if bound else [])]
    fit(Actor(policy, objective(), sizes.learning_rate), rollouts.loader(), job.rollouts, callbacks, clip=0.5)
    return measures.measured, measures.returns


def rows(rollouts: Mapping[str, int] = ROLLOUTS, seeds: int = 3, workers: int = 2) -> Table:
    """Return ranges and deviations of the ratios after each inner epoch, and returns after each rollout.

    Args:
        rollouts: Number of rollouts of each task.
        seeds: Number of seeds.
        workers: Number of runs at the same time.
    """
    runs = list(product(rollouts, VARIANTS))
    jobs = [Job(*run, seed, rollouts[run[0]]) for run in runs for seed in range(seeds)]
    results, table = results_of(train, jobs, workers), []
    for number, (task, variant) in enumerate(runs):
        measured, returns = zip(*results[number * seeds :][:seeds], strict=True)
        ratios = torch.tensor(measured, dtype=torch.float64)  # seed rollout epoch measure
        epochs = range(1, TASKS[task].epochs + 1)
        lowest, low, middle, high, highest = ratios[..., :-1].flatten(end_dim=1).quantile(0.5, dim=0).unbind(dim=-1)
        for panel, ends in (("extremes", (lowest, highest)), ("98%", (low, high))):
            table += [point(f"{task} {panel}", variant, *each) for each in zip(epochs, middle, *ends, strict=True)]
        table += band(f"{task} deviation", variant, epochs, ratios[..., -1].mean(dim=1).T, tail=0)
        steps = [COPIES * TASKS[task].steps * (rollout + 1) / 1000 for rollout in range(rollouts[task])]
        table += band(f"{task} return", variant, steps, torch.tensor(returns, dtype=torch.float64).T, tail=0)
    return table


def plot(table: Table) -> Figure:
    """Return the plot of the table."""
    tasks = list(dict.fromkeys(str(row["panel"]).split()[0] for row in table))
    canvas, axes = panels(len(tasks), 3, 14, 4 * len(tasks) + 0.5)
    for number, task in enumerate(tasks):
        ratios, deviation, returns = axes[3 * number : 3 * number + 3]
        _plot_range(ratios, table, task)
        plot_panel(deviation, table, f"{task} deviation", ("inner epoch", "mean of $|r - 1|$"))
        deviation.axhline(BOUND, color="#000000", linestyle=":", linewidth=1)
        plot_panel(
            returns, table, f"{task} return", ("steps of the environment (thousands)", "mean return of 20 episodes")
        )
        for panel in (ratios, deviation, returns):
            panel.set_title(task)
        for panel in (ratios, deviation):
            panel.set_xticks(range(0, TASKS[task].epochs + 1, 5))
        for panel in (deviation, returns):
            panel.get_legend().remove()
    legend_below(canvas, axes[0], columns=4)
    return canvas


def _plot_range(axes: Axes, table: Table, task: str) -> None:
    """Plot smallest and largest ratio, and between which ratios 98% of the steps are."""
    for number, variant in enumerate(VARIANTS):
        for panel, dashes, label in (("extremes", "-", variant), ("98%", "--", None)):
            columns = curve_of(table, f"{task} {panel}", variant)
            for end in ("low", "high"):
                name = label if end == "low" else None
                axes.plot(columns["x"], columns[end], color=COLORS[number], linestyle=dashes, label=name)
    for end in (1 - CLIP, 1 + CLIP):
        axes.axhline(end, color="#000000", linestyle=":", linewidth=1)
    axes.set_yscale("log")
    axes.set_ylim(0.02, 50)
    axes.set_yticks([0.1, 0.5, 1, 2, 10], ["0.1", "0.5", "1", "2", "10"])
    axes.minorticks_off()
    axes.set_xlabel("inner epoch")
    axes.set_ylabel("ratio $r$: extremes, and 1% and 99% (dashed)")
