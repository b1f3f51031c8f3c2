"""The command `aggregate-po view`: what it writes, prints and refuses."""

import subprocess
import sys

import pytest

pytest.importorskip("pyarrow")

from lightning_modules.viewer.command import view_command
from tests.lightning_modules.viewer.run_folders import make_run


@pytest.fixture
def run(tmp_path):
    return make_run(tmp_path / "run")


def test_the_page_is_written_and_counted(run, tmp_path, capsys):
    output = tmp_path / "page.html"
    view_command([str(run), "--output", str(output)])
    assert output.read_text(encoding="utf-8").startswith("<!doctype html>")
    printed = capsys.readouterr().out
    assert printed == f"{output}: 1 run, 24 completions, 24 of them with token numbers; 0.1 MB.\n"
    view_command([str(run), "--output", str(output), "--max_completions=8"])
    printed = capsys.readouterr().out
    assert "8 of 24 completions are shown, in whole groups and evenly over the steps" in printed
    assert printed.endswith("MB, replaced.\n")


def test_several_runs_make_one_page(tmp_path, capsys):
    runs = [make_run(tmp_path / f"run{seed}", seed) for seed in range(3)]
    view_command([*map(str, runs), "--output", str(tmp_path / "page.html")])
    assert "3 runs, 72 completions" in capsys.readouterr().out


def test_the_command_is_a_subcommand(run, tmp_path):
    command = [sys.executable, "-m", "lightning_modules", "view", str(run), "--output", str(tmp_path / "page.html")]
    printed = subprocess.run(command, capture_output=True, text=True, check=True).stdout
    assert "24 completions" in printed


@pytest.mark.parametrize(
    ("output", "reason"),
    [
        ("run/metrics.csv", r"`output` is '.*metrics.csv', which does not end in .html; pass the path of an HTML file"),
        ("run", r"`output` is '.*run', which is a folder; pass the path of an HTML file"),
        ("none/page.html", r"`output` is '.*page.html', whose folder does not exist; create it first"),
    ],
)
def test_an_output_that_is_no_html_file_is_refused(output, reason, run, tmp_path):
    before = (run / "metrics.csv").read_bytes()
    with pytest.raises(SystemExit, match=f"^error: {reason}"):
        view_command([str(run), "--output", str(tmp_path / output)])
    assert (run / "metrics.csv").read_bytes() == before


def test_an_error_is_one_sentence(tmp_path):
    with pytest.raises(SystemExit, match=r"^error: `runs` has '.*none', which is not a folder; pass the folder"):
        view_command([str(tmp_path / "none"), "--output", str(tmp_path / "page.html")])
    assert not (tmp_path / "page.html").exists()


@pytest.mark.parametrize("arguments", [[], ["run"], ["--output=page.html"], ["run", "--output=page.html", "--max=3"]])
def test_what_is_missing_or_unknown_is_a_usage_error(arguments, capsys):
    with pytest.raises(SystemExit) as stop:
        view_command(arguments)
    assert stop.value.code == 2


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit):
        view_command(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    for text in ("Run folder, such as runs/addition.", "an existing one is replaced", "Number of completions"):
        assert text in printed
