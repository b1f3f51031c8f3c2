r"""Committal rates of policy gradient and natural policy gradient on a bandit, and an ensemble of runs.

The rate of an algorithm is the largest $\alpha$ such that $t^\alpha (1 - \pi_t(a))$ stays bounded if action $a$ is
sampled forever. The bandit has two arms, of rewards 1 and 0.8, and no noise. First the arm of reward 0.8 is sampled
forever. Then actions are sampled, and an ensemble keeps the best of its runs, by expected reward.

Reference: arXiv:2110.15572.
"""

from __future__ import annotations

from collections.abc import Callable

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.classical.shared.curves import Table, band, moments, plot_panel, points
from experiments.classical.shared.softmax import log_complement, natural_step, policy_gradient_step, sample
from experiments.figures.style import panels

SHORT = {"steps": 100, "runs": 64}
REWARDS = torch.tensor([1.0, 0.8], dtype=torch.float64)
BEST, OTHER = 0, 1
STEP_SIZE = 0.5
FAILED = 0.01  # probability of the best arm below which a run has committed to the other
SIZES = (1, 2, 3, 4, 5, 6)  # of ensembles
Step = Callable[[Tensor, Tensor, Tensor, float], Tensor]


def fed(step: Step, steps: int) -> Tensor:
    """Return the log-probability of not sampling the arm of lower reward, after each step in which it was sampled.

    Args:
        step: Step of the algorithm.
        steps: Number of steps.
    """
    logits, found = torch.zeros(2, dtype=torch.float64), []
    for _ in range(steps):
        logits = step(logits, torch.tensor(OTHER), REWARDS[OTHER], STEP_SIZE)
        found.append(log_complement(logits, OTHER))
    return torch.stack(found)


def sampled(step: Step, times: list[int], runs: int) -> Tensor:
    """Return the log-probability of the arm of lower reward at some times, with sampled actions; shape `time run`.

    Args:
        step: Step of the algorithm.
        times: Numbers of steps, increasing.
        runs: Number of runs.
    """
    generator = torch.Generator().manual_seed(0)
    logits, found = torch.zeros(runs, 2, dtype=torch.float64), []
    for time in range(1, times[-1] + 1):
        action = sample(logits, generator)
        logits = step(logits, action, REWARDS[action], STEP_SIZE)
        if time in times:
            found.append(log_complement(logits, BEST))
    return torch.stack(found)


def best_of(log_probs: Tensor, size: int) -> Tensor:
    """Return the smallest of each `size` runs in a row; shape `time ensemble`."""
    return log_probs.unfold(-1, size, size).amin(dim=-1)


def failures(log_probs: Tensor) -> float:
    """Return the share of runs whose probability of the best arm is below `FAILED`, at the last time."""
    return float((-log_probs[-1].expm1() < FAILED).double().mean())


def rows(steps: int = 10_000, runs: int = 4_096) -> Table:
    """Return the committal rates and the sub-optimality of runs and ensembles.

    Args:
        steps: Steps of policy gradient; natural policy gradient makes a hundredth.
        runs: Number of runs of natural policy gradient; policy gradient has an eighth.
    """
    table, times, gap = [], moments(steps), float(REWARDS[BEST] - REWARDS[OTHER])
    early = moments(max(steps // 100, 10))
    slow, fast = fed(policy_gradient_step, steps).exp(), fed(natural_step, early[-1]).exp()
    table += points("fed", "policy gradient", times, (slow[time - 1] for time in times))
    table += points("fed", "natural policy gradient", early, (fast[time - 1] for time in early))
    table += points("limit", "policy gradient", times, (time * slow[time - 1] for time in times))
    table += points(
        "limit", r"$1 / 2 \eta r$ = 1.25", times, [1 / (2 * STEP_SIZE * float(REWARDS[OTHER]))] * len(times)
    )
    table += band("gap", "policy gradient", times, gap * sampled(policy_gradient_step, times, runs // 8).exp(), 0.05)
    natural = sampled(natural_step, early, runs)
    for size in (SIZES[0], SIZES[-1]):
        name = f"natural, best of {size}" if size > 1 else "natural policy gradient"
        table += band("gap", name, early, gap * best_of(natural, size).exp(), 0.05)
    observed = [failures(best_of(natural, size)) for size in SIZES]
    table += points("failures", "observed", SIZES, observed)
    return table + points("failures", "power of one run's", SIZES, (observed[0] ** size for size in SIZES))


def plot(table: Table) -> Figure:
    """Return the plot of the table."""
    canvas, (left, limit, gap, failed) = panels(2, 2, 10, 7.5)
    logs = ("log", "log")
    plot_panel(left, table, "fed", ("step $t$", r"probability of other arms $1 - \pi_t$"), logs)
    plot_panel(limit, table, "limit", ("step $t$", r"$t \, (1 - \pi_t)$"), ("log", "linear"))
    plot_panel(gap, table, "gap", ("step $t$", r"regret $V^* - V_t$, median and 5% to 95%"), logs)
    gap.set_ylim(bottom=1e-12)
    plot_panel(failed, table, "failures", ("runs in the ensemble", "share of ensembles that fail"), ("linear", "log"))
    return canvas
