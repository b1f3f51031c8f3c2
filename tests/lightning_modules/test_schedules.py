"""Learning rates of a run, step by step, against formulas worked by hand."""

import math

import pytest
import torch

from aggregate_po.recipes import gmpo
from lightning_modules import CosineDecay, LinearDecay, PolicyModule
from lightning_modules.schedules import scheduled
from tests.lightning_modules.command_line import fit, rows
from tests.lightning_modules.training import fitted, small_data


def rates(schedule, warmup_steps, steps):
    """Learning rates of the first steps, at a peak of 1, as Lightning makes the steps."""
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    made = None if schedule is None else schedule(optimizer)
    scheduler = scheduled(optimizer, warmup_steps, made)["scheduler"]
    if hasattr(made, "end_with"):
        made.end_with(steps - warmup_steps)
    found = []
    for _ in range(steps):
        found.append(optimizer.param_groups[0]["lr"])
        optimizer.step()
        scheduler.step()
    return found


def test_without_a_schedule_the_rate_is_constant_after_the_warmup():
    assert rates(None, 4, 6) == [0.25, 0.5, 0.75, 1, 1, 1]
    assert rates(None, 0, 2) == [1, 1]


def test_a_line_goes_from_the_peak_toward_its_end():
    assert rates(LinearDecay, 0, 4) == [1, 0.75, 0.5, 0.25]
    assert rates(LinearDecay, 2, 6) == [0.5, 1, 1, 0.75, 0.5, 0.25]
    assert rates(lambda optimizer: LinearDecay(optimizer, min_lr_ratio=0.5), 0, 4) == [1, 0.875, 0.75, 0.625]


def test_a_cosine_is_half_way_at_half_of_its_steps():
    thirds = [1, 0.75, 0.25]  # cos(60 degrees) is one half
    assert rates(CosineDecay, 0, 3) == pytest.approx(thirds)
    assert rates(CosineDecay, 2, 5) == pytest.approx([0.5, 1, *thirds])
    assert rates(lambda optimizer: CosineDecay(optimizer, min_lr_ratio=0.1), 0, 2) == pytest.approx([1, 0.55])


def test_a_decay_may_end_before_the_run():
    assert rates(lambda optimizer: LinearDecay(optimizer, decay_steps=2), 0, 4) == [1, 0.5, 0, 0]
    assert rates(lambda optimizer: LinearDecay(optimizer, decay_steps=2), 1, 4) == [1, 1, 0.5, 0]


@pytest.mark.parametrize("warmup_steps", [0, 2])
def test_a_schedule_of_torch_begins_after_the_warmup(warmup_steps):
    halved = rates(lambda optimizer: torch.optim.lr_scheduler.ExponentialLR(optimizer, 0.5), warmup_steps, 5)
    assert halved[warmup_steps:] == pytest.approx([0.5**step for step in range(5 - warmup_steps)])
    assert halved[:warmup_steps] == pytest.approx([0.5, 1.0][:warmup_steps])


@pytest.mark.parametrize("options", [{"min_lr_ratio": math.nan}, {"min_lr_ratio": 1.5}, {"decay_steps": 0}])
def test_arguments_out_of_range_are_named(options):
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    with pytest.raises(ValueError, match=f"`{next(iter(options))}` is .*; pass"):
        CosineDecay(optimizer, **options)


def test_torch_s_schedule_on_a_plateau_names_no_metric():
    optimizer = torch.optim.SGD([torch.nn.Parameter(torch.ones(1))], lr=1.0)
    with pytest.raises(ValueError, match=r"pass lightning\.pytorch\.cli\.ReduceLROnPlateau with its `monitor`"):
        scheduled(optimizer, 0, torch.optim.lr_scheduler.ReduceLROnPlateau(optimizer))


COSINE = ["--model.lr_scheduler=lightning_modules.CosineDecay", "--model.warmup_steps=2"]


def logged(folder):
    return [float(row["learning_rate"]) for row in rows(folder) if row["step"] != "0"]


@pytest.mark.parametrize("end", [["--trainer.max_steps=6"], ["--trainer.max_steps=-1", "--trainer.max_epochs=3"]])
def test_a_decay_ends_with_the_run_and_a_resumed_one_goes_on_in_it(model_folder, tmp_path, end):
    expected = [5e-4, 1e-3, *(1e-3 * (1 + math.cos(math.pi * step / 4)) / 2 for step in range(4))]
    best = ["--trainer.callbacks+=ModelCheckpoint", "--trainer.callbacks.every_n_train_steps=1"]
    best += ["--trainer.callbacks.save_top_k=-1", f"--trainer.callbacks.dirpath={tmp_path / 'each'}"]
    fit(model_folder, tmp_path / "run", *COSINE, *end, *best)
    assert logged(tmp_path / "run") == pytest.approx(expected)
    for step in (1, 3):
        (path,) = [path for path in (tmp_path / "each").iterdir() if f"step={step}" in path.name]
        fit(model_folder, tmp_path / "run", *COSINE, *end, f"--ckpt_path={path}")
        assert logged(tmp_path / "run") == pytest.approx(expected)


def test_a_run_without_end_is_refused(model_folder, tmp_path):
    with pytest.raises(SystemExit, match="`lr_scheduler` is CosineDecay, but the run has no end; pass `max_steps`"):
        fit(model_folder, tmp_path / "run", *COSINE, "--trainer.max_steps=-1", "--trainer.max_epochs=-1")


def test_a_schedule_takes_a_step_with_each_optimizer_step(tmp_path, model_folder):
    """And not with each micro-batch."""
    module = PolicyModule(model_folder, gmpo(), learning_rate=1e-3, warmup_steps=0, lr_scheduler=LinearDecay)
    data = small_data(updates_per_rollout=2)
    run = fitted(tmp_path, model_folder, module=module, data=data, max_steps=4, accumulate_grad_batches=2)
    assert run.trainer.lr_scheduler_configs[0].scheduler.last_epoch == 4
    assert run.metrics["learning_rate"] == pytest.approx(0.25e-3)
