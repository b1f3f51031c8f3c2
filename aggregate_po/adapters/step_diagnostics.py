"""Metrics of an optimizer step and observations of its penalties, as sums over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregate_po.batch import PerToken, PolicyBatch
from aggregate_po.gradient_weights import Evaluated
from aggregate_po.masked import masked_sum
from aggregate_po.weight_sums import GradientWeightSums


@dataclass(frozen=True)
class StepDiagnostics:
    """Sums over some micro-batches of an optimizer step.

    Args:
        weights: Sums of the gradient weights.
        tally: Tokens, loss, entropy, KL to the reference and what each penalty observed; float64, shape `sum`.
        has_reference: Whether the KL to a reference was measured.
    """

    weights: GradientWeightSums
    tally: Tensor
    has_reference: bool

    @classmethod
    @torch.no_grad()
    def of(cls, evaluated: Evaluated, log_probs: PerToken, entropies: PerToken, batch: PolicyBatch) -> StepDiagnostics:
        """Return the sums of one micro-batch; log-probabilities and entropies have shape `batch time`, in nats."""
        mask, kl = batch.response_mask, evaluated.value.new_zeros(())
        if batch.ref_log_probs is not None:
            log_ratio = log_probs - batch.ref_log_probs
            kl = masked_sum(torch.expm1(-log_ratio) + log_ratio, mask).sum()
        sums = (mask.sum(), -evaluated.value, masked_sum(entropies, mask).sum(), kl)
        tally = torch.cat([torch.stack([value.double() for value in sums]), evaluated.observed.double()])
        weights = GradientWeightSums.of(evaluated.weights, log_probs, batch, evaluated.exponents)
        return cls(weights, tally, batch.ref_log_probs is not None)

    def __add__(self, other: StepDiagnostics) -> StepDiagnostics:
        return StepDiagnostics(self.weights + other.weights, self.tally + other.tally, self.has_reference)

    def over_ranks(
        self, reduce: Callable[[Tensor], Tensor], gather: Callable[[Tensor], Tensor]
    ) -> tuple[dict[str, float], list[float]]:
        """Return the metrics of the step by name, and what each penalty observed, in two collectives.

        Args:
            reduce: Function that returns the sum of a tensor over the ranks.
            gather: Function that returns the rows of all ranks, see `GradientWeightSums.over_ranks`.
        """
        tokens, loss, entropy, kl, *observed = reduce(self.tally).tolist()
        metrics = {name: float(value) for name, value in self.weights.over_ranks(gather).metrics().items()}
        metrics |= {"policy_loss": loss, "entropy": entropy / max(tokens, 1.0)}
        if self.has_reference:
            metrics["kl"] = kl / max(tokens, 1.0)
        return metrics, observed
