"""Totals of the optimizer step, which every part may divide by or follow."""

from __future__ import annotations

from collections.abc import Callable, Iterable
from dataclasses import dataclass, replace
from typing import Any

import torch
from torch import Tensor

from aggregate_po.masked import masked_length
from aggregate_po.shapes import PerToken


@dataclass(frozen=True)
class StepTotals:
    """Counts over the whole optimizer step: every rank and every accumulated micro-batch.

    Args:
        completions: completions with at least one response token.
        tokens: response tokens, or the sum of their `mean_weights`.
        progress: fraction of training completed, from 0 to 1, for scheduled rules; None if unknown.
        reward_mean: mean reward of the rollout of the step, for rules that follow the reward.
        reward_std: standard deviation of the rewards of the rollout of the step, for rules that follow the reward.
    """

    completions: float | Tensor
    tokens: float | Tensor
    progress: float | None = None
    reward_mean: float | Tensor | None = None
    reward_std: float | Tensor | None = None

    @classmethod
    def of(cls, response_mask: PerToken, mean_weights: PerToken | None = None, **more: Any) -> StepTotals:
        """Return the totals of a step that consists of this one batch; empty rows are not counted."""
        counted = response_mask.bool() if mean_weights is None else response_mask.bool() & (mean_weights > 0)
        return cls(counted.any(dim=-1).sum(), masked_length(counted, mean_weights).sum(), **more)

    @classmethod
    def over(
        cls,
        response_masks: Iterable[PerToken],
        mean_weights: Iterable[PerToken | None] | None = None,
        sum_over_ranks: Callable[[Tensor], Tensor] | None = None,
        **more: Any,
    ) -> StepTotals:
        """Return the totals of a step that consists of several micro-batches, on several ranks.

        Args:
            response_masks: Mask of each micro-batch of the step on this rank, at least one; each of shape `batch time`.
            mean_weights: Weights of the tokens of each micro-batch, or None for it; None counts every token once.
            sum_over_ranks: Function that returns the sum of a tensor over the ranks, such as an all-reduce; it is
                called once, with the counts of this rank, float64 of shape `(2,)`. None means a single rank.
            more: The other fields.

        Raises:
            ValueError: there is no micro-batch, or not one entry of weights for each.

        Example:
            >>> StepTotals.over([torch.ones(2, 3), torch.ones(1, 2)]).tokens
            tensor(8., dtype=torch.float64)
        """
        masks = list(response_masks)
        if not masks:
            raise ValueError("`response_masks` is empty; pass the mask of each micro-batch of the step.")
        weights = [None] * len(masks) if mean_weights is None else list(mean_weights)
        if len(weights) != len(masks):
            raise ValueError(
                f"`mean_weights` has {len(weights)} entries, but `response_masks` has {len(masks)}; pass one, or None, "
                "for each micro-batch."
            )
        parts = [cls.of(mask, weight) for mask, weight in zip(masks, weights, strict=True)]
        both = [(torch.as_tensor(part.completions), torch.as_tensor(part.tokens)) for part in parts]
        counts = torch.stack([torch.stack(pair).double() for pair in both]).sum(dim=0)
        if sum_over_ranks is not None:
            counts = sum_over_ranks(counts)
        return cls(counts[0], counts[1], **more)

    def on(self, device: torch.device | str) -> StepTotals:
        """Return a copy with its tensors on a device; counts keep their dtype, which half precision would round."""
        moved: dict[str, Any] = {
            name: value.to(device) for name, value in vars(self).items() if isinstance(value, Tensor)
        }
        return replace(self, **moved)

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
