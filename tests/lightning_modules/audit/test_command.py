"""The command `aggregate-po audit-reward`: its output and its errors."""

import json

import pytest

from lightning_modules.audit.command import audit_command

GRADER = """
from lightning_modules.rewards import BatchReward


class Length(BatchReward):
    \"\"\"Rewards texts of a length.

    Args:
        length: Length of a right text.
    \"\"\"

    def __init__(self, length: int = 1):
        self.length = length

    def __call__(self, completions, examples):
        return [float(len(text) == self.length) for text in completions]
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    (tmp_path / "my_length_grader.py").write_text(GRADER)
    (tmp_path / "rows.jsonl").write_text('{"completion": "a"}\n{"completion": "ab"}\n')
    return tmp_path


OPTIONS = ["--reward=my_length_grader.Length", "--other=my_length_grader.Length", "--other.length=2"]


def test_both_forms_are_printed(folder, capsys):
    audit_command(["rows.jsonl", *OPTIONS])
    assert "The graders differ, or one fails, on 2 of them (100.00%)." in capsys.readouterr().out
    audit_command(["rows.jsonl", *OPTIONS, "--format=json"])
    assert len(json.loads(capsys.readouterr().out)["differences"]) == 2


def test_an_error_is_one_sentence(folder):
    with pytest.raises(SystemExit, match=r"^error: `file` is 'none.jsonl', which is not a file; pass"):
        audit_command(["none.jsonl", *OPTIONS])


@pytest.mark.parametrize(
    "arguments",
    [["rows.jsonl", "--reward=my_length_grader.Length"], OPTIONS, ["--shown=3"], ["rows.jsonl", *OPTIONS, "--show=-1"]],
)
def test_what_is_missing_or_unknown_is_a_usage_error(folder, capsys, arguments):
    with pytest.raises(SystemExit) as stop:
        audit_command(arguments)
    assert stop.value.code == 2


def test_help_explains_every_option(capsys):
    with pytest.raises(SystemExit):
        audit_command(["--help"])
    printed = " ".join(capsys.readouterr().out.split())
    for text in ("Name of the field that holds the completion.", "Second grader.", "Format of the output."):
        assert text in printed
