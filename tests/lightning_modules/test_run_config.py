"""Configuration files of a run folder: which ones a resume adds, and which one is the newest."""

import os
from pathlib import Path
from types import SimpleNamespace

import pytest
import yaml
from jsonargparse import ArgumentParser

from lightning_modules.run_config import SaveFitConfig, newest_config


@pytest.fixture
def run(tmp_path):
    """Return a function that begins a run, or resumes it from the checkpoint of a step."""
    parser = ArgumentParser()
    parser.add_argument("--rate", type=float)
    parser.add_argument("--ckpt_path", default=None)
    parser.add_argument("--trainer.default_root_dir", default=str(tmp_path))
    trainer = SimpleNamespace(loggers=[], default_root_dir=str(tmp_path))

    def begun(rate: float, checkpoint: str | None = None) -> Path:
        resume = []
        if checkpoint is not None:
            (tmp_path / checkpoint).touch()
            resume = [f"--ckpt_path={tmp_path / checkpoint}"]
        config = parser.parse_args([f"--rate={rate}", *resume])
        SaveFitConfig(parser, config).save_config(trainer, None, "fit")
        return tmp_path

    return begun


def rate(folder):
    return yaml.safe_load(newest_config(folder).read_text())["rate"]


def names(folder):
    return sorted(file.name for file in folder.glob("*.yaml"))


def test_a_resume_with_the_first_configuration_after_another_one_adds_a_file(run):
    run(1e-2)
    run(5e-3, "step-2.ckpt")
    folder = run(1e-2, "step-4.ckpt")
    assert names(folder) == ["config-2-from-step-2.yaml", "config-3-from-step-4.yaml", "config.yaml"]
    assert rate(folder) == 1e-2


def test_a_resume_with_the_newest_configuration_adds_no_file(run):
    run(1e-2)
    run(5e-3, "step-2.ckpt")
    assert names(run(5e-3, "step-4.ckpt")) == ["config-2-from-step-2.yaml", "config.yaml"]


@pytest.mark.parametrize("checkpoint", ["step-4.ckpt", "step-2.ckpt", "other.ckpt"])
def test_the_last_resume_counts_whatever_its_checkpoint_is(run, checkpoint):
    run(1e-2)
    run(5e-3, "step-4.ckpt")
    assert rate(run(2e-3, checkpoint)) == 2e-3


def test_the_order_does_not_depend_on_the_times_of_the_files(run):
    run(1e-2)
    for number in range(2, 12):
        folder = run(1e-2 / number, "step-4.ckpt")
    for age, file in enumerate(sorted(folder.glob("*.yaml"))):
        os.utime(file, (age, age))
    assert rate(folder) == 1e-2 / 11


def test_a_new_run_in_the_folder_of_another_one_replaces_all_of_its_files(run):
    run(1e-2)
    run(5e-3, "step-2.ckpt")
    folder = run(2e-3)
    assert names(folder) == ["config.yaml"]
    assert rate(folder) == 2e-3


def test_files_of_older_runs_without_a_number_are_ordered_by_their_steps(run):
    folder = run(1e-2)
    for step in ("100", "20", "100.2"):
        (folder / f"config-from-step-{step}.yaml").write_text(f"rate: {step}\n")
    assert rate(folder) == 100.2
    assert newest_config(run(5e-3, "step-7.ckpt")).name == "config-2-from-step-7.yaml"
