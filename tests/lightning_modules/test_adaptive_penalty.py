"""A multiplier follows the cost of full optimizer steps, however they are split, and is saved with the run."""

import pytest
import torch
from lightning import Callback

from aggregate_po.recipes import r2vpo
from lightning_modules import PolicyModule
from tests.lightning_modules.training import (
    RecordingEngine,
    copied,
    fitted,
    largest_difference,
    plain_log_prob_matrix,
    small_data,
)

BOUND, STEP_SIZE, START = 0.02, 0.5, 0.04


class Multipliers(Callback):
    """The multiplier after each optimizer step, and the one that is logged: with which the step was made."""

    def __init__(self):
        self.values, self.logged = [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch.closes_update:
            self.values.append(pl_module.objective.penalties[0].multiplier)
            self.logged.append(trainer.callback_metrics["penalty_0/multiplier"].item())


@pytest.mark.parametrize("accumulate", [1, 3])
def test_the_multiplier_climbs_by_the_mean_excess_of_each_update(tmp_path, model_folder, accumulate):
    """The sampler notes shifted log-probabilities, so the ratios differ from 1 although the policy does not move."""
    engine, recorder = RecordingEngine(shift=0.3), Multipliers()
    module = PolicyModule(model_folder, r2vpo(BOUND, STEP_SIZE, START), learning_rate=1e-12)
    data = small_data(rollouts=engine, updates_per_rollout=2)
    options = {"max_steps": 2, "accumulate_grad_batches": accumulate, "callbacks": [recorder]}
    run = fitted(tmp_path, model_folder, data=data, module=module, **options)
    (generated,), (prompts,) = engine.generated, engine.prompts
    with torch.no_grad():
        log_ratio = plain_log_prob_matrix(run.module.model, prompts, generated) - generated.log_probs
    squares = torch.where(generated.mask, (log_ratio.exp() - 1).square(), 0)
    of_completions = squares.sum(-1) / generated.mask.sum(-1)
    expected, multiplier = [], START
    for rows in of_completions.tensor_split(2):
        multiplier += STEP_SIZE * (float(rows.mean()) - BOUND)
        expected.append(multiplier)
    assert expected[1] > expected[0] > START
    assert recorder.values == pytest.approx(expected, rel=1e-5)
    assert recorder.logged == pytest.approx([START, expected[0]], rel=1e-5)


class Order(Callback):
    """The multiplier and the parameters when the gradient is complete, and after the step."""

    def __init__(self, infinite_at=None):
        self.infinite_at, self.complete, self.after, self.moved = infinite_at, [], [], []

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.complete.append(pl_module.objective.penalties[0].multiplier)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.before = copied(pl_module.model)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch.closes_update:
            self.after.append(pl_module.objective.penalties[0].multiplier)
            self.moved.append(largest_difference(self.before, copied(pl_module.model)))

    def on_after_backward(self, trainer, pl_module):
        if trainer.global_step == self.infinite_at:
            next(pl_module.model.parameters()).grad[:] = torch.inf


def test_penalties_adapt_after_the_step_and_not_on_a_skipped_one(tmp_path, model_folder):
    module = PolicyModule(model_folder, r2vpo(BOUND, STEP_SIZE, START), learning_rate=1e-3, warmup_steps=0)
    data = small_data(rollouts=RecordingEngine(shift=0.3), updates_per_rollout=2)
    order = Order(infinite_at=1)
    run = fitted(tmp_path, model_folder, data=data, module=module, max_steps=4, callbacks=[order])
    assert [distance > 0 for distance in order.moved] == [True, False, True, True]
    # When the gradient is complete the multiplier is the one that it was made with.
    assert order.complete == [START, *order.after[:-1]]
    changed = [after != before for after, before in zip(order.after, order.complete, strict=True)]
    assert changed == [True, False, True, True]
    assert run.metrics["skipped_steps"].item() == 1


def test_the_multiplier_is_part_of_the_checkpoint(tmp_path, model_folder):
    def run(folder, steps, ckpt_path=None):
        module = PolicyModule(model_folder, r2vpo(BOUND, STEP_SIZE, START), learning_rate=1e-3, warmup_steps=0)
        data = small_data(rollouts=RecordingEngine(shift=0.3), updates_per_rollout=2)
        return fitted(folder, model_folder, data=data, module=module, max_steps=steps, ckpt_path=ckpt_path)

    half = run(tmp_path / "half", 2)
    half.trainer.save_checkpoint(tmp_path / "half.ckpt")
    resumed = run(tmp_path / "resumed", 2, tmp_path / "half.ckpt")
    saved = half.module.objective.penalties[0].multiplier
    assert saved != START
    assert resumed.module.objective.penalties[0].multiplier == saved
