"""The page on frozen rollouts: its commands run, shortened, and its tables name what they write."""

import csv
import re
import shlex
import sys

import pytest
from safetensors import safe_open

pytest.importorskip("pyarrow")

from lightning_modules.__main__ import main
from lightning_modules.comparison.tables import summary_table
from tests.docs.test_snippets import ROOT, blocks, folder

__all__ = ["folder"]

PAGE = ROOT / "docs" / "frozen-rollouts.md"
SHORT = ["--rollouts=1", "--data.prompts_per_rollout=4", "--data.updates_per_rollout=2", "--data.group_size=4"]
SHORT += ["--data.max_completion_length=6", "--data.truncated=score"]
SHORT += ["--data.reward=tests.lightning_modules.command_line.length_reward"]


TEXT = PAGE.read_text(encoding="utf-8")
OPTIONAL = {"batch.policy.ref_log_probs", "batch.policy.mean_weights"}  # not in this job


def names(heading, first_column):
    """The code in the first column of a table, which is below a heading and named by its first column."""
    section = next(part for part in TEXT.split("\n## ") if part.startswith(heading))
    tables = re.findall(rf"^\| {first_column} \|.*\n\|[-|]+\n((?:\|.*\n)+)", section, re.MULTILINE)
    return {name for table in tables for line in table.splitlines() for name in code(line.split(" | ")[0])}


def code(cell):
    return re.findall(r"`([^`]+)`", cell)


def header(path):
    with path.open(newline="") as table:
        return set(next(csv.reader(table)))


@pytest.fixture
def written(folder, tiny_model, monkeypatch, capsys):
    """The folder after the two commands, with a tiny model, and what they print."""
    for line in next(iter(blocks(PAGE, "bash")))[2].replace("\\\n", " ").splitlines():
        program, command, *arguments = shlex.split(line)
        options = [*SHORT, f"--model.model_name={tiny_model}"] if command == "record" else []
        monkeypatch.setattr(sys, "argv", [program, command, *arguments, *options])
        main()
    return folder / "runs", capsys.readouterr().out


def test_the_commands_run_and_write_what_the_tables_name(written):
    runs, printed = written
    assert next(line for line in TEXT.splitlines() if line.startswith("| objective | value")) in printed
    assert {path.name for path in (runs / "frozen").iterdir()} == {
        name.split("/")[0] for name in names("The folder", "file")
    }
    with safe_open(runs / "frozen" / "steps" / "step-000001.safetensors", "pt") as file:
        tensors = set(file.keys())
    whole = {name for name in names("The folder", "name") if not name.startswith(".") and not name.endswith("*")}
    assert {name for name in whole - OPTIONAL if f"batches.0.{name}" not in tensors} == {"evaluated.exponents"}
    comparison = runs / "comparison"
    columns = header(comparison / "objectives.csv") | header(comparison / "parameter_gradients.csv")
    counts = {"objective", "update", "steps", "step", "completions", "tokens"}
    assert columns - counts == names("Measures", "column")
    assert {path.stem for path in comparison.iterdir()} == {name.split(".")[0] for name in names("Compare", "file")}


def test_the_printed_table_has_the_columns_of_the_page():
    assert summary_table([], [{"objective": "recorded"}]).splitlines()[0] in TEXT


def test_the_page_names_the_printed_columns():
    gradients = [{"objective": "gmpo"}]
    printed = [cell.strip() for cell in summary_table([], gradients).splitlines()[0].strip("|").split("|")]
    table = TEXT[TEXT.index("| printed |") :].split("\n\n")[0].splitlines()[2:]
    columns = [column for row in table for column in row.split(" | ")[0].strip("| ").split(", ")]
    assert sorted(["objective", *columns]) == sorted(printed)
    measures = {name for row in table for name in code(row)}
    assert measures <= names("Measures", "column")
