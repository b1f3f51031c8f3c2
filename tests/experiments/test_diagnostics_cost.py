"""The benchmark of the callbacks' cost, shortened and with a tiny model."""

import runpy
import sys
from pathlib import Path

import pytest

pytest.importorskip("pyarrow")

SCRIPT = Path(__file__).parents[2] / "experiments" / "benchmarks" / "diagnostics_cost.py"


def test_the_cost_of_each_callback_is_printed(tiny_model, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["script", "--model", str(tiny_model), "--pairs", "3", "--prompts", "2"])
    runpy.run_path(str(SCRIPT), run_name="__main__")
    lines = capsys.readouterr().out.splitlines()
    assert [line.split(":")[0] for line in lines] == ["AggregationDiagnostics", "TokenWeightsFile"]
    assert all("in the callback itself" in line for line in lines)
