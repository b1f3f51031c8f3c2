"""Loggers of the trainer get the metrics and the resolved configuration of a run."""

import csv

import pytest
import yaml

from tests.lightning_modules.command_line import fit, rows

LOGGER = "--trainer.logger"


@pytest.fixture(autouse=True)
def working_folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)


def test_a_csv_logger_has_the_hyperparameters(model_folder, tmp_path):
    fit(model_folder, tmp_path / "run", f"{LOGGER}=CSVLogger", f"{LOGGER}.save_dir=logged", "--trainer.max_steps=1")
    (path,) = (tmp_path / "logged").rglob("hparams.yaml")
    logged = yaml.safe_load(path.read_text())
    assert logged["model"]["learning_rate"] == 1e-3
    assert logged["model"]["objective"]["class_path"] == "aggregate_po.recipes.gmpo"
    assert logged["data"]["group_size"] == 4
    assert logged == yaml.safe_load((tmp_path / "run" / "config.yaml").read_text())


@pytest.mark.parametrize("logger", ["CSVLogger", "TensorBoardLogger"])
def test_diagnostics_are_in_the_file_of_the_run_and_in_loggers(model_folder, tmp_path, logger):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = [f"{LOGGER}={logger}", f"{LOGGER}.save_dir=logged", "--trainer.max_steps=4"]
    options += ["--trainer.log_every_n_steps=2", "--trainer.callbacks+=lightning_modules.AggregationDiagnostics"]
    fit(model_folder, tmp_path / "run", *options)
    name = "weights/concentration/positive/max"
    values = {int(row["step"]): float(row[name]) for row in rows(tmp_path / "run") if row[name]}
    assert [*values] == [1, 2, 3, 4]
    (folder,) = (path.parent for path in (tmp_path / "logged").rglob("hparams.yaml"))
    if logger == "CSVLogger":
        with (folder / "metrics.csv").open(newline="") as lines:
            logged = {int(row["step"]): float(row[name]) for row in csv.DictReader(lines) if row[name]}
    else:
        events = accumulator.EventAccumulator(str(folder))
        events.Reload()
        logged = {event.step: event.value for event in events.Scalars(name)}
        assert [event.step for event in events.Scalars("policy_loss")] == [*logged]
    assert logged == pytest.approx({step - 1: values[step] for step in (2, 4)})


def test_tensorboard_has_the_hyperparameters_and_the_metrics(model_folder, tmp_path):
    accumulator = pytest.importorskip("tensorboard.backend.event_processing.event_accumulator")
    options = [f"{LOGGER}=TensorBoardLogger", f"{LOGGER}.save_dir=logged", "--trainer.max_steps=2"]
    fit(model_folder, tmp_path / "run", *options)
    (path,) = (tmp_path / "logged").rglob("hparams.yaml")
    assert yaml.safe_load(path.read_text())["model"]["learning_rate"] == 1e-3
    events = accumulator.EventAccumulator(str(path.parent))
    events.Reload()
    assert [event.step for event in events.Scalars("val/reward_greedy")] == [0, 2]
    assert len(events.Scalars("reward")) == 2
