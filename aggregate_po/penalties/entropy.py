"""Entropy bonus."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from typing_extensions import override

from aggregate_po.arguments import require_non_negative
from aggregate_po.batch import PerToken, PolicyBatch
from aggregate_po.bounds import bounded, log_ratio_of
from aggregate_po.penalties.base import Penalty


@dataclass(frozen=True)
class EntropyBonus(Penalty):
    r"""Entropy bonus estimated from the sampled tokens: cost $\beta\, r_t \log \pi_\theta(o_t)$.

    The tokens come from the behavior policy; the ratio $r_t$ makes the estimate and its gradient
    $\beta\, r_t (\log \pi_\theta + 1)$ unbiased for the entropy of $\pi_\theta$. Like every other part, the bonus
    depends on the model through the log-probabilities of the sampled tokens only.

    Args:
        coefficient: Weight $\beta$ of the bonus in the objective.

    Raises:
        ValueError: the coefficient is negative or not finite.
    """

    coefficient: float

    # Larger than any -log-probability of a token; with the bound on the ratio, the product stays finite.
    _limit = 1e4

    def __post_init__(self) -> None:
        require_non_negative("pass 0 for no bonus, or a positive weight that is finite", coefficient=self.coefficient)

    @override
    def token_costs(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        log_ratio = bounded(log_ratio_of(log_probs, batch.old_log_probs, batch.response_mask))
        return self.coefficient * log_ratio.exp() * log_probs.clamp(-self._limit, self._limit)

    @override
    def token_derivatives(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        log_ratio = log_ratio_of(log_probs, batch.old_log_probs, batch.response_mask)
        clamped = log_probs.clamp(-self._limit, self._limit)
        ratio_slope = torch.where(bounded(log_ratio) == log_ratio, clamped, 0)
        value_slope = (clamped == log_probs).to(log_probs.dtype)
        return self.coefficient * bounded(log_ratio).exp() * (ratio_slope + value_slope)
