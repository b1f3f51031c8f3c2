"""The command that makes the picture of the documentation, on the tokens of a short run."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from experiments.heat_map import shortened
from lightning_modules.parquet_files import write_rows
from lightning_modules.token_rows import read_token_rows
from tests.lightning_modules.viewer.run_folders import make_run

ROOT = Path(__file__).resolve().parents[2]


@pytest.fixture(scope="module")
def run(tmp_path_factory):
    return make_run(tmp_path_factory.mktemp("runs") / "pmpo")


def picture(run, output, *options):
    """Run the command, and return what it prints."""
    command = [sys.executable, "experiments/heat_map.py", run, *options, "--output", output]
    return subprocess.run(command, cwd=ROOT, capture_output=True, text=True)


def test_a_completion_is_chosen_and_shown(run, tmp_path):
    done = picture(run, tmp_path / "heat-map.svg", "--step", "6", "--group", "1", "--sample", "2")
    assert done.returncode == 0, done.stderr
    assert "step 6, group 1, sample 2" in done.stdout
    svg = (tmp_path / "heat-map.svg").read_text(encoding="utf-8")
    for text in (
        "What is 41 + 5?",
        "objective pmpo",
        "AdditionWarmStart",
        "optimizer step 6",
        "log ratio",
        "concentration",
    ):
        assert text in svg


def test_a_completion_without_a_reward_is_shown(tmp_path):
    run = make_run(tmp_path / "run", rollouts=[1])
    rows = [{**row, "reward": None} for row in read_token_rows(run)]
    write_rows(rows, run / "tokens" / "step-000002.parquet")
    (run / "completions" / "step-000001.parquet").unlink()
    done = picture(run, tmp_path / "heat-map.svg", "--quantities", "advantage")
    assert done.returncode == 0, done.stderr
    assert "optimizer step 2<" in (tmp_path / "heat-map.svg").read_text(encoding="utf-8")


def test_a_completion_that_is_not_there_is_refused(run, tmp_path):
    done = picture(run, tmp_path / "heat-map.svg", "--step", "7", "--group", "1")
    assert done.returncode == 1
    assert done.stderr.startswith("error: no completion of step 7, group 1 has token rows; pass one of the steps ")
    assert " 6" in done.stderr


def test_a_run_without_token_rows_and_an_unknown_quantity_are_refused(tmp_path):
    other = make_run(tmp_path / "other", tokens=False)
    done = picture(other, tmp_path / "heat-map.svg")
    assert done.returncode == 1
    assert done.stderr == (
        "error: the run has no token rows; train with the callback lightning_modules.TokenWeightsFile.\n"
    )
    for unknown in ("size", "clip"):
        done = picture(other, tmp_path / "heat-map.svg", "--quantities", unknown)
        assert f"argument --quantities: invalid choice: '{unknown}' (choose from" in done.stderr


def test_an_objective_of_parts_is_shown_with_its_mean():
    assert shortened("PolicyObjective(aggregator=MyMean(scale=0.3), normalizer=TokenMean)") == "PolicyObjective(MyMean)"
    assert shortened("pmpo(log_clip=0.3)") == "pmpo"
