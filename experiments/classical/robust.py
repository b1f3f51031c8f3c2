r"""Mirror descent for a constrained decision process whose transitions are uncertain: policy, kernel and multiplier.

A policy $\pi$ minimizes the cost $V(\rho)$ of the worst kernel of a set, such that a second cost $V^d(\rho)$ is not
positive. Each step is $\pi^+ \propto \pi e^{-\eta Q}$ for the costs $c + \lambda d$, one of mirror ascent for the
kernel, projected to the set, and $\lambda^+ = [\lambda + \eta_\lambda V^d(\rho)]_+$.

Reference: arXiv:2506.23165.
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import torch
from matplotlib.figure import Figure
from torch import Tensor

from aggregate_po.penalties import K1Penalty, LagrangePenalty
from experiments.classical.shared.curves import Table, moments, plot_panel, point, points
from experiments.classical.shared.mdp import MDP
from experiments.classical.shared.uncertainty import Interval, KLBall, Uncertainty, kernel_step, worst_values
from experiments.figures.style import panels

SHORT = {"steps": 30, "radii": (0.05,)}
# A machine that runs or is broken. It can be run fast or carefully, and be repaired slowly or at a cost.
NOMINAL = MDP(
    torch.tensor([[[0.8, 0.2], [0.95, 0.05]], [[0.3, 0.7], [0.8, 0.2]]], dtype=torch.float64),
    torch.tensor([[0.0, 0.4], [0.6, 1.0]], dtype=torch.float64),
    0.9,
    torch.tensor([1.0, 0.0], dtype=torch.float64),
)
ALLOWED = 0.2  # discounted share of the time that the machine may be broken
BROKEN = torch.tensor([[-ALLOWED, -ALLOWED], [1 - ALLOWED, 1 - ALLOWED]], dtype=torch.float64)
POLICY_STEP, KERNEL_STEP, DUAL_STEP = 0.3, 0.3, 0.05
KL, ENTROPY = KLBall(0.02), 0.1


@dataclass(frozen=True)
class Method:
    """Parts of the optimization.

    Args:
        uncertainty: Set of the kernels; None for the nominal one.
        constrained: Whether the second cost is constrained.
        temperature: Weight of the entropy of the policy.
    """

    uncertainty: Uncertainty | None = None
    constrained: bool = True
    temperature: float = ENTROPY


def optimize(method: Method, steps: int) -> tuple[list[Tensor], list[float]]:
    """Return the policies and the multipliers after each step.

    Args:
        method: What is optimized.
        steps: Number of steps.
    """
    logits, kernel = torch.zeros(2, 2, dtype=torch.float64), NOMINAL.transitions
    # The dual variable of the library. Its own cost is not used, since the exact value takes the place of an average.
    dual = LagrangePenalty(K1Penalty(0.0), bound=0.0, step_size=DUAL_STEP)
    policies, multipliers = [], []
    for _ in range(steps):
        policy, costs = logits.softmax(dim=-1), NOMINAL.rewards + dual.multiplier * BROKEN
        process = replace(NOMINAL, transitions=kernel)
        values = process.values(policy, costs + method.temperature * logits.log_softmax(dim=-1))
        logits = (1 - POLICY_STEP * method.temperature) * logits - POLICY_STEP * process.one_step(values, costs)
        if method.constrained:
            dual.adapt(process.expected(process.values(policy, BROKEN)).item())
        if method.uncertainty is not None:
            kernel = kernel_step(NOMINAL, method.uncertainty, kernel, policy, costs, KERNEL_STEP)
        policies.append(logits.softmax(dim=-1))
        multipliers.append(dual.multiplier)
    return policies, multipliers


def worst_cases(uncertainty: Uncertainty, policies: list[Tensor]) -> tuple[Tensor, Tensor]:
    """Return the worst cost of each policy and the worst violation, each under a kernel of its own; shape `policy`."""
    stacked = torch.stack(policies)
    cost, violation = (worst_values(NOMINAL, uncertainty, stacked, costs)[0] for costs in (NOMINAL.rewards, BROKEN))
    return NOMINAL.expected(cost), NOMINAL.expected(violation)


def rows(steps: int = 1_500, radii: tuple[float, ...] = (0.005, 0.01, 0.02, 0.03, 0.05)) -> Table:
    """Return worst cases over the steps, distances from the limit, and worst cases against the size of the set.

    Args:
        steps: Steps of mirror descent.
        radii: Sizes of the sets: radii of KL balls in nats, and half widths of intervals.
    """
    table: Table = []
    times = moments(steps)
    methods = {
        "plain": Method(None, constrained=False),
        "constrained": Method(None),
        "robust": Method(KL),
        "robust, no entropy": Method(KL, temperature=0.0),
    }
    found = {name: optimize(method, steps) for name, method in methods.items()}
    worst = {name: worst_cases(KL, policies)[1] for name, (policies, _) in found.items()}
    for name, violation in worst.items():
        table += points("violation", name, times, (violation[time - 1] for time in times))
    average = worst["robust, no entropy"].cumsum(dim=0) / torch.arange(1.0, steps + 1, dtype=torch.float64)
    for name, violation in (("mean of all steps", average), ("last step", worst["robust, no entropy"])):
        table += points("average", name, times, (abs(violation[time - 1]) for time in times))
    linear = range(0, 2 * steps // 3, max(steps // 50, 1))
    half = optimize(Method(KL, temperature=ENTROPY / 2), steps)[1]
    for temperature, multipliers in ((ENTROPY, found["robust"][1]), (ENTROPY / 2, half)):
        distance = (abs(multipliers[time] - multipliers[-1]) for time in linear)
        table += points("multiplier", f"entropy of weight {temperature:g}", linear, distance)
    nominal = [found[name][0][-1] for name in ("plain", "constrained")]
    for kind in (KLBall, Interval):
        for radius in radii:
            robust = optimize(Method(kind(radius)), steps // 2)[0][-1]
            cost, violation = worst_cases(kind(radius), [*nominal, robust])
            for number, name in enumerate(("plain", "constrained", "robust")):
                table.append(point(f"{kind.__name__} violation", name, radius, violation[number]))
                table.append(point(f"{kind.__name__} cost", name, radius, cost[number]))
    return table


def plot(table: Table) -> Figure:
    """Return the plot of the table."""
    canvas, axes = panels(2, 3, 13, 8)
    cost, violation = "worst cost $V$ (discounted)", "worst violation $V^d$ (discounted steps)"
    plot_panel(axes[0], table, "violation", ("step", violation), ("log", "linear"))
    plot_panel(
        axes[1], table, "multiplier", ("step", r"multiplier, distance $|\lambda - \lambda^*|$"), ("linear", "log")
    )
    plot_panel(axes[2], table, "average", ("step", "size of $V^d$, no entropy (discounted steps)"), ("log", "log"))
    plot_panel(axes[3], table, "KLBall violation", (r"radius $\kappa$ of the KL ball (nats)", violation))
    plot_panel(axes[4], table, "Interval violation", (r"half width $\delta$ of the interval", violation))
    plot_panel(axes[5], table, "KLBall cost", (r"radius $\kappa$ of the KL ball (nats)", cost))
    return canvas
