"""Multiplicative weights of two players of a zero-sum game, in the logarithm, with entropy and with prediction."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from experiments.classical.shared.games import Policies


@dataclass(frozen=True)
class Play:
    """Log-policies of both players, and those that each predicts of the other; shape `... action`."""

    row: Tensor
    column: Tensor
    predicted_row: Tensor
    predicted_column: Tensor

    @classmethod
    def uniform(cls, payoff: Tensor) -> Play:
        """Return uniform policies for a game of shape `... row column`."""
        row, column = (torch.zeros_like(payoff[..., 0]), torch.zeros_like(payoff[..., 0, :]))
        return cls(*(policy.log_softmax(dim=-1) for policy in (row, column, row, column)))

    def step(self, payoff: Tensor, temperature: float, step_size: float, optimistic: bool = True) -> Play:
        r"""Return the policies after a step, $\mu^+ \propto \mu^{1 - \eta\tau} e^{\eta A \bar\nu^+}$ for the row.

        Args:
            payoff: Payoff $A$ of the row player; shape `... row column`.
            temperature: Weight $\tau$ of the entropies.
            step_size: Step size $\eta$.
            optimistic: Whether players predict; without, they step against the present policies.
        """
        seen = self.row, self.column
        if optimistic:
            seen = self._answers(payoff, self.predicted_row, self.predicted_column, temperature, step_size)
        return Play(*self._answers(payoff, *seen, temperature, step_size), *seen)

    def _answers(self, payoff: Tensor, row: Tensor, column: Tensor, temperature: float, step_size: float) -> Policies:
        gain = torch.einsum("...rc,...c->...r", payoff, column.exp())
        loss = torch.einsum("...rc,...r->...c", payoff, row.exp())
        kept = 1 - step_size * temperature
        return (
            (kept * self.row + step_size * gain).log_softmax(dim=-1),
            (kept * self.column - step_size * loss).log_softmax(dim=-1),
        )
