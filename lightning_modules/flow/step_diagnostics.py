"""Diagnostics of each denoising step."""

from __future__ import annotations

import math

import torch
from lightning import Trainer
from typing_extensions import override

from aggregate_po.bounds import log_ratio_of
from lightning_modules.micro_batch_observers import EvaluatedMicroBatch, MicroBatchObserver
from lightning_modules.tally import Tally


class StepDiagnostics(MicroBatchObserver):
    r"""Logs the log ratio, the divergence and the gradient weight of each denoising step, in every optimizer step.

    For step `NN`, from 01 at the noisy end, the metrics are means over the trained trajectories of all ranks:

    - `steps/NN/log_ratio`: log ratio, whose expectation under the behavior policy is minus the divergence;
    - `steps/NN/divergence`: $D_t$ from the behavior policy, in nats per latent dimension;
    - `steps/NN/log_ratio_norm`: log ratio after `RatioNorm`, $s_t (\log r_t + D_t)$, whose expectation is 0;
    - `steps/NN/clip_ratio`: fraction whose gradient is clipped to zero;
    - `steps/NN/weight`: absolute gradient weight, in units of the mean over all steps.

    A step that is not trained, such as one outside the window, has no metric, or NaN if it had one before.
    """

    def __init__(self) -> None:
        self._tally = Tally()
        self._logged: set[str] = set()  # names of all metrics so far

    @override
    @torch.no_grad()
    def on_micro_batch(self, trainer: Trainer, micro_batch: EvaluatedMicroBatch) -> None:
        """Count a micro-batch, and log after the last one of an optimizer step."""
        inputs, weights = micro_batch.inputs, micro_batch.evaluated.weights
        mask = inputs.response_mask
        if inputs.divergence is None or inputs.scale is None:
            raise TypeError(
                f"`callbacks` has {type(self).__name__}, but the steps of {type(micro_batch.batch).__name__} have no "
                "divergence; leave it out, or train with FlowModule."
            )
        log_ratio = log_ratio_of(micro_batch.log_probs, inputs.old_log_probs, mask)
        columns = {
            "trained": torch.ones_like(log_ratio),
            "log_ratio": log_ratio,
            "divergence": inputs.divergence,
            "log_ratio_norm": inputs.scale * (log_ratio + inputs.divergence),
            "clip_ratio": weights.clipped.to(log_ratio.dtype),
            "weight": weights.total.abs(),
        }
        totals = {name: torch.where(mask, column, 0).double().sum(dim=0) for name, column in columns.items()}
        by_step = {f"{name} {step}": total for name, row in totals.items() for step, total in enumerate(row)}
        self._tally += Tally.of(**by_step)
        if micro_batch.batch.closes_update:
            tally, self._tally = self._tally, Tally()
            self._log(tally, trainer)

    def _log(self, tally: Tally, trainer: Trainer) -> None:
        sums = tally.over_ranks(trainer).sums
        names, steps = {name.split(" ")[0] for name in sums} - {"trained"}, range(len(sums))
        trained = {step: count for step in steps if (count := sums.get(f"trained {step}", 0))}
        weight = sum(sums[f"weight {step}"] for step in trained) / max(sum(trained.values()), 1)
        metrics = dict.fromkeys(sorted(self._logged), math.nan)  # one that is not logged would keep its last value
        for step, count in trained.items():
            means = {name: sums[f"{name} {step}"] / count for name in sorted(names)}
            means["weight"] /= weight or 1.0
            metrics |= {f"steps/{step + 1:02}/{name}": mean for name, mean in means.items()}
        self._logged |= metrics.keys()
        for name, value in metrics.items():
            trainer.lightning_module.log(name, value)
