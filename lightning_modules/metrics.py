"""Metrics of one optimizer step, from sums and counts that do not depend on its split into micro-batches and ranks."""

from __future__ import annotations

import math

import torch
from lightning import Trainer
from torch import Tensor
from torchmetrics import Metric

from aggregate_po import (
    GradientWeights,
    PerCompletion,
    PerToken,
    PolicyBatch,
    effective_sample_size,
    masked_sum,
    weight_entropy,
)
from aggregate_po.bounds import MAX_LOG_RATIO, bounded, log_ratio_of
from lightning_modules.histograms import SignedLogBins
from lightning_modules.tally import Tally

_QUANTILES = (0.05, 0.5, 0.95)

# Bins of log ratios for the quantiles: the smallest is two millionths wide, each further one is wider by 2 %.
_BINS = SignedLogBins(finest=1e-4, width=0.02, largest=MAX_LOG_RATIO)


class GradientWeightMetrics(Metric):
    """Distribution of the gradient weights of one optimizer step over tokens, and distance from the behavior policy.

    `compute` returns these metrics by name:

    - `ratio/min`, `ratio/max` and `ratio/mean` of the token ratios, and the quantiles `ratio/quantile_05`, `_50` and
      `_95`, whose logarithms are exact to 2 %;
    - `kl_old`: k1 estimate of the KL divergence from the behavior policy, in nats;
    - `clip_ratio/low_mean`, `/high_mean` and `/region_mean`: fraction of tokens whose gradient is clipped to zero, with
      a negative advantage, with a positive advantage, and with either;
    - `weights/overflow`: fraction of tokens whose gradient is zero because the log ratio is out of bounds;
    - `weights/ess_fraction`: effective sample size of the concentration divided by the length, mean over completions;
    - `weights/entropy`: entropy of the concentration, in nats, mean over completions;
    - `exponent/mean`, `/min` and `/max` over completions, if a rule chooses the exponents.
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
    ratio_counts: Tensor
    exponents: Tensor
    exponent_sum: Tensor
    exponent_min: Tensor
    exponent_max: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._with_exponents = False
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
            "exponents",
            "exponent_sum",
        )
        for name in sums:
            self.add_state(name, torch.tensor(0.0, dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("ratio_min", torch.tensor(torch.inf, dtype=torch.double), dist_reduce_fx="min")
        self.add_state("ratio_max", torch.tensor(0.0, dtype=torch.double), dist_reduce_fx="max")
        self.add_state("exponent_min", torch.tensor(torch.inf, dtype=torch.double), dist_reduce_fx="min")
        self.add_state("exponent_max", torch.tensor(-torch.inf, dtype=torch.double), dist_reduce_fx="max")
        self.add_state("ratio_counts", torch.zeros(len(_BINS), dtype=torch.double), dist_reduce_fx="sum")

    @torch.no_grad()
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
        self.ratio_counts += torch.bincount(_BINS.numbers_of(bounded(log_ratio)[mask]), minlength=len(_BINS))
        if exponents is not None:
            self._count_exponents(exponents[nonempty].double())

    def _count_exponents(self, exponents: PerCompletion) -> None:
        self._with_exponents = True
        self.exponents += len(exponents)
        self.exponent_sum += exponents.sum()
        if len(exponents):
            self.exponent_min = torch.minimum(self.exponent_min, exponents.min())
            self.exponent_max = torch.maximum(self.exponent_max, exponents.max())

    def compute(self) -> dict[str, Tensor]:
        """Return the metrics by name, NaN if no token was counted; the class docstring lists them."""
        empty = self.tokens == 0
        quantiles = _BINS.quantiles(self.ratio_counts, _QUANTILES).exp()
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
            **{f"ratio/quantile_{100 * q:02.0f}": value for q, value in zip(_QUANTILES, quantiles, strict=True)},
            **(self._exponent_metrics() if self._with_exponents else {}),
        }

    def _exponent_metrics(self) -> dict[str, Tensor]:
        empty = self.exponents == 0
        return {
            "exponent/mean": self.exponent_sum / self.exponents,
            "exponent/min": torch.where(empty, torch.nan, self.exponent_min),
            "exponent/max": torch.where(empty, torch.nan, self.exponent_max),
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
