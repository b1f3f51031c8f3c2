"""Distributions of what an objective does with tokens, over one optimizer step and by the sign of the advantage."""

from __future__ import annotations

from collections.abc import Mapping

import torch
from torch import Tensor
from torchmetrics import Metric

from aggregate_po import Evaluated, PerToken, PolicyBatch, effective_sample_size, masked_sum, weight_entropy
from aggregate_po.bounds import log_ratio_of
from aggregate_po.histograms import SignedLogBins, top_share

_ABSOLUTE = "weights/absolute"  # counted, for the share of the largest, and not returned
_QUANTITIES = (
    "weights/completion",
    "weights/advantage",
    "weights/magnitude",
    "weights/concentration",
    "weights/gate",
    "weights/ess_fraction",
    "weights/entropy",
    "log_ratio",
    "exponent",
    _ABSOLUTE,
)
_ROWS = {name: row for row, name in enumerate(_QUANTITIES)}
_QUANTILES = (0.05, 0.5, 0.95)
_STATISTICS = ("mean", "min", "max", *(f"quantile_{100 * fraction:02.0f}" for fraction in _QUANTILES))
_SPLITS = ("", "negative/", "positive/")
# `GradientWeightMetrics` has these, some under another name or with the other sign.
_KNOWN = {"weights/ess_fraction/mean", "weights/entropy/mean", "log_ratio/mean"}
_KNOWN |= {f"exponent/{statistic}" for statistic in ("mean", "min", "max")}

_BINS = SignedLogBins(finest=1e-9, width=0.05, largest=1e9)
_SIGNS = 3  # negative, zero, positive
_PLACES = 10  # parts of a completion
_TOP = 0.01


class AggregationMetrics(Metric):
    """Distributions over the tokens and completions of one optimizer step, by the sign of the advantage.

    `compute` returns, by name, `QUANTITY/STATISTIC` over all and `QUANTITY/negative/STATISTIC` and
    `QUANTITY/positive/STATISTIC` over those with an advantage of this sign. Statistics are `mean`, `min`, `max`,
    `quantile_05`, `quantile_50` and `quantile_95`; quantiles are exact to 2.5 %. Quantities are

    - `weights/completion`, `weights/advantage` and `weights/magnitude`, factors of completions. Advantages of tokens
      are counted by token;
    - `weights/concentration` and `weights/gate`, factors of tokens;
    - `weights/ess_fraction` and `weights/entropy` of the concentration of each completion, the latter in nats;
    - `log_ratio` of each token, before any bound, in nats;
    - `exponent` of each completion, if a rule chooses it.

    A completion has the sign of the sum of its tokens' advantages. What `GradientWeightMetrics` has too is left out.
    Further,

    - `clip_ratio/low_position_01` to `_10` and `clip_ratio/high_position_01` to `_10` are the fractions of the tokens
      in each tenth of a completion that are clipped and have a negative or a positive advantage;
    - `weights/top_1_percent_share`, also with `/negative` and `/positive`, is the share of the sum of the absolute
      weights that the 1 % of the tokens with the largest hold, exact to 5 % of itself.
    """

    full_state_update = False
    histograms: Tensor
    sums: Tensor
    minima: Tensor
    maxima: Tensor
    weight_sums: Tensor
    place_tokens: Tensor
    place_clips: Tensor

    def __init__(self) -> None:
        super().__init__()
        self._with_exponents = False
        cells = len(_QUANTITIES), _SIGNS
        totals = {
            "histograms": (*cells, len(_BINS)),
            "sums": cells,
            "weight_sums": (_SIGNS, len(_BINS)),
            "place_tokens": (_PLACES,),
            "place_clips": (2, _PLACES),
        }
        for name, shape in totals.items():
            self.add_state(name, torch.zeros(shape, dtype=torch.double), dist_reduce_fx="sum")
        self.add_state("minima", torch.full(cells, torch.inf, dtype=torch.double), dist_reduce_fx="min")
        self.add_state("maxima", torch.full(cells, -torch.inf, dtype=torch.double), dist_reduce_fx="max")

    @torch.no_grad()
    def update(self, evaluated: Evaluated, log_probs: PerToken, batch: PolicyBatch) -> None:
        """Count one micro-batch.

        Args:
            evaluated: the objective on this micro-batch.
            log_probs: log-probabilities under the current policy; shape `batch time`; nats.
            batch: the micro-batch as the objective receives it.
        """
        mask, weights = batch.response_mask, evaluated.weights
        lengths = mask.sum(dim=-1)
        advantages = weights.advantages.expand(mask.shape)
        of_tokens = {
            "weights/concentration": weights.concentration,
            "weights/gate": weights.gate,
            "log_ratio": log_ratio_of(log_probs, batch.old_log_probs, mask),
            _ABSOLUTE: weights.total.abs(),
        }
        of_completions = {
            "weights/completion": weights.completion,
            "weights/magnitude": weights.magnitude,
            "weights/ess_fraction": effective_sample_size(weights.concentration) / lengths.clamp(min=1),
            "weights/entropy": weight_entropy(weights.concentration),
        }
        if weights.advantages.shape[1] > 1:
            of_tokens["weights/advantage"] = advantages
        else:
            of_completions["weights/advantage"] = weights.advantages
        if evaluated.exponents is not None:
            self._with_exponents = True
            of_completions["exponent"] = evaluated.exponents
        self._count(of_tokens, advantages, mask)
        self._count({name: values.flatten() for name, values in of_completions.items()}, advantages, mask)
        self._count_clips(weights.clipped, advantages, mask)

    def _count(self, quantities: Mapping[str, Tensor], advantages: PerToken, mask: PerToken) -> None:
        """Count quantities of tokens, shape `batch time`, or of completions, shape `batch`."""
        rows = torch.tensor([_ROWS[name] for name in quantities], device=mask.device)
        values = torch.stack([values.double() for values in quantities.values()])
        if values.ndim == 2:
            advantages, mask = masked_sum(advantages, mask), mask.any(dim=-1)
        signs = _numbers_of_signs(advantages)[mask]
        values = values[:, mask]
        cells = (rows.unsqueeze(-1) * _SIGNS + signs).flatten()
        bins = _BINS.numbers_of(values)
        places = cells * len(_BINS) + bins.flatten()
        counts = torch.bincount(places, minlength=self.histograms.numel())
        self.histograms += counts.view_as(self.histograms)
        self.sums.view(-1).index_add_(0, cells, values.flatten())
        self.minima.view(-1).scatter_reduce_(0, cells, values.flatten(), "amin")
        self.maxima.view(-1).scatter_reduce_(0, cells, values.flatten(), "amax")
        if _ABSOLUTE in quantities:
            own = [*quantities].index(_ABSOLUTE)
            self.weight_sums.view(-1).index_add_(0, signs * len(_BINS) + bins[own], values[own])

    def _count_clips(self, clipped: PerToken, advantages: PerToken, mask: PerToken) -> None:
        """Count tokens, and those that are clipped, by their place among the trained tokens of a completion."""
        lengths = mask.sum(dim=-1, keepdim=True).clamp(min=1)
        places = (mask.cumsum(dim=-1) - 1) * _PLACES // lengths
        self.place_tokens += torch.bincount(places[mask], minlength=_PLACES)
        for side, chosen in enumerate((clipped & (advantages < 0), clipped & (advantages > 0))):
            self.place_clips[side] += torch.bincount(places[chosen], minlength=_PLACES)

    def compute(self) -> dict[str, float]:
        """Return the metrics by name, NaN where nothing was counted; the class docstring lists them."""
        histograms, sums = _by_split(self.histograms), _by_split(self.sums)
        minima = torch.stack([self.minima.amin(dim=1), self.minima[:, 0], self.minima[:, 2]], dim=1)
        maxima = torch.stack([self.maxima.amax(dim=1), self.maxima[:, 0], self.maxima[:, 2]], dim=1)
        counts = histograms.sum(dim=-1)
        bounds = torch.stack([minima, maxima], dim=-1).where(counts.unsqueeze(-1) > 0, torch.nan)
        quantiles = _BINS.quantiles(histograms, _QUANTILES).clamp(*bounds.split(1, dim=-1))
        statistics = torch.cat([(sums / counts).unsqueeze(-1), bounds, quantiles], dim=-1).tolist()
        metrics = {
            f"{quantity}/{split}{statistic}": value
            for quantity, by_split in zip(_QUANTITIES, statistics, strict=True)
            for split, values in zip(_SPLITS, by_split, strict=True)
            for statistic, value in zip(_STATISTICS, values, strict=True)
            if quantity != _ABSOLUTE and (quantity != "exponent" or self._with_exponents)
        }
        shares = top_share(histograms[_ROWS[_ABSOLUTE]], _by_split(self.weight_sums.unsqueeze(0))[0], _TOP).tolist()
        return {
            **{name: value for name, value in metrics.items() if name not in _KNOWN},
            **self._clip_metrics(),
            **{f"weights/top_1_percent_share/{split}".strip("/"): s for split, s in zip(_SPLITS, shares, strict=True)},
        }

    def _clip_metrics(self) -> dict[str, float]:
        fractions = (self.place_clips / self.place_tokens).tolist()
        return {
            f"clip_ratio/{side}_position_{place:02}": value
            for side, values in zip(("low", "high"), fractions, strict=True)
            for place, value in enumerate(values, start=1)
        }


def _numbers_of_signs(values: Tensor) -> Tensor:
    """Return 0 for negative values, 2 for positive ones, and 1 for 0 and NaN."""
    return values.sign().nan_to_num(0.0).long() + 1


def _by_split(totals: Tensor) -> Tensor:
    """Return totals over all signs, negative and positive, from those by sign; shape `quantity split ...`."""
    return torch.stack([totals.sum(dim=1), totals[:, 0], totals[:, 2]], dim=1)
