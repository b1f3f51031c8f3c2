"""Callbacks of Lightning that act on a metric: they act when it is measured, and its name must exist."""

import pytest
import torch

from tests.lightning_modules.command_line import fit, rows

pytestmark = pytest.mark.slow  # each test is a run
CALLBACKS = "--trainer.callbacks"
STOP = [f"{CALLBACKS}+=EarlyStopping", f"{CALLBACKS}.mode=max", f"{CALLBACKS}.patience=1"]
NO_IMPROVEMENT = f"{CALLBACKS}.min_delta=100"  # the first value is the best one


def monitored(name):
    return f"{CALLBACKS}.monitor={name}"


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


@pytest.mark.parametrize("validation", [[], ["--data.validation=null"]])
def test_early_stopping_on_a_training_metric_looks_after_each_rollout(model_folder, tmp_path, validation):
    """The second rollout is no better than the first, and a rollout has two steps."""
    options = [*STOP, monitored("reward"), NO_IMPROVEMENT, "--trainer.max_steps=20", *validation]
    assert fit(model_folder, tmp_path / "run", *options).trainer.global_step == 4
    assert len([row for row in rows(tmp_path / "run") if row["step"] != "0"]) == 4
    assert (tmp_path / "run" / "model").exists()


def test_early_stopping_on_a_held_out_metric_looks_after_each_evaluation(model_folder, tmp_path):
    """The first evaluation is the one before training, the second after the third step."""
    schedule = ["--report.evaluate_every_n_steps=3", "--trainer.max_steps=20"]
    options = [*STOP, monitored("val/reward_sampled"), NO_IMPROVEMENT, *schedule]
    assert fit(model_folder, tmp_path / "run", *options).trainer.global_step == 3


def test_early_stopping_keeps_to_min_steps(model_folder, tmp_path):
    options = [*STOP, monitored("reward"), NO_IMPROVEMENT, "--trainer.max_steps=20", "--trainer.min_steps=7"]
    assert fit(model_folder, tmp_path / "run", *options).trainer.global_step == 7


def steps_of(folder):
    paths = {path.resolve() for path in folder.rglob("*.ckpt")}  # `last.ckpt` is a link
    return sorted(torch.load(path, weights_only=False)["global_step"] for path in paths)


@pytest.mark.parametrize(
    ("name", "schedule", "steps"),
    [
        ("val/reward_sampled", [f"{CALLBACKS}.every_n_train_steps=2", "--report.evaluate_every_n_steps=2"], [2, 4]),
        ("val/reward_sampled", ["--report.evaluate_every_n_steps=3"], [3, 4]),
        ("reward", [], [2, 4]),
        ("reward", [f"{CALLBACKS}.every_n_train_steps=3"], [3]),
        ("null", [], [2, 4]),
    ],
)
def test_checkpoints_are_saved_when_their_metric_is_measured(model_folder, tmp_path, name, schedule, steps):
    best = [f"{CALLBACKS}+=ModelCheckpoint", monitored(name), f"{CALLBACKS}.save_top_k=-1", f"{CALLBACKS}.mode=max"]
    if name == "null":
        best = [option for option in best if "monitor" not in option and "mode" not in option]
    fit(model_folder, tmp_path / "run", *best, f"{CALLBACKS}.dirpath={tmp_path / 'best'}", *schedule)
    assert steps_of(tmp_path / "best") == steps
    assert steps_of(tmp_path / "run" / "checkpoints") == [4]


def test_a_checkpoint_of_the_best_step_resumes_as_the_run_went(model_folder, tmp_path):
    best = [f"{CALLBACKS}+=ModelCheckpoint", monitored("val/reward_sampled"), f"{CALLBACKS}.save_top_k=-1"]
    options = [*best, f"{CALLBACKS}.dirpath={tmp_path / 'best'}", "--report.evaluate_every_n_steps=3"]
    fit(model_folder, tmp_path / "run", *options, "--trainer.max_steps=6")
    (third,) = [path for path in (tmp_path / "best").iterdir() if "step=3" in path.name]
    undisturbed = rows(tmp_path / "run")
    fit(model_folder, tmp_path / "run", *options, "--trainer.max_steps=6", f"--ckpt_path={third}")
    timeless = [
        [{name: cell for name, cell in row.items() if "time" not in name} for row in table]
        for table in (undisturbed, rows(tmp_path / "run"))
    ]
    assert timeless[0] == timeless[1]


@pytest.mark.parametrize(
    ("callback", "name"),
    [("EarlyStopping", "rewrd"), ("ModelCheckpoint", "rewrd"), ("ModelCheckpoint", "val/pass@1")],
)
def test_a_monitor_that_does_not_exist_is_an_error_with_the_names_that_do(model_folder, tmp_path, callback, name):
    with pytest.raises(SystemExit) as stop:
        fit(model_folder, tmp_path / "run", f"{CALLBACKS}+={callback}", monitored(name))
    assert f"`monitor` of {callback} is '{name}'" in str(stop.value.code)
    assert "reward_std" in str(stop.value.code)
    assert "val/reward_greedy" in str(stop.value.code)


def test_early_stopping_on_a_held_out_metric_that_does_not_exist_is_a_message_too(model_folder, tmp_path):
    with pytest.raises(SystemExit, match=r"`val/pass@1` which is not available.*val/reward_greedy"):
        fit(model_folder, tmp_path / "run", *STOP, monitored("val/pass@1"))


def test_a_held_out_monitor_without_held_out_prompts_is_an_error(model_folder, tmp_path):
    options = [*STOP, monitored("val/reward_sampled"), "--data.validation=null"]
    with pytest.raises(SystemExit, match="`monitor` of EarlyStopping is 'val/reward_sampled'"):
        fit(model_folder, tmp_path / "run", *options)


def test_a_held_out_metric_may_come_later(model_folder, tmp_path):
    options = [*STOP, monitored("val/reward_sampled"), "--report.evaluate_before_training=false"]
    assert fit(model_folder, tmp_path / "run", *options).trainer.global_step == 4


def test_a_schedule_may_follow_a_metric(model_folder, tmp_path):
    plateau = ["--model.lr_scheduler=lightning.pytorch.cli.ReduceLROnPlateau", "--model.lr_scheduler.monitor=reward"]
    options = [*plateau, "--model.lr_scheduler.patience=0", "--model.lr_scheduler.mode=max"]
    never = ["--model.lr_scheduler.threshold=100", "--model.lr_scheduler.threshold_mode=abs"]
    fit(model_folder, tmp_path / "run", *options, *never, "--trainer.max_steps=6")
    rates = [float(row["learning_rate"]) for row in rows(tmp_path / "run") if row["step"] != "0"]
    assert rates == pytest.approx([1e-3] * 4 + [1e-4] * 2)
    with pytest.raises(SystemExit, match="`warmup_steps` is 3, but `lr_scheduler` follows a metric"):
        fit(model_folder, tmp_path / "other", *options, "--model.warmup_steps=3")
