"""Metrics of one optimizer step, from sums and counts that do not depend on its split into micro-batches and ranks."""

from __future__ import annotations

import math

import torch
from lightning import Trainer
from torch import Tensor
from torchmetrics import Metric

from aggregate_po import GradientWeights, PerToken, PolicyBatch, effective_sample_size, masked_sum, weight_entropy
from aggregate_po.bounds import bounded, log_ratio_of
from lightning_modules.tally import Tally


class GradientWeightMetrics(Metric):
    """Distribution of the gradient weights of one optimizer step over tokens, and distance from the behavior policy.

    `compute` returns these metrics by name:

    - `ratio/min`, `ratio/max` and `ratio/mean` of the token ratios;
    - `kl_old`: k1 estimate of the KL divergence from the behavior policy, in nats;
    - `clip_ratio/low_mean`, `/high_mean` and `/region_mean`: fraction of tokens whose gradient is clipped to zero, with
      a negative advantage, with a positive advantage, and with either;
    - `weights/overflow`: fraction of tokens whose gradient is zero because the log ratio is out of bounds;
    - `weights/ess_fraction`: effective sample size of the concentration divided by the length, mean over completions;
    - `weights/entropy`: entropy of the concentration, in nats, mean over completions.
    """

    full_state_update = False
    tokens: Tensor
    completions: Tensor
    ratio_sum: Tensor
    log_ratio_sum: Tensor
    ratio_min: Tensor
    ratio_max: Tensor
    clipped_low: Tensor
    clipped_high: Tensor
    overflow: Tensor
    ess_fraction: Tensor
    entropy: Tensor

    def __init__(self) -> None:
        super().__init__()
        sums = (
            "tokens",
            "completions",
            "ratio_sum",
            "log_ratio_sum",
            "clipped_low",
            "clipped_high",
            "overflow",
            "ess_fraction",
            "entropy",
        )
        for name in sums:
            self.add_state(name, torch.tensor(0.0, dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("ratio_min", torch.tensor(torch.inf, dtype=torch.double), dist_reduce_fx="min")
        self.add_state("ratio_max", torch.tensor(0.0, dtype=torch.double), dist_reduce_fx="max")

    @torch.no_grad()
    def update(self, weights: GradientWeights, log_probs: PerToken, batch: PolicyBatch) -> None:
        """Count one micro-batch.

        Args:
            weights: gradient weights of the objective on this micro-batch.
            log_probs: log-probabilities under the current policy; shape `batch time`; nats.
            batch: the micro-batch as the objective receives it.
        """
        mask = batch.response_mask
        log_ratio = log_ratio_of(log_probs, batch.old_log_probs, mask)
        ratio = bounded(log_ratio).exp()
        clipped = weights.clipped
        lengths = mask.sum(dim=-1)
        ess_fraction = effective_sample_size(weights.concentration) / lengths.clamp(min=1)
        nonempty = lengths > 0
        self.tokens += mask.sum()
        self.completions += nonempty.sum()
        self.ratio_sum += masked_sum(ratio, mask).sum()
        self.log_ratio_sum += masked_sum(log_ratio, mask).sum()
        self.clipped_low += (clipped & (weights.advantages < 0)).sum()
        self.clipped_high += (clipped & (weights.advantages > 0)).sum()
        self.overflow += weights.overflow.sum()
        self.ess_fraction += ess_fraction.sum()
        self.entropy += weight_entropy(weights.concentration).sum()
        self.ratio_min = torch.minimum(self.ratio_min, torch.where(mask, ratio, torch.inf).min().double())
        self.ratio_max = torch.maximum(self.ratio_max, torch.where(mask, ratio, 0).max().double())

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics by name, NaN if no token was counted; the class docstring lists them."""
        empty = self.tokens == 0
        return {
            "ratio/min": torch.where(empty, torch.nan, self.ratio_min),
            "ratio/max": torch.where(empty, torch.nan, self.ratio_max),
            "ratio/mean": self.ratio_sum / self.tokens,
            "kl_old": -self.log_ratio_sum / self.tokens,
            "clip_ratio/low_mean": self.clipped_low / self.tokens,
            "clip_ratio/high_mean": self.clipped_high / self.tokens,
            "clip_ratio/region_mean": (self.clipped_low + self.clipped_high) / self.tokens,
            "weights/overflow": self.overflow / self.tokens,
            "weights/ess_fraction": self.ess_fraction / self.completions,
            "weights/entropy": self.entropy / self.completions,
        }


class UpdateMetrics:
    """Loss, entropy and divergence from the reference of one optimizer step."""

    def __init__(self) -> None:
        self._tally = Tally()

    @torch.no_grad()
    def update(self, value: Tensor, entropy: PerToken, log_probs: PerToken, batch: PolicyBatch) -> None:
        """Count one micro-batch.

        Args:
            value: value of the objective.
            entropy: entropy of the distribution of each token; shape `batch time`; nats.
            log_probs: log-probabilities under the current policy; shape `batch time`; nats.
            batch: the micro-batch as the objective receives it.
        """
        mask = batch.response_mask
        sums = {"tokens": mask.sum(), "policy_loss": -value, "entropy": masked_sum(entropy, mask).sum()}
        if batch.ref_log_probs is not None:
            log_ratio = log_probs - batch.ref_log_probs
            sums["kl"] = masked_sum(torch.expm1(-log_ratio) + log_ratio, mask).sum()
        self._tally += Tally.of(**sums)

    def compute(self, trainer: Trainer) -> dict[str, float]:
        """Return `policy_loss`, and `entropy` and `kl` per token (NaN if no token was counted), and reset the sums."""
        sums = dict(self._tally.over_ranks(trainer).sums)
        self._tally = Tally()
        tokens = sums.pop("tokens")
        per_token = 1 / tokens if tokens else math.nan
        return {name: total if name == "policy_loss" else total * per_token for name, total in sums.items()}
