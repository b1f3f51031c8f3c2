r"""Policy iteration for the mean minus the variance of the average reward.

The objective is $J = \eta - \beta \sigma^2$ with the long-run mean $\eta$ of the reward and its variance $\sigma^2$. It
has no Bellman equation. The pseudo-reward $f = r - \beta (r - \eta)^2$ with the present mean has one, and greedy steps
on $f(s, a) + \sum_{s'} P(s' | s, a) g(s')$ never lower $J$, where $g$ is the potential of $f$.

Reference: arXiv:2008.03707.
"""

from __future__ import annotations

import itertools
from dataclasses import dataclass

import torch
from matplotlib.figure import Figure
from torch import Tensor

from experiments.classical.shared.curves import Table, band, plot_panel, points
from experiments.classical.shared.mdp import MDP, one_hot, random_mdp
from experiments.figures.style import panels

SHORT = {"processes": 2, "weights": (0.0, 2.0)}
WEIGHT, ITERATIONS, STARTS = 8.0, 6, 5


@dataclass(frozen=True)
class Evaluated:
    """Policies under the objective.

    Args:
        visits: Long-run share of each state; shape `... state`.
        mean: Mean reward; shape `...`.
        variance: Variance of the reward; shape `...`.
        objective: Mean minus the weighted variance; shape `...`.
        pseudo_rewards: Pseudo-reward of each action; shape `... state action`.
        potential: Solution of the Poisson equation of the pseudo-rewards; shape `... state`.
    """

    visits: Tensor
    mean: Tensor
    variance: Tensor
    objective: Tensor
    pseudo_rewards: Tensor
    potential: Tensor

    @classmethod
    def of(cls, process: MDP, policy: Tensor, weight: float) -> Evaluated:
        r"""Evaluate policies.

        Args:
            process: Process; its discount is not used.
            policy: Probability of each action; shape `... state action`.
            weight: Weight $\beta$ of the variance.
        """
        chain = process.chain(policy)
        identity, ones = torch.eye(chain.shape[-1]).double(), torch.ones_like(chain)
        # The shares solve x (I - P + 1 1^T) = 1^T, since x (I - P) = 0 and they sum to 1.
        system = (identity - chain + ones).transpose(-1, -2)
        visits = torch.linalg.solve(system, ones[..., :1]).squeeze(-1)
        frequency = visits.unsqueeze(-1) * policy
        mean = (frequency * process.rewards).sum(dim=(-2, -1))
        deviation = (process.rewards - mean[..., None, None]).square()
        variance = (frequency * deviation).sum(dim=(-2, -1))
        pseudo = process.rewards - weight * deviation
        expected = (policy * pseudo).sum(dim=-1, keepdim=True)
        system = identity - chain + visits.unsqueeze(-2).expand_as(chain)
        potential = torch.linalg.solve(system, expected).squeeze(-1)
        return cls(visits, mean, variance, mean - weight * variance, pseudo, potential)


def difference(process: MDP, old: Tensor, new: Tensor, weight: float) -> Tensor:
    r"""Return the difference formula, $\pi'^\top [(P' - P) g + f' - f] + \beta (\eta' - \eta)^2$; shape `...`.

    Args:
        process: Process.
        old: Policy whose potential and mean are used; shape `... state action`.
        new: Policy whose objective is compared with that of the old one; shape `... state action`.
        weight: Weight $\beta$ of the variance.
    """
    at, then = Evaluated.of(process, old, weight), Evaluated.of(process, new, weight)
    moved = (process.chain(new) - process.chain(old)) @ at.potential.unsqueeze(-1)
    paid = ((new - old) * at.pseudo_rewards).sum(dim=-1)
    return (then.visits * (moved.squeeze(-1) + paid)).sum(dim=-1) + weight * (then.mean - at.mean).square()


def improved(process: MDP, policy: Tensor, weight: float) -> Tensor:
    """Return the greedy policies, which keep an action unless another is better; shape `... state action`."""
    at = Evaluated.of(process, policy, weight)
    scores = at.pseudo_rewards + torch.einsum("san,...n->...sa", process.transitions, at.potential)
    return one_hot((scores + 1e-12 * policy).argmax(dim=-1), scores.shape[-1])


def deterministic(process: MDP) -> Tensor:
    """Return all deterministic policies; shape `policy state action`."""
    states, actions = process.rewards.shape
    return one_hot(torch.tensor(list(itertools.product(range(actions), repeat=states))), actions)


def rows(processes: int = 20, weights: tuple[float, ...] = (0.0, 1.0, 2.0, 3.0, 4.0, 6.0, 8.0, 12.0, 16.0)) -> Table:
    """Return iterations from some starts, the optimum against the weight, and the share of starts that reach it.

    Args:
        processes: Number of random processes, of 4 states and 4 actions.
        weights: Weights of the variance.
    """
    table: Table = []
    first = random_mdp(4, 4, 0.0, 0)
    every = deterministic(first)
    policy = every[:: len(every) // STARTS][:STARTS]
    found = [Evaluated.of(first, policy, WEIGHT).objective]
    for _ in range(ITERATIONS):
        policy = improved(first, policy, WEIGHT)
        found.append(Evaluated.of(first, policy, WEIGHT).objective)
    for number, objectives in enumerate(torch.stack(found).unbind(dim=-1)):
        table += points("iteration", f"start {number + 1}", range(ITERATIONS + 1), objectives)
    optimum = Evaluated.of(first, every, WEIGHT).objective.max()
    table += points("iteration", "best of 256 policies", (0, ITERATIONS), (optimum, optimum))
    reached, means, deviations = [], [], []
    for weight in weights:
        shares, best_means, best_deviations = [], [], []
        for seed in range(processes):
            process = random_mdp(4, 4, 0.0, seed)
            last = every
            for _ in range(4 * ITERATIONS):
                last = improved(process, last, weight)
            at = Evaluated.of(process, every, weight)
            final, best = Evaluated.of(process, last, weight).objective, at.objective.argmax()
            shares.append((final >= at.objective[best] - 1e-9).double().mean())
            best_means.append(at.mean[best])
            best_deviations.append(at.variance[best].sqrt())
        reached.append(torch.stack(shares))
        means.append(torch.stack(best_means))
        deviations.append(torch.stack(best_deviations))
    table += band("optimum", r"mean $\eta$", weights, torch.stack(means))
    table += band("optimum", r"standard deviation $\sigma$", weights, torch.stack(deviations))
    return table + band("reached", "256 starts in each process", weights, torch.stack(reached))


def plot(table: Table) -> Figure:
    """Return the plot of the table."""
    canvas, (iteration, optimum, reached) = panels(1, 3, 13, 4)
    plot_panel(iteration, table, "iteration", ("iteration", r"objective $\eta - 8 \sigma^2$ (reward)"))
    weight = r"weight $\beta$ of the variance (1 / reward)"
    plot_panel(optimum, table, "optimum", (weight, "best policy (reward)"))
    plot_panel(reached, table, "reached", (weight, "share that reaches the optimum"))
    reached.set_ylim(0, 1.05)
    return canvas
