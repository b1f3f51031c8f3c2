r"""Natural policy gradient with and without a value baseline, on bandits and on a Markov decision process.

Each step samples one action $a$ of the policy and adds $\eta (R - b) / \pi(a)$ to its logit. The baseline $b$ is the
expected reward under the policy, or 0. With two arms all sequences of actions are enumerated; with 20 arms, and in each
state of the decision process, actions are sampled.

Reference: arXiv:2301.06276.
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.classical.shared.curves import Table, band, moments, plot_panel, points
from experiments.classical.shared.mdp import random_mdp
from experiments.classical.shared.softmax import baseline, natural_step, sample
from experiments.figures.style import panels

SHORT = {"depth": 4, "steps": 60, "runs": 3}
NAMES = {False: "no baseline", True: "value baseline"}
TWO_ARMS = torch.tensor([1.0, 0.8], dtype=torch.float64)
THREE_ARMS = torch.tensor([1.0, 0.8, 0.0], dtype=torch.float64)
MANY_ARMS = torch.linspace(0, 1, 20, dtype=torch.float64)
COMMITTED = 0.01  # probability of the best arm below which a run has committed to others
PLATEAU = 0.88  # probability of the second best arm at the start
TITLES = {
    "exact": "two arms, exact",
    "uniform": "20 arms, uniform start",
    "plateau": "20 arms, 0.88 on the second best",
    "repeated": "three arms, one repeated",
    "process": "decision process",
    "noise": "20 arms, value baseline, noisy rewards",
}


def enumerated(depth: int, used: bool, step_size: float = 0.5) -> list[tuple[float, float]]:
    """Return the expected probability of the best of two arms, and the probability of a commitment to the other.

    Args:
        depth: Number of steps; all sequences of that many actions are enumerated.
        used: Whether there is a baseline.
        step_size: Step size.
    """
    logits, weights, found = torch.zeros(1, 2, dtype=torch.float64), torch.ones(1, dtype=torch.float64), []
    for _ in range(depth):
        every, mass = [], []
        for arm in range(2):
            probability = logits.softmax(dim=-1)[:, arm]
            reached = probability > 1e-300  # else the step overflows
            own = logits[reached]
            action = torch.full((len(own),), arm)
            advantage = TWO_ARMS[arm] - baseline(own, TWO_ARMS, used)
            every.append(natural_step(own, action, advantage, step_size))
            mass.append((weights * probability)[reached])
        logits, weights = torch.cat(every), torch.cat(mass)
        best = logits.softmax(dim=-1)[:, 0]
        found.append((float(weights @ best), float(weights @ (best < COMMITTED).double())))
    return found


def repeated(steps: int, used: bool) -> Tensor:
    """Return the logit of the second of three arms, which is sampled forever, after each step."""
    logits, found = torch.zeros(3, dtype=torch.float64), []
    for _ in range(steps):
        logits = natural_step(logits, torch.tensor(1), THREE_ARMS[1] - baseline(logits, THREE_ARMS, used), 0.5)
        found.append(logits[1])
    return torch.stack(found)


def bandit_regret(times: list[int], runs: int, used: bool, start: Tensor, noise: float = 0.0) -> Tensor:
    r"""Return the regret of sampled runs on the bandit of 20 arms at some times; shape `time run`.

    Args:
        times: Numbers of steps, increasing.
        runs: Number of runs.
        used: Whether there is a baseline.
        start: Logits at the start; shape `arm`.
        noise: Size $\sigma$ of the noise: a reward is $\sigma$ above or below its mean.
    """
    generator, logits, found = torch.Generator().manual_seed(0), start.expand(runs, -1), []
    for time in range(1, times[-1] + 1):
        action = sample(logits, generator)
        signs = torch.randint(0, 2, (runs,), generator=generator).double() * 2 - 1 if noise else 0
        advantage = MANY_ARMS[action] + noise * signs - baseline(logits, MANY_ARMS, used)
        logits = natural_step(logits, action, advantage, 0.1)
        if time in times:
            found.append(MANY_ARMS.max() - logits.softmax(dim=-1) @ MANY_ARMS)
    return torch.stack(found)


def process_regret(times: list[int], runs: int, used: bool) -> Tensor:
    """Return the regret of sampled runs on a random process of 5 states and 4 actions; shape `time run`."""
    process = random_mdp(states=5, actions=4, discount=0.9, seed=0)
    optimum = process.expected(process.optimal_values())
    generator, logits, found = torch.Generator().manual_seed(0), torch.zeros(runs, 5, 4, dtype=torch.float64), []
    for time in range(1, times[-1] + 1):
        values = process.action_values(logits.softmax(dim=-1))
        action = sample(logits, generator)
        advantage = values.gather(-1, action.unsqueeze(-1)).squeeze(-1) - baseline(logits, values, used)
        logits = natural_step(logits, action, advantage, 0.02)
        if time in times:
            found.append(optimum - process.expected(process.values(logits.softmax(dim=-1))))
    return torch.stack(found)


def rows(depth: int = 12, steps: int = 100_000, runs: int = 20) -> Table:
    """Return the exact values, the regret of sampled runs, and the logit of an arm that is sampled forever.

    Args:
        depth: Steps of the enumeration.
        steps: Steps of the runs on bandits; those on the decision process have a tenth.
        runs: Number of runs.
    """
    table: Table = []
    times, uniform = moments(steps), torch.zeros(20, dtype=torch.float64)
    plateau = torch.full((20,), (1 - PLATEAU) / 19, dtype=torch.float64)
    plateau[-2] = PLATEAU
    for used, name in NAMES.items():
        best, committed = zip(*enumerated(depth, used), strict=True)
        table += points("exact", f"{name}: mean of $\\pi(a^*)$", range(1, depth + 1), best)
        table += points("exact", f"{name}: share with $\\pi(a^*)$ < 0.01", range(1, depth + 1), committed)
        early = moments(steps // 100 + 2)
        logits = repeated(early[-1], used)
        table += points("repeated", name, early, (logits[time - 1] for time in early))
        table += band("uniform", name, times, bandit_regret(times, runs, used, uniform))
        table += band("process", name, moments(steps // 10), process_regret(moments(steps // 10), runs, used))
        table += band("plateau", name, times, bandit_regret(times, runs, used, plateau.log()))
    for noise in (0.05, 0.5, 3.0):
        table += band("noise", f"noise of $\\pm${noise:g}", times, bandit_regret(times, runs, True, uniform, noise))
    return table


def plot(table: Table) -> Figure:
    """Return the plot of the table."""
    canvas, axes = panels(2, 3, 13, 8)
    regret, logs = ("step $t$", "regret $V^* - V_t$, median and 10% to 90%"), ("log", "log")
    for panel, (name, title) in zip(axes, TITLES.items(), strict=True):
        if name == "exact":
            plot_panel(panel, table, name, ("step $t$", "probability"))
        elif name == "repeated":
            plot_panel(panel, table, name, ("step $t$", r"logit $\theta_t$ of the arm that is repeated"), logs)
        else:
            plot_panel(panel, table, name, regret, logs)
        if name in ("uniform", "plateau", "noise"):
            panel.set_ylim(bottom=1e-7)
        panel.set_title(title, fontsize=10)
    return canvas
