"""Variance of the ratio as a cost."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from typing_extensions import override

from aggregate_po.arguments import require_non_negative
from aggregate_po.batch import PerToken, PolicyBatch
from aggregate_po.bounds import bounded, log_ratio_of
from aggregate_po.penalties.base import Penalty


@dataclass(frozen=True)
class RatioVariance(Penalty):
    r"""Cost $\lambda (r_t - 1)^2$, whose mean is the variance of the ratio, because $E_\mathrm{old}[r] = 1$ (eq. 22).

    With an unclipped arithmetic mean the gradient weight is $r (A - 2 \lambda (r - 1)) / n$: the effective advantage
    shrinks as the ratio moves in its direction, and changes sign at a distance of $|A| / 2\lambda$ from 1.

    Args:
        coefficient: Weight of the variance in the objective.

    Raises:
        ValueError: the coefficient is negative or not finite.

    `AdvantageWeighted(RatioVariance(...))` puts the change of sign at one distance for all advantages.

    Reference: R2VPO, arXiv:2601.03320.
    """

    coefficient: float = 1.0

    def __post_init__(self) -> None:
        require_non_negative("pass 0 for no penalty, or a positive weight that is finite", coefficient=self.coefficient)

    @override
    def token_costs(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        log_ratio = bounded(log_ratio_of(log_probs, batch.old_log_probs, batch.response_mask))
        return self.coefficient * (log_ratio.exp() - 1).square()

    @override
    def token_derivatives(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        log_ratio = log_ratio_of(log_probs, batch.old_log_probs, batch.response_mask)
        ratio = bounded(log_ratio).exp()
        return torch.where(bounded(log_ratio) == log_ratio, 2 * self.coefficient * (ratio - 1) * ratio, 0)
