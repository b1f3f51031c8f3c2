"""Rows of files of completions."""

import json

import pytest

from lightning_modules.audit.rows import BadRow, rows_of
from lightning_modules.parquet_files import write_rows


def test_lines(tmp_path):
    file = tmp_path / "rows.jsonl"
    file.write_text('{"completion": "a", "answer": 1}\n\n[1]\n{"answer": 2}\nnot JSON\n{"completion": "b"}\n')
    bad_rows = []
    assert list(rows_of(str(file), "completion", bad_rows)) == [(1, "a", {"answer": 1}), (6, "b", {})]
    assert [row.line for row in bad_rows] == [3, 4, 5]
    assert bad_rows[1] == BadRow(4, 'no text under "completion"')


def test_rows_of_an_evaluation(tmp_path):
    """Their answer is the reference answer, not the one that was read from the completion."""
    rows = [{"completion": "It is 3.", "prompt": "1 + 1?", "answer": "2", "extracted": "3"}, {"completion": None}]
    write_rows(rows, tmp_path / "completions.parquet")
    bad_rows = []
    ((number, text, example),) = rows_of(str(tmp_path / "completions.parquet"), "completion", bad_rows)
    assert (number, text, example["answer"]) == (1, "It is 3.", "2")
    assert [row.line for row in bad_rows] == [2]


def test_rows_of_a_run_have_the_fields_of_their_example(tmp_path):
    """The fields of the example have the same value to a grader as in training, where columns have their name, too."""
    fields = {"answer": "2", "level": 4, "length": 5}
    row = {"step": 1, "completion": "2", "example": json.dumps(fields), "reward": 1.0, "length": 77}
    write_rows([row], tmp_path / "step-000001.parquet")
    ((_, text, example),) = rows_of(str(tmp_path / "step-000001.parquet"), "completion", [])
    assert (text, example) == ("2", {**fields, "step": 1, "reward": 1.0})


@pytest.mark.parametrize(
    ("example", "fields"),
    [("an example in words", {"example": "an example in words"}), ({"answer": "2"}, {"answer": "2"}), ("[1]", None)],
)
def test_a_column_called_example_may_be_of_another_kind(tmp_path, example, fields):
    write_rows([{"completion": "2", "example": example}], tmp_path / "mine.parquet")
    ((_, _, found),) = rows_of(str(tmp_path / "mine.parquet"), "completion", [])
    assert found == (fields or {"example": example})
