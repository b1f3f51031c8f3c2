r"""Zero-sum games of a row player who maximizes and a column player who minimizes, solved exactly in float64.

With entropies of weight $\tau$ the equilibrium is the quantal response equilibrium: $\mu = \mathrm{softmax}(A\nu/\tau)$
and $\nu = \mathrm{softmax}(-A^\top\mu/\tau)$.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

Policies = tuple[Tensor, Tensor]  # logarithms of the row player's and of the column player's


def entropy(log_policy: Tensor) -> Tensor:
    """Return the entropy of a policy in nats; shape `...`."""
    return -(log_policy.exp() * log_policy).sum(dim=-1)


def gap(payoff: Tensor, row: Tensor, column: Tensor) -> Tensor:
    r"""Return the duality gap $\max_i (A\nu)_i - \min_j (A^\top\mu)_j$, which is 0 at a Nash equilibrium; shape `...`.

    Args:
        payoff: Payoff of the row player; shape `row column`.
        row: Policy of the row player; shape `... row`.
        column: Policy of the column player; shape `... column`.
    """
    return (column @ payoff.T).amax(dim=-1) - (row @ payoff).amin(dim=-1)


def quantal_response(payoff: Tensor, temperature: float, start: Policies | None = None) -> Policies:
    """Return the quantal response equilibrium of a matrix game, by Newton's method.

    Args:
        payoff: Payoff of the row player; shape `row column`.
        temperature: Weight of the entropies, positive.
        start: Policies close to the equilibrium; without them the temperature falls from one at which any are close.
    """
    weight = max(temperature, float(payoff.abs().max())) if start is None else temperature
    row, column = start or (torch.zeros_like(side).log_softmax(dim=-1) for side in (payoff[:, 0], payoff[0]))
    while True:
        row, column = _newton(payoff, weight, row, column)
        if weight == temperature:
            return row, column
        weight = max(temperature, 0.7 * weight)


def _newton(payoff: Tensor, weight: float, row: Tensor, column: Tensor) -> Policies:
    """Return the solution of both equations in the logarithms of the policies."""
    split = len(row)
    for _ in range(200):
        best_row = (payoff @ column.exp() / weight).log_softmax(dim=-1)
        best_column = (-row.exp() @ payoff / weight).log_softmax(dim=-1)
        slopes = torch.eye(split + len(column), dtype=payoff.dtype)
        by_column, by_row = payoff * column.exp() / weight, payoff.T * row.exp() / weight
        slopes[:split, split:] = best_row.exp() @ by_column - by_column
        slopes[split:, :split] = by_row - best_column.exp() @ by_row
        change = torch.linalg.solve(slopes, torch.cat([row - best_row, column - best_column]))
        largest = float(change.abs().max())
        change = change * min(1.0, 0.5 / max(largest, 1e-300))  # far away Newton's step may be much too long
        row, column = row - change[:split], column - change[split:]
        if largest < 1e-12:
            return row, column
    raise ArithmeticError(f"Newton's method does not converge at temperature {weight}; pass a higher one.")


@dataclass(frozen=True)
class MarkovGame:
    r"""Zero-sum Markov game with discounted rewards.

    Args:
        transitions: Probability of each next state; shape `state row column next`.
        rewards: Reward of the row player, which the column player pays; shape `state row column`.
        discount: Discount $\gamma$, from 0 to below 1.
    """

    transitions: Tensor
    rewards: Tensor
    discount: float

    @classmethod
    def random(cls, states: int, actions: int, discount: float, seed: int) -> MarkovGame:
        """Return a game with transitions from a uniform Dirichlet distribution and rewards in [-1, 1].

        Args:
            states: Number of states.
            actions: Number of actions of each player.
            discount: Discount of rewards.
            seed: Seed of the random numbers.
        """
        generator = torch.Generator().manual_seed(seed)
        weights = -torch.rand(states, actions, actions, states, generator=generator, dtype=torch.float64).log()
        rewards = 2 * torch.rand(states, actions, actions, generator=generator, dtype=torch.float64) - 1
        return cls(weights / weights.sum(dim=-1, keepdim=True), rewards, discount)

    def payoffs(self, values: Tensor) -> Tensor:
        """Return the payoffs of each state, for values of the next one; shape `state row column`."""
        return self.rewards + self.discount * self.transitions @ values

    def equilibrium(self, temperature: float) -> Policies:
        """Return the quantal response equilibrium, by iterating the values of the states' matrix games.

        Args:
            temperature: Weight of the entropies, positive.
        """
        values = torch.zeros(len(self.rewards), dtype=torch.float64)
        solved: list[Policies | None] = [None] * len(values)
        while True:
            payoffs = self.payoffs(values)
            solved = [quantal_response(payoff, temperature, near) for payoff, near in zip(payoffs, solved, strict=True)]
            row, column = (torch.stack(policies) for policies in zip(*solved, strict=True))
            outcome = torch.einsum("sr,src,sc->s", row.exp(), payoffs, column.exp())
            outcome = outcome + temperature * (entropy(row) - entropy(column))
            if (outcome - values).abs().max() < 1e-11:
                return row, column
            values = outcome
