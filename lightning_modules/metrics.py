"""Metrics of one optimizer step, from sums and counts that do not depend on its split into micro-batches and ranks."""

from __future__ import annotations

import math

import torch
from lightning import Trainer
from torch import Tensor
from torchmetrics import Metric

from aggregate_po import GradientWeights, GradientWeightSums, PerCompletion, PerToken, PolicyBatch, masked_sum
from lightning_modules.tally import Tally


class GradientWeightMetrics(Metric):
    """Distribution of the gradient weights of one optimizer step over tokens, and distance from the behavior policy.

    The metrics are those of `aggregate_po.GradientWeightSums.metrics`, by the same names.
    """

    full_state_update = False
    sums: Tensor
    minima: Tensor

    def __init__(self) -> None:
        super().__init__()
        none = GradientWeightSums.none()
        self.add_state("sums", none.sums, dist_reduce_fx="sum")
        self.add_state("minima", none.minima, dist_reduce_fx="min")

    def update(
        self,
        weights: GradientWeights,
        log_probs: PerToken,
        batch: PolicyBatch,
        exponents: PerCompletion | None = None,
    ) -> None:
        """Count one micro-batch.

        Args:
            weights: gradient weights of the objective on this micro-batch.
            log_probs: log-probabilities under the current policy; shape `batch time`; nats.
            batch: the micro-batch as the objective receives it.
            exponents: exponent that a rule chose for each completion, None without a rule; shape `batch`.
        """
        total = GradientWeightSums(self.sums, self.minima) + GradientWeightSums.of(weights, log_probs, batch, exponents)
        self.sums, self.minima = total.sums, total.minima

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics by name, NaN if no token was counted."""
        return GradientWeightSums(self.sums, self.minima).metrics()


class UpdateMetrics:
    """Loss, entropy and divergence from the reference of one optimizer step."""

    def __init__(self) -> None:
        self._sums: dict[str, Tensor] = {}  # on their device, for which no micro-batch waits

    @torch.no_grad()
    def update(self, value: Tensor, entropy: PerToken, log_probs: PerToken, batch: PolicyBatch) -> None:
        """Count one micro-batch.

        The divergence is `ref_divergence` where the batch has it, and the k3 estimate otherwise: log-probabilities that
        are averages over latent dimensions are no estimate of it, since they hardly vary.

        Args:
            value: value of the objective.
            entropy: entropy of the distribution of each token; shape `batch time`; nats.
            log_probs: log-probabilities under the current policy; shape `batch time`; nats.
            batch: the micro-batch as the objective receives it.
        """
        mask = batch.response_mask
        sums = {"tokens": mask.sum(), "policy_loss": -value, "entropy": masked_sum(entropy, mask).sum()}
        if batch.ref_divergence is not None:
            sums["kl"] = masked_sum(batch.ref_divergence, mask).sum()
        elif batch.ref_log_probs is not None:
            log_ratio = log_probs - batch.ref_log_probs
            sums["kl"] = masked_sum(torch.expm1(-log_ratio) + log_ratio, mask).sum()
        self._sums = {name: self._sums.get(name, 0) + term.detach().double() for name, term in sums.items()}

    def compute(self, trainer: Trainer) -> dict[str, float]:
        """Return `policy_loss`, and `entropy` and `kl` per token (NaN if no token was counted), and reset the sums."""
        sums = dict(Tally.of(**self._sums).over_ranks(trainer).sums)
        self._sums = {}
        tokens = sums.pop("tokens")
        per_token = 1 / tokens if tokens else math.nan
        return {name: total if name == "policy_loss" else total * per_token for name, total in sums.items()}
