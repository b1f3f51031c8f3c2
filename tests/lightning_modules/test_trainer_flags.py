"""Flags of the trainer on the command line: each means what it does elsewhere, or is refused with the remedy."""

from typing import ClassVar

import pytest
from lightning import Callback

from tests.lightning_modules.command_line import fit, rows

pytestmark = pytest.mark.slow  # each test is a run
CALLBACKS = "--trainer.callbacks"
CSV_LOGGER = ["--trainer.logger=CSVLogger", "--trainer.logger.save_dir=logged"]


class WholeUpdates(Callback):
    """Counts the optimizer steps, and notes whether each came after the last micro-batch of its update."""

    closes: ClassVar[list[bool]] = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.batch = batch

    def on_before_optimizer_step(self, trainer, pl_module, optimizer):
        self.closes.append(self.batch.closes_update)


WATCH = f"{CALLBACKS}+=tests.lightning_modules.test_trainer_flags.WholeUpdates"
# Flags with the number of optimizer steps of the run, of two updates of two micro-batches to a rollout.
TAKEN = {
    "no progress bar": (["--trainer.enable_progress_bar=false"], 4),
    "progress bar of Lightning": ([f"{CALLBACKS}+=TQDMProgressBar"], 4),
    "progress bar of rich": ([f"{CALLBACKS}+=RichProgressBar"], 4),
    "no checkpoints": (["--trainer.enable_checkpointing=false"], 4),
    "another checkpoint": ([f"{CALLBACKS}+=ModelCheckpoint"], 4),
    "barebones": (["--trainer.barebones=true"], 4),
    "max_epochs": (["--trainer.max_epochs=1"], 2),
    "max_epochs before max_steps": (["--trainer.max_epochs=1", "--trainer.max_steps=-1"], 2),
    "min_steps": (["--trainer.min_steps=3"], 4),
    "min_epochs": (["--trainer.min_epochs=2"], 4),
    "max_time": (["--trainer.max_time=00:00:10:00"], 4),
    "limit_train_batches": (["--trainer.limit_train_batches=1.0"], 4),
    "limit_train_batches of a rollout": (["--trainer.limit_train_batches=4"], 4),
    "no training": (["--trainer.limit_train_batches=0"], 0),
    "fast_dev_run": (["--trainer.fast_dev_run=4"], 2),
    "fast_dev_run of one": (["--trainer.fast_dev_run=true", "--trainer.accumulate_grad_batches=1"], 1),
    "sanity": (["--trainer.num_sanity_val_steps=2"], 4),
    "limit_val_batches": (["--trainer.limit_val_batches=1"], 4),
    "no validation": (["--trainer.limit_val_batches=0"], 4),
    "check_val_every_n_epoch": (["--trainer.check_val_every_n_epoch=1"], 4),
    "val_check_interval": (["--trainer.val_check_interval=2", "--trainer.check_val_every_n_epoch=1"], 4),
    "val_check_interval over epochs": (
        ["--trainer.val_check_interval=2", "--trainer.check_val_every_n_epoch=null"],
        4,
    ),
    "inference_mode": (["--trainer.inference_mode=false"], 4),
    "deterministic": (["--trainer.deterministic=true"], 4),
    "benchmark": (["--trainer.benchmark=true"], 4),
    "detect_anomaly": (["--trainer.detect_anomaly=true"], 4),
    "profiler": (["--trainer.profiler=simple"], 4),
    "model summary": (["--trainer.enable_model_summary=true"], 4),
    "no clipping": (["--trainer.gradient_clip_val=0"], 4),
    "clipping by value": (["--trainer.gradient_clip_algorithm=value"], 4),
    "sampler": (["--trainer.use_distributed_sampler=false"], 4),
    "learning rate": ([f"{CALLBACKS}+=LearningRateMonitor", *CSV_LOGGER], 4),
    "device statistics": ([f"{CALLBACKS}+=DeviceStatsMonitor", *CSV_LOGGER], 4),
}


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    WholeUpdates.closes = []


@pytest.mark.parametrize(("options", "steps"), TAKEN.values(), ids=TAKEN.keys())
def test_a_flag_is_taken_and_every_update_is_whole(model_folder, tmp_path, options, steps):
    trainer = fit(model_folder, tmp_path / "run", *options, WATCH).trainer
    assert trainer.global_step == steps
    assert WholeUpdates.closes == [True] * steps


REFUSED = {
    "limit_train_batches": (["--trainer.limit_train_batches=3"], "`limit_train_batches` is 3, but a rollout has 4"),
    "limit_train_batches of an update": (["--trainer.limit_train_batches=2"], "`limit_train_batches` is 2, but"),
    "limit_train_batches as a fraction": (["--trainer.limit_train_batches=0.5"], "`limit_train_batches` is 0.5, but"),
    "overfit_batches": (["--trainer.overfit_batches=1"], "`overfit_batches` is 1"),
    "overfit_batches as a fraction": (["--trainer.overfit_batches=0.5"], "`overfit_batches` is 0.5"),
    "fast_dev_run": (["--trainer.fast_dev_run=true"], "`fast_dev_run` is 1, a part of an optimizer step of 2"),
    "fast_dev_run of three": (["--trainer.fast_dev_run=3"], "`fast_dev_run` is 3, a part of an optimizer step of 2"),
    "accumulation that changes": (
        [f"{CALLBACKS}+=GradientAccumulationScheduler", f"{CALLBACKS}.scheduling={{0: 1, 1: 2}}"],
        "pass one `accumulate_grad_batches` instead",
    ),
    "no accumulation": (["--trainer.accumulate_grad_batches=0"], "`accumulate_grad_batches` is 0; pass 1 or more"),
    "negative accumulation": (["--trainer.accumulate_grad_batches=-2"], "`accumulate_grad_batches` is -2; pass 1"),
    "clipping": (["--trainer.gradient_clip_val=.nan"], "`gradient_clip_val` is nan; pass 0 or more"),
    "negative clipping": (["--trainer.gradient_clip_val=-1"], "; pass 0 or more, a finite number"),
    "validation within an update": (["--trainer.val_check_interval=3"], "`val_check_interval` is 3, which falls"),
    "two progress bars": (
        [f"{CALLBACKS}+=RichProgressBar", "--trainer.enable_progress_bar=false"],
        "found `RichProgressBar` in callbacks list",
    ),
    "no logger": ([f"{CALLBACKS}+=LearningRateMonitor"], "Cannot use `LearningRateMonitor` callback"),
    "steps": (["--trainer.max_steps=-2"], "`max_steps` must be"),
}


@pytest.mark.parametrize(("options", "message"), REFUSED.values(), ids=REFUSED.keys())
def test_a_flag_that_would_split_an_update_is_refused_with_the_remedy(model_folder, tmp_path, options, message):
    with pytest.raises(SystemExit) as stop:
        fit(model_folder, tmp_path / "run", *options, WATCH)
    assert message in str(stop.value.code)
    assert WholeUpdates.closes == []


RESULTS = {"metrics.csv", "model", "summary.json", "samples.md", "reward.png", "checkpoints", "config.yaml"}


def names(folder):
    return {path.name for path in folder.iterdir()} if folder.exists() else set()


def test_without_checkpoints_the_results_still_come_and_it_is_said_once(model_folder, tmp_path, caplog):
    with caplog.at_level("INFO"):
        fit(model_folder, tmp_path / "run", "--trainer.enable_checkpointing=false")
    assert {"metrics.csv", "summary.json", "model", "reward.png"} <= {
        path.name for path in (tmp_path / "run").iterdir()
    }
    assert not (tmp_path / "run" / "checkpoints").exists()
    assert caplog.text.count("no checkpoint is saved") == 1


def test_a_development_run_writes_nothing(model_folder, tmp_path):
    fit(model_folder, tmp_path / "run", "--trainer.fast_dev_run=4")
    names = {path.name for path in (tmp_path / "run").iterdir()} if (tmp_path / "run").exists() else set()
    assert not names & {
        "metrics.csv",
        "model",
        "summary.json",
        "samples.md",
        "reward.png",
        "checkpoints",
        "config.yaml",
    }


def held_out(folder):
    return {int(row["step"]) for row in rows(folder) if row.get("val/reward_sampled")}


@pytest.mark.parametrize(
    ("options", "steps"),
    [
        ([], {0, 4}),
        (["--report.evaluate_every_n_steps=3"], {0, 3, 4}),
        (["--report.evaluate_every_n_steps=3", "--report.evaluate_after_training=false"], {0, 3}),
        (["--report.evaluate_before_training=false"], {4}),
        (["--report.evaluate_before_training=false", "--report.evaluate_after_training=false"], set()),
        (["--trainer.limit_val_batches=0"], set()),
        (["--trainer.num_sanity_val_steps=1"], {0, 4}),
        (["--trainer.check_val_every_n_epoch=1"], {0, 2, 4}),
        (["--trainer.check_val_every_n_epoch=1", "--trainer.val_check_interval=2"], {0, 1, 2, 3, 4}),
        (["--trainer.check_val_every_n_epoch=null", "--trainer.val_check_interval=6"], {0, 3, 4}),
        (["--trainer.max_steps=3", "--report.evaluate_every_n_steps=2"], {0, 2, 3}),
        (["--trainer.max_epochs=1"], {0, 2}),
    ],
)
def test_held_out_prompts_are_evaluated_when_it_is_asked_and_stand_in_the_metrics(
    model_folder, tmp_path, options, steps
):
    fit(model_folder, tmp_path / "run", *options)
    assert held_out(tmp_path / "run") == steps
    if 4 in steps:
        *_, last = rows(tmp_path / "run")
        assert last["step"] == "4"
        assert last["reward"]  # the rest of the row is kept


def test_evaluations_may_be_greedy_only(model_folder, tmp_path):
    fit(model_folder, tmp_path / "run", "--data.evaluations=[greedy]")
    assert {name for name in rows(tmp_path / "run")[0] if name.startswith("val/")} == {
        "val/reward_greedy",
        "val/mean_length_greedy",
    }
    assert "```text" in (tmp_path / "run" / "samples.md").read_text()


@pytest.mark.parametrize("names", ["[]", "[argmax]", "[greedy, greedy]"])
def test_an_unknown_evaluation_is_refused(model_folder, tmp_path, names):
    with pytest.raises(SystemExit) as stop:
        fit(model_folder, tmp_path / "run", f"--data.evaluations={names}")
    assert stop.value.code not in (0, None)
