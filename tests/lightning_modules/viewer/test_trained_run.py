"""A run that was trained, as the documentation says it: its completions and token rows meet on the page."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

from lightning_modules import read_completions
from lightning_modules.viewer.command import view_command
from lightning_modules.viewer.view import run_report
from tests.lightning_modules.command_line import fit

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def run(tiny_model, tmp_path_factory):
    folder = tmp_path_factory.mktemp("runs") / "pmpo"
    options = [f"--trainer.callbacks+=lightning_modules.{name}" for name in ("CompletionsFile", "TokenWeightsFile")]
    fit(tiny_model, folder, "--model.objective=aggregate_po.recipes.pmpo", "--seed_everything=3", *options)
    return folder


def test_token_numbers_are_those_of_their_completion(run):
    (shown,) = run_report([run]).runs
    assert shown.facts["objective"].startswith("pmpo(")
    assert (shown.seed, shown.notes) == ("3", [])
    rows = {(row["step"], row["group"], row["sample"]): row for row in read_completions(run)}
    completions = run_report([run]).completions
    assert len(completions) == len(rows) == 32
    with_tokens = [one for one in completions if one.tokens]
    assert with_tokens
    for one in with_tokens:
        row, (tokens,) = rows[one.step, one.group, one.sample], one.tokens
        assert tokens.step == one.step + 1  # the last of the two steps of the rollout
        assert len(tokens.texts) == row["length"]
        assert list(tokens.values["advantage"]) == pytest.approx([row["advantage"]] * row["length"], rel=1e-6)
        assert sum(tokens.values["concentration"]) == pytest.approx(1, rel=1e-5)


def test_the_commands_of_the_documentation_run(run, tmp_path, capsys):
    view_command([str(run), "--output", str(tmp_path / "pmpo.html")])
    assert "32 completions" in capsys.readouterr().out
    command = [sys.executable, "experiments/heat_map.py", run, "--output", tmp_path / "heat-map.svg"]
    subprocess.run(command, cwd=ROOT, check=True)
    assert "objective pmpo" in (tmp_path / "heat-map.svg").read_text(encoding="utf-8")
