"""Sums and counts over the gradient weights of an optimizer step, which add up over micro-batches and ranks."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregate_po.batch import PerCompletion, PerToken, PolicyBatch
from aggregate_po.bounds import MAX_LOG_RATIO, bounded, log_ratio_of
from aggregate_po.geometry.measures import effective_sample_size, weight_entropy
from aggregate_po.gradient_weights import GradientWeights
from aggregate_po.histograms import SignedLogBins
from aggregate_po.masked import masked_sum

_SUMS = (
    "tokens",
    "completions",
    "ratio",
    "log_ratio",
    "clipped_low",
    "clipped_high",
    "overflow",
    "ess_fraction",
    "entropy",
    "with_exponents",  # micro-batches
    "exponents",
    "exponent",
)
_QUANTILES = (0.05, 0.5, 0.95)

# Bins of log ratios for the quantiles: the smallest is two millionths wide, each further one is wider by 2 %.
_BINS = SignedLogBins(finest=1e-4, width=0.02, largest=MAX_LOG_RATIO)


@dataclass(frozen=True)
class GradientWeightSums:
    """Diagnostics of an optimizer step as numbers that do not depend on its split into micro-batches and ranks.

    Args:
        sums: Sums and counts over tokens and completions, and the histogram of the log ratios; float64, shape `sum`.
        minima: Smallest ratio and exponent, and the largest of each with the other sign; float64, shape `(4,)`.

    Example:
        >>> from aggregate_po.recipes import grpo
        >>> batch = PolicyBatch(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1))
        >>> log_probs = torch.tensor([[0.1, 0.5]])
        >>> step = GradientWeightSums.of(grpo().gradient_weights(log_probs, batch), log_probs, batch)
        >>> (step + step).metrics()["clip_ratio/high_mean"]
        tensor(0.5000, dtype=torch.float64)
    """

    sums: Tensor
    minima: Tensor

    @classmethod
    def none(cls) -> GradientWeightSums:
        """Return the sums of no micro-batch, to add others to."""
        zeros = torch.zeros(len(_SUMS) + len(_BINS), dtype=torch.double)
        return cls(zeros, torch.tensor([torch.inf, torch.inf, 0.0, torch.inf], dtype=torch.double))

    @classmethod
    @torch.no_grad()
    def of(
        cls,
        weights: GradientWeights,
        log_probs: PerToken,
        batch: PolicyBatch,
        exponents: PerCompletion | None = None,
    ) -> GradientWeightSums:
        """Return the sums of one micro-batch.

        Args:
            weights: Gradient weights of the objective on this micro-batch.
            log_probs: Log-probabilities under the current policy; shape `batch time`; nats.
            batch: The micro-batch as the objective receives it.
            exponents: Exponent that a rule chose for each completion, None without a rule; shape `batch`.
        """
        mask, advantages = batch.response_mask, weights.advantages
        log_ratio = log_ratio_of(log_probs, batch.old_log_probs, mask)
        ratio = bounded(log_ratio).exp()
        lengths = mask.sum(dim=-1)
        nonempty = lengths > 0
        # Rows and tokens that do not count take part as 0 or infinity: to leave them out, the host would have to wait.
        known = nonempty & (exponents is not None)
        chosen = (lengths if exponents is None else exponents).double()
        values = {
            "tokens": mask.sum(),
            "completions": nonempty.sum(),
            "ratio": masked_sum(ratio, mask).sum(),
            "log_ratio": masked_sum(log_ratio, mask).sum(),
            "clipped_low": (weights.clipped & (advantages < 0)).sum(),
            "clipped_high": (weights.clipped & (advantages > 0)).sum(),
            "overflow": weights.overflow.sum(),
            "ess_fraction": (effective_sample_size(weights.concentration) / lengths.clamp(min=1)).sum(),
            "entropy": weight_entropy(weights.concentration).sum(),
            "with_exponents": lengths.new_tensor(exponents is not None),
            "exponents": known.sum(),
            "exponent": torch.where(known, chosen, 0).sum(),
        }
        bins = _BINS.numbers_of(bounded(log_ratio)).flatten()
        counts = torch.zeros(len(_BINS), dtype=torch.double, device=mask.device)
        counts = counts.index_add(0, bins, mask.flatten().double())
        minima = (
            _smallest(torch.where(mask, ratio, torch.inf)),
            _smallest(torch.where(known, chosen, torch.inf)),
            _smallest(torch.where(mask, -ratio, 0), of_none=0.0),
            _smallest(torch.where(known, -chosen, torch.inf)),
        )
        return cls(
            torch.cat([torch.stack([values[name].double() for name in _SUMS]), counts]),
            torch.stack([minimum.double() for minimum in minima]),
        )

    def __add__(self, other: GradientWeightSums) -> GradientWeightSums:
        sums, minima = other.sums.to(self.sums.device), other.minima.to(self.sums.device)
        return GradientWeightSums(self.sums + sums, torch.minimum(self.minima, minima))

    def over_ranks(self, gather: Callable[[Tensor], Tensor]) -> GradientWeightSums:
        """Return the sums of all ranks, in one collective.

        Args:
            gather: Function that takes one row, float64 of shape `(1, number)`, and returns the rows of all ranks,
                shape `rank number`, such as `Accelerator.gather`.
        """
        rows = gather(torch.cat([self.sums, self.minima]).unsqueeze(0))
        return GradientWeightSums(rows[:, : len(self.sums)].sum(dim=0), rows[:, len(self.sums) :].amin(dim=0))

    def metrics(self) -> dict[str, Tensor]:
        """Return metrics by name, NaN if no token was counted; float64 of shape `()`.

        - `ratio/min`, `ratio/max` and `ratio/mean` of the token ratios, and the quantiles `ratio/quantile_05`, `_50`
          and `_95`, whose logarithms are exact to 2 %;
        - `kl_old`: k1 estimate of the KL divergence from the behavior policy, in nats;
        - `clip_ratio/low_mean`, `/high_mean` and `/region_mean`: fraction of tokens whose gradient is clipped to zero,
          with a negative advantage, with a positive advantage, and with either;
        - `weights/overflow`: fraction of tokens whose gradient is zero because the log ratio is out of bounds;
        - `weights/ess_fraction`: effective sample size of the concentration divided by the length, mean over
          completions;
        - `weights/entropy`: entropy of the concentration, in nats, mean over completions;
        - `exponent/mean`, `/min` and `/max` over completions, if a rule chooses the exponents.
        """
        sums = dict(zip(_SUMS, self.sums, strict=False))
        tokens, completions = sums["tokens"], sums["completions"]
        ratio_min, exponent_min, ratio_max, exponent_max = self.minima * self.minima.new_tensor([1, 1, -1, -1])
        quantiles = _BINS.quantiles(self.sums[len(_SUMS) :], _QUANTILES).exp()
        metrics = {
            "ratio/min": torch.where(tokens == 0, torch.nan, ratio_min),
            "ratio/max": torch.where(tokens == 0, torch.nan, ratio_max),
            "ratio/mean": sums["ratio"] / tokens,
            "kl_old": -sums["log_ratio"] / tokens,
            "clip_ratio/low_mean": sums["clipped_low"] / tokens,
            "clip_ratio/high_mean": sums["clipped_high"] / tokens,
            "clip_ratio/region_mean": (sums["clipped_low"] + sums["clipped_high"]) / tokens,
            "weights/overflow": sums["overflow"] / tokens,
            "weights/ess_fraction": sums["ess_fraction"] / completions,
            "weights/entropy": sums["entropy"] / completions,
            **{f"ratio/quantile_{100 * q:02.0f}": value for q, value in zip(_QUANTILES, quantiles, strict=True)},
        }
        if sums["with_exponents"] > 0:
            none = sums["exponents"] == 0
            metrics |= {
                "exponent/mean": sums["exponent"] / sums["exponents"],
                "exponent/min": torch.where(none, torch.nan, exponent_min),
                "exponent/max": torch.where(none, torch.nan, exponent_max),
            }
        return metrics


def _smallest(values: Tensor, of_none: float = torch.inf) -> Tensor:
    """Return the smallest value, or that of none, which is never smaller; a batch may have neither rows nor tokens."""
    return torch.cat([values.flatten(), values.new_full((1,), of_none)]).min()
