r"""Batch reinforcement learning that bootstraps from supported actions only: MBS-QI and MBS-PI.

The filter $\zeta(s, a)$ is 1 where the share of the data in $(s, a)$ is at least $b$, and 0 elsewhere. MBS-QI iterates
$f \leftarrow \hat r + \gamma \hat E \max_{a'} \zeta f$ and chooses the best $\zeta f$; MBS-PI alternates between the
evaluation of a policy with $\zeta f$ and greedy steps on it. At $b = 0$ the filter passes all, and QI is fitted Q
iteration. Pairs that are not in the data keep their first value, the largest that is possible.

Reference: arXiv:2007.08202.
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.classical.shared.curves import Table, band, plot_panel, points
from experiments.classical.shared.mdp import MDP, one_hot
from experiments.figures.style import panels

SHORT = {"datasets": 4, "sizes": (50,), "thresholds": (0.0, 0.01, 0.2)}
THRESHOLDS = (0.0, 0.001, 0.002, 0.005, 0.01, 0.02, 0.04, 0.06, 0.1, 0.15, 0.2, 0.25, 0.3, 0.4, 0.5)
DISCOUNT, ITERATIONS = 0.9, 150
LARGEST = 1 / (1 - DISCOUNT)  # value of the largest reward forever
# States: low, high. Actions: stay, go to the high state (or stay there), rare, and one that is never in the data.
_LOW = [1.0, 0.0]
PROCESS = MDP(
    torch.tensor([[_LOW, [0.1, 0.9], _LOW, _LOW], [_LOW, [0.1, 0.9], _LOW, _LOW]], dtype=torch.float64),
    torch.tensor([[0.3, 0.0, 0.2, 0.0], [0.3, 0.8, 0.2, 0.0]], dtype=torch.float64),
    DISCOUNT,
    torch.tensor([1.0, 0.0], dtype=torch.float64),
)
BEHAVIOR = torch.tensor([[0.69, 0.3, 0.01, 0.0], [0.69, 0.3, 0.01, 0.0]], dtype=torch.float64)


class Data:
    """Data sets of transitions with rewards of 0 or 1, from the visits of the behavior policy.

    Args:
        size: Transitions in each data set.
        datasets: Number of data sets.
        seed: Seed of the random numbers.
    """

    def __init__(self, size: int, datasets: int, seed: int = 0) -> None:
        generator = torch.Generator().manual_seed(seed)
        states, actions = BEHAVIOR.shape
        share = density()
        pair = torch.multinomial(share.flatten(), size * datasets, replacement=True, generator=generator)
        entered = torch.multinomial(PROCESS.transitions.flatten(0, 1)[pair], 1, generator=generator).squeeze(-1)
        paid = torch.rand(len(pair), generator=generator, dtype=torch.float64) < PROCESS.rewards.flatten()[pair]
        number = torch.arange(datasets).repeat_interleave(size)
        counts = torch.zeros(datasets, states * actions, states, dtype=torch.float64)
        counts.index_put_((number, pair, entered), torch.ones(len(pair), dtype=torch.float64), accumulate=True)
        rewards = torch.zeros(datasets, states * actions, dtype=torch.float64)
        rewards.index_put_((number, pair), paid.double(), accumulate=True)
        visits = counts.sum(dim=-1)
        self.seen = (visits > 0).unflatten(-1, (states, actions))
        self.share = (visits / size).unflatten(-1, (states, actions))
        self.rewards = (rewards / visits.clamp(min=1)).unflatten(-1, (states, actions))
        self.transitions = (counts / visits.clamp(min=1).unsqueeze(-1)).unflatten(1, (states, actions))

    def backup(self, values: Tensor) -> Tensor:
        """Return the fitted values of each pair for values of the next state; shape `dataset state action`."""
        fitted = self.rewards + DISCOUNT * torch.einsum("dsan,dn->dsa", self.transitions, values)
        return torch.where(self.seen, fitted, LARGEST)


def density() -> Tensor:
    """Return the share of each state and action in the data of the behavior policy; shape `state action`."""
    return (1 - DISCOUNT) * PROCESS.occupancy(BEHAVIOR).unsqueeze(-1) * BEHAVIOR


def q_iteration(data: Data, threshold: float) -> Tensor:
    """Return the filtered values after MBS-QI; shape `dataset state action`.

    Args:
        data: Data sets.
        threshold: Smallest share $b$ that passes the filter; at 0 the result is that of fitted Q iteration.
    """
    passed = (data.share >= threshold).double()
    values = torch.full_like(data.rewards, LARGEST)
    for _ in range(ITERATIONS):
        values = data.backup((passed * values).amax(dim=-1))
    return passed * values


def policy_iteration(data: Data, threshold: float) -> Tensor:
    """Return the filtered values of the last policy of MBS-PI; shape `dataset state action`.

    Args:
        data: Data sets.
        threshold: Smallest share $b$ that passes the filter.
    """
    passed = (data.share >= threshold).double()
    values = torch.full_like(data.rewards, LARGEST)
    for _ in range(10):
        policy = one_hot((passed * values).argmax(dim=-1), values.shape[-1])
        for _ in range(ITERATIONS):
            values = data.backup((policy * passed * values).sum(dim=-1))
    return passed * values


def outcome(values: Tensor) -> tuple[Tensor, Tensor]:
    """Return the true value of the greedy policies at the start, and the one that they claim; shape `dataset`."""
    policy = one_hot(values.argmax(dim=-1), values.shape[-1])
    return PROCESS.expected(PROCESS.values(policy)), PROCESS.expected(values.amax(dim=-1))


def rows(datasets: int = 200, sizes: tuple[int, ...] = (50, 500), thresholds: tuple[float, ...] = THRESHOLDS) -> Table:
    """Return true and claimed values against the threshold.

    Args:
        datasets: Number of data sets of each size.
        sizes: Transitions in a data set.
        thresholds: Thresholds of the filter.
    """
    table: Table = []
    best = PROCESS.expected(PROCESS.optimal_values())
    behavior = PROCESS.expected(PROCESS.values(BEHAVIOR))
    for size in sizes:
        data = Data(size, datasets)
        true, claimed = zip(*(outcome(q_iteration(data, threshold)) for threshold in thresholds), strict=True)
        table += band("value", f"MBS-QI, {size} transitions", thresholds, torch.stack(true))
        table += band("claimed", f"{size} transitions", thresholds, torch.stack(claimed) - torch.stack(true))
        true, _ = zip(*(outcome(policy_iteration(data, threshold)) for threshold in thresholds), strict=True)
        table += band("value", f"MBS-PI, {size} transitions", thresholds, torch.stack(true))
    ends = (thresholds[0], thresholds[-1])
    table += points("value", "best policy", ends, (best, best))
    table += points("value", "behavior policy", ends, (behavior, behavior))
    return table


def plot(table: Table) -> Figure:
    """Return the plot of the table."""
    canvas, (value, claimed) = panels(1, 2, 11, 4.5)
    threshold = "threshold $b$ (share of the data), fitted Q iteration at 0"
    plot_panel(value, table, "value", (threshold, "value (discounted reward), median and 10% to 90%"))
    plot_panel(claimed, table, "claimed", (threshold, "claimed minus true value (discounted reward)"))
    for panel in (value, claimed):
        panel.set_xscale("symlog", linthresh=0.001)
        panel.set_xticks([0, 0.001, 0.01, 0.1, 0.5], ["0", "0.001", "0.01", "0.1", "0.5"])
        panel.minorticks_off()
    return canvas
