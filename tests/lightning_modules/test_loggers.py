"""Loggers of the trainer get the metrics and the resolved configuration of a run."""

import pytest
import yaml

from tests.lightning_modules.command_line import fit

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
