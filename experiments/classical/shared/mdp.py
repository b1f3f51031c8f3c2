"""Markov decision processes with a few states, solved exactly in float64.

Leading dimensions of policies, such as runs, are independent.
"""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor


@dataclass(frozen=True)
class MDP:
    r"""Markov decision process with discounted rewards.

    Args:
        transitions: Probability of each next state; shape `... state action next`.
        rewards: Expected reward; shape `state action`.
        discount: Discount $\gamma$, from 0 to below 1.
        start: Distribution $\rho$ of the first state; shape `state`.

    Raises:
        ValueError: shapes disagree, probabilities do not sum to 1, or the discount is not below 1.
    """

    transitions: Tensor
    rewards: Tensor
    discount: float
    start: Tensor

    def __post_init__(self) -> None:
        states, actions = self.rewards.shape
        shape = tuple(self.transitions.shape[-3:])
        if shape != (states, actions, states):
            raise ValueError(
                f"`transitions` has shape {shape}, but `rewards` has shape {states, actions}; pass shape "
                "`state action next`."
            )
        for name, table in (("transitions", self.transitions), ("start", self.start)):
            if not torch.allclose(table.sum(dim=-1), torch.ones((), dtype=table.dtype)) or (table < 0).any():
                raise ValueError(f"`{name}` has rows that sum to {table.sum(dim=-1)}; pass probabilities.")
        if not 0 <= self.discount < 1:
            raise ValueError(f"`discount` is {self.discount}; pass a number from 0 to below 1.")

    def chain(self, policy: Tensor) -> Tensor:
        """Return the transition probabilities under a policy; shape `... state next`."""
        return torch.einsum("...sa,...san->...sn", policy, self.transitions)

    def values(self, policy: Tensor, rewards: Tensor | None = None) -> Tensor:
        r"""Return the value $V$ of each state under a policy; shape `... state`.

        Args:
            policy: Probability of each action; shape `... state action`.
            rewards: Rewards in place of those of the process, such as costs; shape `... state action`.
        """
        expected = (policy * (self.rewards if rewards is None else rewards)).sum(dim=-1, keepdim=True)
        return torch.linalg.solve(self._resolvent(policy), expected).squeeze(-1)

    def action_values(self, policy: Tensor, rewards: Tensor | None = None) -> Tensor:
        r"""Return the value $Q$ of each action, after which the policy is followed; shape `... state action`."""
        return self.one_step(self.values(policy, rewards), rewards)

    def one_step(self, values: Tensor, rewards: Tensor | None = None) -> Tensor:
        r"""Return $r + \gamma P V$ for values of the next state; shape `... state action`.

        Args:
            values: Values $V$; shape `... state`.
            rewards: Rewards in place of those of the process; shape `... state action`.
        """
        future = torch.einsum("...san,...n->...sa", self.transitions, values)
        return (self.rewards if rewards is None else rewards) + self.discount * future

    def occupancy(self, policy: Tensor) -> Tensor:
        r"""Return the discounted number of visits of each state, $\sum_t \gamma^t P(s_t = s)$; shape `... state`."""
        transposed = self._resolvent(policy).transpose(-1, -2)
        start = self.start.expand(*transposed.shape[:-1]).unsqueeze(-1)
        return torch.linalg.solve(transposed, start).squeeze(-1)

    def expected(self, values: Tensor) -> Tensor:
        r"""Return the expected value of the first state, $V(\rho)$; shape `...`."""
        return values @ self.start

    def optimal_values(self) -> Tensor:
        """Return the value of each state under the best policy, by policy iteration; shape `state`."""
        best = torch.zeros(len(self.start), dtype=torch.long)
        while True:
            values = self.action_values(one_hot(best, self.rewards.shape[-1]))
            current = values.gather(-1, best.unsqueeze(-1)).squeeze(-1)
            # An action that is better by rounding only does not count.
            if (values.amax(dim=-1) <= current + 1e-12).all():
                return current
            best = values.argmax(dim=-1)

    def _resolvent(self, policy: Tensor) -> Tensor:
        return torch.eye(len(self.start), dtype=policy.dtype) - self.discount * self.chain(policy)


def one_hot(actions: Tensor, count: int) -> Tensor:
    """Return the policy that chooses these actions; shape `... state action`.

    Args:
        actions: Action of each state; shape `... state`.
        count: Number of actions.
    """
    return torch.nn.functional.one_hot(actions, count).double()


def random_mdp(states: int, actions: int, discount: float, seed: int) -> MDP:
    """Return a process with transitions from a uniform Dirichlet distribution, rewards in [0, 1], a uniform start.

    Args:
        states: Number of states.
        actions: Number of actions.
        discount: Discount of rewards.
        seed: Seed of the random numbers.
    """
    generator = torch.Generator().manual_seed(seed)
    weights = -torch.rand(states, actions, states, generator=generator, dtype=torch.float64).log()
    rewards = torch.rand(states, actions, generator=generator, dtype=torch.float64)
    start = torch.full((states,), 1 / states, dtype=torch.float64)
    return MDP(weights / weights.sum(dim=-1, keepdim=True), rewards, discount, start)
