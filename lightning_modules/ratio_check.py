"""A check that sampler and trainer agree: the ratios of a rollout's first update are 1."""

from __future__ import annotations

import torch
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn

from aggregate_po import PerToken, masked_sum
from aggregate_po.bounds import log_ratio_of
from lightning_modules.micro_batch import MicroBatch, current_rollout_metrics
from lightning_modules.tally import Tally

# Largest mean of |log ratio| that rounding explains, in nats. Measured means of vLLM against the trainer are 7e-7 in
# float32 and 6e-3 in bfloat16, a few times that with a mixture of experts; positions or a state that are wrong give
# 0.1 and more.
_SINGLE, _HALF = 0.01, 0.05
# One completion may be that many times as far off; shorter ones than this many tokens count as if they had as many.
_OF_COMPLETION, _TOKENS = 4, 8


class RatioCheck:
    """Warns once if the ratios of a rollout's first update are not 1, though the policy has not moved since sampling.

    The mean of |log ratio| over all tokens is compared with what rounding explains, 0.01 nats in 32-bit precision and
    0.05 in 16-bit precision, and the mean over each completion with four times that.
    """

    def __init__(self) -> None:
        self._begin()
        self._warned = False

    def _begin(self) -> None:
        self._tokens = self._deviation = self._largest = torch.zeros((), dtype=torch.double)

    @torch.no_grad()
    def update(self, log_probs: PerToken, batch: MicroBatch, batch_idx: int, trainer: Trainer) -> None:
        """Count one micro-batch, and warn after the last one of a first update; every rank must call it.

        Args:
            log_probs: log-probabilities under the current policy; shape `batch time`; nats.
            batch: the micro-batch.
            batch_idx: number of the micro-batch within its rollout.
            trainer: trainer, for its precision and for collectives over ranks.
        """
        first = batch_idx < trainer.accumulate_grad_batches
        if self._warned or not first or current_rollout_metrics(trainer).get("rollout/staleness") != 0:
            return
        mask = batch.policy.response_mask
        log_ratio = log_ratio_of(log_probs, batch.policy.old_log_probs, mask).double().abs()
        by_completion, lengths = masked_sum(log_ratio, mask), mask.sum(dim=-1)
        largest = (by_completion / lengths.clamp(min=_TOKENS)).max()
        # They stay on their device until the update ends, for which no micro-batch waits.
        self._tokens, self._deviation = self._tokens + lengths.sum(), self._deviation + by_completion.sum()
        self._largest = torch.maximum(largest, self._largest)
        if batch.closes_update:
            sums = dict(Tally.of(tokens=self._tokens, deviation=self._deviation, completion=self._largest).sums)
            self._begin()
            self._compare(Tally(maxima={"completion": sums.pop("completion")}, sums=sums), trainer)

    def _compare(self, tally: Tally, trainer: Trainer) -> None:
        total = tally.over_ranks(trainer)
        mean, largest = total.sums["deviation"] / max(total.sums["tokens"], 1), total.maxima["completion"]
        allowed = _HALF if "16" in str(trainer.precision) else _SINGLE
        if not (mean > allowed or largest > _OF_COMPLETION * allowed):
            return
        self._warned = True
        rank_zero_warn(
            "The ratios of a rollout's first update should be 1, because the policy has not moved since it was sampled "
            f"from, but |log ratio| is {mean:.2g} on average and {largest:.2g} in the mean of one completion, where "
            f"rounding explains {allowed:g} and {_OF_COMPLETION * allowed:g}. Sampler and trainer compute different "
            "log-probabilities: compare their precision, lengths and weights, or set `data.old_log_probs: trainer` "
            "with a `data.correction`."
        )
