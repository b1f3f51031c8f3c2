"""How often the host reads a tensor in training: on a GPU it waits there for all kernels, and launches none."""

import traceback
from collections import Counter
from pathlib import Path

import pytest
import torch
from lightning import Callback
from torch.overrides import TorchFunctionMode

import aggregate_po
import lightning_modules
from aggregate_po.recipes import grpo, pmpo, r2vpo
from lightning_modules import PolicyModule
from lightning_modules.callbacks.report import RunReport
from tests.lightning_modules.training import quiet_trainer, small_data

READS = {"item", "tolist", "cpu", "numpy", "__bool__", "__float__", "__int__", "__index__", "nonzero", "bincount"}
FOLDERS = tuple(str(Path(package.__file__).parent) for package in (aggregate_po, lightning_modules))
# Once in an optimizer step: whether the gradient is finite, whether a rule chose exponents, the row of metrics.csv, and
# sums over the update: the loss, and the check of the first ratios of a rollout.
IN_AN_UPDATE = {"objective_module.py": 1, "weight_sums.py": 1, "tally.py": 3}


class Reads(TorchFunctionMode, Callback):
    """Counts reads by the file of this library that asks for them, from the first to the last micro-batch of a step."""

    def __init__(self, step):
        super().__init__()
        self.step, self.counts, self.counting = step, Counter(), False

    def __torch_function__(self, function, types, args=(), kwargs=None):
        masked = function.__name__ == "__getitem__" and getattr(args[1], "dtype", None) == torch.bool
        if self.counting and (function.__name__ in READS or masked):
            asking = [frame.filename for frame in traceback.extract_stack() if frame.filename != __file__]
            owners = [name for name in asking if "/torch/" not in name]
            if owners[-1].startswith(FOLDERS):
                self.counts[Path(owners[-1]).name] += 1
        return function(*args, **(kwargs or {}))

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.counting = trainer.global_step == self.step

    def on_train_epoch_end(self, trainer, pl_module):
        self.counting = False


def reads(folder, model_folder, objective, micro_batches):
    counted = Reads(step=1)
    module = PolicyModule(model_folder, objective, learning_rate=1e-3)
    callbacks = [RunReport(evaluate_before_training=False, evaluate_after_training=False), counted]
    trainer = quiet_trainer(folder, max_steps=2, accumulate_grad_batches=micro_batches, callbacks=callbacks)
    with counted:
        trainer.fit(module, small_data())
    return counted.counts


@pytest.mark.parametrize(
    ("objective", "in_an_update", "in_a_micro_batch"),
    [
        (grpo, {}, {}),
        (r2vpo, {"objective_module.py": 1}, {}),  # observations of the penalty
        (pmpo, {}, {"exponents.py": 1}),  # whether any exponent has to be searched for
    ],
)
def test_metrics_are_read_once_in_an_update(tmp_path, model_folder, objective, in_an_update, in_a_micro_batch):
    """However many micro-batches it has. Each reads masks for the targets, the row of tokens, and the states of it."""
    for number in (1, 4):
        counts = reads(tmp_path / str(number), model_folder, objective(), number)
        of_micro_batches = Counter({"log_probs.py": 1, "group_row.py": 1, "layouts.py": 1} | in_a_micro_batch)
        expected = Counter(IN_AN_UPDATE) + Counter(in_an_update)
        for _ in range(number):
            expected += of_micro_batches
        assert counts == expected
