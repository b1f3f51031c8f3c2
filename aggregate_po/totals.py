"""Totals of the optimizer step, which every part may divide by or follow."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from torch import Tensor

from aggregate_po.masked import masked_length
from aggregate_po.shapes import PerToken


@dataclass(frozen=True)
class StepTotals:
    """Counts over the whole optimizer step: every rank and every accumulated micro-batch.

    Args:
        completions: completions with at least one response token.
        tokens: response tokens, or the sum of their `mean_weights`.
        progress: fraction of training completed, from 0 to 1; read by scheduled rules.
        reward_mean: mean reward of the step, for rules that follow the reward.
        reward_std: standard deviation of the rewards of the step, for rules that follow the reward.
    """

    completions: float | Tensor
    tokens: float | Tensor
    progress: float = 0.0
    reward_mean: float | Tensor | None = None
    reward_std: float | Tensor | None = None

    @classmethod
    def of(cls, response_mask: PerToken, mean_weights: PerToken | None = None, **more: Any) -> StepTotals:
        """Return the totals of a step that consists of this one batch; empty rows are not counted."""
        counted = response_mask.bool() if mean_weights is None else response_mask.bool() & (mean_weights > 0)
        return cls(counted.any(dim=-1).sum(), masked_length(counted, mean_weights).sum(), **more)

    def required(self, name: str, reader: object) -> float | Tensor:
        """Return the field of this name, for a part that requires it.

        Raises:
            ValueError: the field is None.
        """
        value = getattr(self, name)
        if value is None:
            raise ValueError(
                f"`totals.{name}` is None, but {type(reader).__name__} follows it; pass it to StepTotals, as "
                "RolloutDataModule does."
            )
        return value
