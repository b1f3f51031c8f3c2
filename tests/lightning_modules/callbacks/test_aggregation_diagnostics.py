"""Diagnostics in training: those of the saved micro-batches, at each step, also after a resume."""

import math

import pytest
import torch

from aggregate_po.advantages import GroupNormalized
from aggregate_po.recipes import fipo, gmpo, grpo, pmpo, real
from lightning_modules import AggregationDiagnostics, MicroBatchObserver
from tests.lightning_modules.command_line import fit, rows
from tests.lightning_modules.test_aggregation_metrics import KNOWN, assert_near, direct
from tests.lightning_modules.training import NotedAdvantages, fitted, small_data


class Noted(MicroBatchObserver):
    """Keeps the micro-batches of each optimizer step, and the metrics after it."""

    def __init__(self):
        self.updates, self.metrics = [[]], []

    def on_micro_batch(self, trainer, micro_batch):
        self.updates[-1].append(micro_batch)
        if micro_batch.batch.closes_update:
            self.updates.append([])
            self.metrics.append({name: float(value) for name, value in trainer.callback_metrics.items()})


class RisingAdvantages(NotedAdvantages):
    """Advantages of tokens, which rise along a completion."""

    def __call__(self, step):
        return super().__call__(step).unsqueeze(-1) * torch.arange(1, int(step.lengths.max()) + 1)


@pytest.mark.parametrize(
    "objective", [gmpo(), pmpo(), fipo(), real(), grpo()], ids=["gmpo", "pmpo", "fipo", "real", "grpo by token"]
)
def test_the_metrics_of_a_step_are_those_of_its_micro_batches(tmp_path, model_folder, objective, request):
    by_token = "by token" in request.node.name
    data = small_data(updates_per_rollout=2, advantages=RisingAdvantages(GroupNormalized())) if by_token else None
    data = data or small_data(updates_per_rollout=2)
    noted = Noted()
    callbacks = [AggregationDiagnostics(), noted]
    fitted(tmp_path, model_folder, objective, data, callbacks=callbacks, accumulate_grad_batches=2, max_steps=4)
    assert len(noted.metrics) == 4
    for update, metrics in zip(noted.updates, noted.metrics, strict=False):
        assert len(update) == 2
        expected = direct(*((one.evaluated, one.log_probs, one.batch.policy) for one in update))
        assert_near({name: metrics[name] for name in expected if name not in KNOWN}, expected)


def test_a_step_without_trained_completions_has_empty_cells(tmp_path, model_folder):
    data = small_data(reward=lambda completion, example: 1.0)
    run = fitted(tmp_path, model_folder, data=data, callbacks=[AggregationDiagnostics()], max_steps=2)
    assert math.isnan(run.metrics["weights/concentration/mean"])
    assert math.isnan(run.metrics["clip_ratio/low_position_01"])


def test_a_resumed_run_logs_the_same(tmp_path, model_folder):
    options = ["--trainer.callbacks+=lightning_modules.AggregationDiagnostics", "--trainer.max_steps=4"]
    folder = tmp_path / "whole"
    fit(model_folder, folder, *options, "--checkpoint.every_n_train_steps=1", "--checkpoint.keep_last=9")
    timeless = [{name: cell for name, cell in row.items() if not name.startswith("time/")} for row in rows(folder)]
    assert timeless[-1]["weights/gate/negative/quantile_50"]
    checkpoint = f"--ckpt_path={folder}/checkpoints/step-3.ckpt"
    fit(model_folder, folder, *options, "--checkpoint.every_n_train_steps=1", "--checkpoint.keep_last=9", checkpoint)
    again = [{name: cell for name, cell in row.items() if not name.startswith("time/")} for row in rows(folder)]
    assert again == timeless
