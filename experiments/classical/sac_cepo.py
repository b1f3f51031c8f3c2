"""Soft actor-critic with cross-entropy policy optimization: on a bandit with two modes, and on Pendulum.

Soft actor-critic moves the mean of its policy along a gradient, which leads to the nearest mode. SAC-CEPO searches a
better mean by the cross-entropy method, and regresses the mean network to what was found. Everything else is the same:
critics, value network, replay, and the gradient of the deviation.

Reference: Shi and Singh, arXiv:2112.11115.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from itertools import product

import torch
from lightning import seed_everything
from matplotlib.figure import Figure
from torch import Tensor, nn
from torch.utils.data import DataLoader

from experiments.classical.control.cross_entropy import CrossEntropy
from experiments.classical.control.environments import Environments
from experiments.classical.control.evaluation import Evaluation
from experiments.classical.control.soft_actor_critic import Replay, SoftActorCritic
from experiments.classical.control.tanh_gaussian import Improvement, TanhGaussian, by_cross_entropy, by_gradient
from experiments.classical.control.training import fit
from experiments.classical.shared.curves import Table, band, plot_panel, points
from experiments.figures.style import legend_below, panels
from experiments.workers import results_of

TEMPERATURE = 0.02  # rewards of Pendulum are divided by 10, so it is 0.2 in their own unit
MODES = ((0.6, -0.3, 0.15), (1.0, 0.45, 0.15))  # height, position and width of the modes of the bandit
STARTS = torch.linspace(-0.9, 0.9, 19)
TASK, COPIES, HIDDEN, BATCH, UPDATES, LEARNING_RATE = "Pendulum-v1", 4, 64, 128, 2, 1e-3
RANDOM_STEPS, EVERY, EPISODES = 800, 1000, 10
IMPROVEMENTS: Mapping[str, Callable[..., Improvement]] = {
    "SAC": lambda **sizes: by_gradient,
    "SAC-CEPO": lambda **sizes: by_cross_entropy(CrossEntropy(**sizes)),
    "SAC-CEPO, shared elites": lambda **sizes: by_cross_entropy(CrossEntropy(shared=True, **sizes)),
}
SMALL = {"iterations": 5, "candidates": 32}  # a search on Pendulum, for the time that it takes
SHORT = {"updates": 5, "steps": 1000, "seeds": 2, "workers": 1}


def bandit_quality(states: Tensor, actions: Tensor) -> Tensor:
    """Return the expected reward of actions of the bandit, which has no state; shape `...`."""
    action = actions.squeeze(-1)
    return sum(height * (-(((action - at) / width) ** 2) / 2).exp() for height, at, width in MODES)


def bandit_means(improve: Improvement, updates: int, seed: int) -> Tensor:
    """Return the action at the mean of the policy, from each start, after a number of updates; shape `start`.

    Policies from different starts are states of one policy, which is a table.
    """
    torch.manual_seed(seed)
    states = torch.eye(len(STARTS))
    mean, log_deviation = (nn.Linear(len(STARTS), 1, bias=False) for _ in range(2))
    mean.weight.data = STARTS.atanh().unsqueeze(0)
    log_deviation.weight.data.fill_(-2.0)
    optimizers = [torch.optim.Adam(part.parameters(), lr=0.02) for part in (mean, log_deviation)]
    policy = TanhGaussian(mean, log_deviation, TEMPERATURE)
    for _ in range(updates):
        improve(policy, states, bandit_quality, *optimizers)
    return policy.mean(states).detach().tanh().flatten()


@dataclass(frozen=True)
class Job:
    """A run on Pendulum."""

    improvement: str
    seed: int
    steps: int


def train(job: Job) -> list[tuple[float, float]]:
    """Return what a run on Pendulum measured."""
    seed_everything(job.seed, verbose=False)
    environments = Environments(TASK, COPIES, job.seed)
    sizes = environments.state_size, environments.action_size
    improve = IMPROVEMENTS[job.improvement](**SMALL)
    module = SoftActorCritic(*sizes, improve, TEMPERATURE, HIDDEN, LEARNING_RATE)
    replay = Replay(environments, module.policy, job.steps, RANDOM_STEPS, BATCH, UPDATES)
    evaluation = Evaluation(replay, TASK, EVERY, EPISODES)
    fit(module, DataLoader(replay, batch_size=None), 1, [evaluation], clip=None)
    return evaluation.measured


def rows(updates: int = 200, steps: int = 10_000, seeds: int = 3, workers: int = 2) -> Table:
    """Return the means of policies of the bandit, and returns and deviations on Pendulum.

    Args:
        updates: Updates on the bandit.
        steps: Steps on Pendulum.
        seeds: Number of seeds.
        workers: Number of runs at the same time.
    """
    actions = torch.linspace(-1, 1, 101)
    table = points(
        "quality", "expected reward", actions.tolist(), bandit_quality(actions, actions.unsqueeze(-1)).tolist()
    )
    for name, improvement in IMPROVEMENTS.items():
        means = torch.stack([bandit_means(improvement(), updates, seed) for seed in range(seeds)], dim=-1)
        table += band("bandit", name, STARTS.tolist(), means, tail=0)
    jobs = [Job(name, seed, steps) for name, seed in product(IMPROVEMENTS, range(seeds))]
    results = torch.tensor(results_of(train, jobs, workers)).unflatten(0, (len(IMPROVEMENTS), seeds))
    times = range(EVERY, steps + 1, EVERY)
    for name, measured in zip(IMPROVEMENTS, results, strict=True):
        for panel, values in zip(("return", "deviation"), measured.unbind(dim=-1), strict=True):
            table += band(panel, name, times, values.T, tail=0)
    return table


def plot(table: Table) -> Figure:
    """Return the plot of the table."""
    canvas, axes = panels(1, 4, 16, 4.4)
    labels = {
        "quality": ("action of the bandit", "expected reward"),
        "bandit": ("mean action at the start", "mean action at the end"),
        "return": ("steps of Pendulum", "mean return of 10 episodes"),
        "deviation": ("steps of Pendulum", r"deviation $\sigma$ before the tanh"),
    }
    for panel, (name, label) in zip(axes, labels.items(), strict=True):
        plot_panel(panel, table, name, label)
        panel.get_legend().remove()
    axes[0].lines[0].set_color("#000000")
    legend_below(canvas, axes[1], columns=3)
    return canvas
