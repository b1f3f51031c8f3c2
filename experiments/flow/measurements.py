"""Sums of log ratios, clips and gradients of each denoising step during a run."""

from __future__ import annotations

from collections import defaultdict

import torch
from lightning import Trainer
from torch import Tensor
from typing_extensions import override

from aggregate_po.bounds import log_ratio_of
from lightning_modules.flow.inputs import DenoisingBatch
from lightning_modules.micro_batch_observers import EvaluatedMicroBatch, MicroBatchObserver


class StepSums(MicroBatchObserver):
    """Sums over the trained steps of a run, by the number of the step.

    A minibatch that comes first in its rollout has ratios of 1, and shows how the gradient is spread over the steps.
    Log ratios are counted in the later ones, whose noise the policy has not seen yet.

    Args:
        updates: updates per rollout.
    """

    def __init__(self, updates: int) -> None:
        self._updates = updates
        self._sums: dict[str, Tensor | float] = defaultdict(float)

    @override
    @torch.no_grad()
    def on_micro_batch(self, trainer: Trainer, micro_batch: EvaluatedMicroBatch) -> None:
        """Count a micro-batch."""
        first = trainer.global_step % self._updates == 0
        columns = _gradients(micro_batch) if first else _ratios(micro_batch)
        mask = micro_batch.inputs.response_mask
        for name, column in columns.items():
            self._sums[name] = self._sums[name] + torch.where(mask, column, 0).double().sum(dim=0)

    def rows(self) -> list[dict[str, float]]:
        """Return the sums of each step."""
        columns = {name: sums.tolist() for name, sums in self._sums.items() if isinstance(sums, Tensor)}
        steps = range(len(columns["trained"]))
        return [{"step": step + 1, **{name: column[step] for name, column in columns.items()}} for step in steps]


def _gradients(micro_batch: EvaluatedMicroBatch) -> dict[str, Tensor]:
    r"""Return the size of $dJ / dv$ of each step up to its noise, $|w_t| |b_t| / s_t$."""
    batch, weights = micro_batch.batch, micro_batch.evaluated.weights.total.abs()
    assert isinstance(batch, DenoisingBatch)
    scales = torch.where(batch.scales > 0, batch.scales, 1.0)
    return {"trained": torch.ones_like(weights), "gradient": weights * batch.of_velocity.abs() / scales}


def _ratios(micro_batch: EvaluatedMicroBatch) -> dict[str, Tensor]:
    inputs, weights = micro_batch.inputs, micro_batch.evaluated.weights
    assert inputs.divergence is not None
    assert inputs.scale is not None
    log_ratio = log_ratio_of(micro_batch.log_probs, inputs.old_log_probs, inputs.response_mask)
    centered = log_ratio + inputs.divergence  # its expectation is 0
    normalized = inputs.scale * centered
    positive = (weights.advantages > 0).expand_as(log_ratio)
    return {
        "later": torch.ones_like(log_ratio),
        "positive": positive.double(),
        "log_ratio": log_ratio,
        "log_ratio_squares": log_ratio.square(),
        "divergence": inputs.divergence,
        "centered_squares": centered.square(),
        "normalized": normalized,
        "normalized_squares": normalized.square(),
        "clipped_high": (weights.clipped & positive).double(),
        "clipped_low": (weights.clipped & ~positive).double(),
    }
