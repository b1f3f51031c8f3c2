"""`aggregate-po compare`: the folder that it writes, and what it refuses."""

import csv
import math
import shutil
import sys
from dataclasses import replace

import pytest

from lightning_modules import __main__
from lightning_modules.comparison import compare_objectives
from lightning_modules.comparison.command import compare_command
from lightning_modules.comparison.report import comparison_report
from lightning_modules.recordings.manifest import Manifest
from tests.lightning_modules.recordings.test_recorder import recorded

OBJECTIVES = "grpo(clip_low=0.01, clip_high=0.01),gmpo,tests.third_party.lehmer.LehmerMean"
LABELS = ["grpo(clip_low=0.01, clip_high=0.01)", "gmpo", "tests.third_party.lehmer.LehmerMean"]
PLOTS = [
    "clipped_overlap",
    "gradient_by_log_ratio",
    "gradient_by_position",
    "gradient_cosines",
    "measures_by_update",
    "parameter_gradients",
    "weight_by_log_ratio",
]


@pytest.fixture(scope="module")
def folder(tmp_path_factory, model_folder):
    return recorded(tmp_path_factory.mktemp("recorded"), model_folder).recording.folder


def rows(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


def test_the_folder_has_tables_plots_and_a_page(folder, tmp_path, capsys):
    output = tmp_path / "deep" / "comparison"
    compare_command([str(folder), f"--objectives={OBJECTIVES}", f"--output={output}"])
    printed = capsys.readouterr().out
    assert f"report: {output / 'report.html'}" in printed
    assert all(f"| {label} |" in printed for label in ["recorded", *LABELS])
    files = {path.name for path in output.iterdir()}
    assert files == {
        "objectives.csv",
        "report.html",
        *(f"{name}.{ending}" for name in PLOTS for ending in ("svg", "pdf", "csv")),
    }
    table = rows(output / "objectives.csv")
    assert [row["objective"] for row in table if row["update"] == "all"] == ["recorded", *LABELS]
    own = next(row for row in table if row["objective"] == "gmpo")
    assert float(own["largest_difference"]) == 0
    assert own["exponent"] == ""  # a mean without a rule has none
    cosines = {(row["objective"], row["other"]): float(row["cosine"]) for row in rows(output / "gradient_cosines.csv")}
    assert cosines["recorded", "gmpo"] == pytest.approx(1)
    assert (output / "report.html").read_text().startswith("<!doctype html>")


def test_gradients_of_merged_adapters_are_said_to_be_so(folder, tmp_path):
    adapted = shutil.copytree(folder, tmp_path / "adapted")
    replace(Manifest.read(folder), trained_parameters="adapters").write(adapted)
    assert compare_objectives(folder, "gmpo", gradients="steps").gradients_note == ""
    assert compare_objectives(adapted, "gmpo", gradients="none").gradients_note == ""
    comparison = compare_objectives(adapted, "gmpo", gradients="steps")
    assert "gradients of all its weights" in comparison.gradients_note
    assert comparison.gradients_note in comparison_report(comparison, tmp_path).tables[1].caption


def test_without_gradients_no_model_is_loaded(folder, tmp_path):
    compare_command([str(folder), "--objectives=gmpo", f"--output={tmp_path / 'out'}", "--gradients=none"])
    names = {path.stem for path in (tmp_path / "out").iterdir()}
    assert not {"parameter_gradients", "gradient_cosines"} & names


def test_the_same_recording_gives_the_same_files(folder, tmp_path):
    for name in ("first", "second"):
        compare_command([str(folder), "--objectives=grpo,gmpo", f"--output={tmp_path / name}", "--gradients=steps"])
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes(), path.name


def test_the_page_has_the_numbers_of_the_tables(folder, tmp_path):
    comparison = compare_objectives(folder, OBJECTIVES, gradients="none")
    report = comparison_report(comparison, tmp_path)
    assert [quantity.name for quantity in report.quantities] == [*(f"weight/{label}" for label in LABELS), "log_ratio"]
    by_row = {(row["step"], row["group"], row["sample"]): row for row in comparison.recording.tokens}
    assert report.completions
    for one in report.completions:
        row, numbers = by_row[one.step, one.group, one.sample], one.tokens[0]
        assert row["update"] == 2
        own = numbers.values["weight/gmpo"]
        assert [value for value in own if not math.isnan(value)] == pytest.approx(
            [weight for weight, flag in zip(row["weights"], row["trained"], strict=True) if flag]
        )
        assert len(own) == len(row["tokens"]) == one.length
    measures = {row[0]: row[1:] for row in report.tables[0].rows}
    assert measures["tokens"][0] == len(comparison.tokens)
    assert measures["largest difference"][2] == 0
    assert report.runs[0].facts["recorded"] == "2 rollouts, 4 optimizer steps"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--objectives=grp0"], "`objectives` has 'grp0'"),
        (["--objectives=tests.nowhere.Mean"], "cannot be imported"),
        (["--objectives=tpo"], "record with `--every_completion true`"),
        (["--objectives=gmpo", "--gradients=all"], "invalid choice"),
        ([], "objectives"),
    ],
)
def test_wrong_arguments_end_with_their_message(folder, tmp_path, options, message, capsys):
    with pytest.raises(SystemExit) as ended:
        compare_command([str(folder), f"--output={tmp_path / 'out'}", *options])
    assert message in f"{ended.value}{capsys.readouterr().err}"
    assert not (tmp_path / "out").exists()


def test_a_foreign_folder_ends_with_its_message(tmp_path):
    with pytest.raises(SystemExit, match="so it is no recording"):
        compare_command([str(tmp_path), "--objectives=gmpo", f"--output={tmp_path / 'out'}"])


def test_an_existing_output_is_refused(folder, tmp_path):
    with pytest.raises(SystemExit, match="which exists"):
        compare_command([str(folder), "--objectives=gmpo", f"--output={tmp_path}"])


def test_the_command_is_one_of_the_library(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["aggregate-po", "compare", "--help"])
    with pytest.raises(SystemExit):
        __main__.main()
    assert "--gradients" in capsys.readouterr().out
