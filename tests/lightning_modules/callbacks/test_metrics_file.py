"""`metrics.csv` after appends, new columns, resumes and kills."""

import csv
import math
import os
import random
import warnings

import pytest

from lightning_modules.callbacks.metrics_file import MetricsFile, has_steps, read_metrics


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture
def path(tmp_path):
    return tmp_path / "run" / "metrics.csv"


def three_steps(path):
    metrics = MetricsFile(path, keep_until=0)
    for step in (1, 2, 3):
        metrics.append(step, {"reward": step / 8, "entropy": 1 / 3})
    return metrics


def test_rows_are_on_disk_as_soon_as_they_are_appended(path):
    metrics = MetricsFile(path, keep_until=0)
    assert rows_of(path) == []
    metrics.append(1, {"reward": 0.125, "entropy": 1 / 3})
    assert rows_of(path) == [{"step": "1", "entropy": "0.3333333333333333", "reward": "0.125"}]
    metrics.append(2, {"entropy": 0.5, "reward": 1e-300})
    assert rows_of(path)[1] == {"step": "2", "entropy": "0.5", "reward": "1e-300"}
    assert float(rows_of(path)[0]["entropy"]) == 1 / 3


def test_a_new_metric_is_a_new_column_and_a_missing_one_an_empty_cell(path):
    metrics = three_steps(path)
    metrics.append(4, {"reward": 0.5, "val/pass@1": 0.25})
    metrics.append(5, {"entropy": 2.0})
    rows = rows_of(path)
    assert list(rows[0]) == ["step", "entropy", "reward", "val/pass@1"]
    assert [row["val/pass@1"] for row in rows] == ["", "", "", "0.25", ""]
    assert [row["entropy"] for row in rows] == ["0.3333333333333333"] * 3 + ["", "2.0"]
    assert [row["step"] for row in rows] == ["1", "2", "3", "4", "5"]


def test_a_metric_that_is_not_a_number_is_an_empty_cell(path):
    MetricsFile(path, keep_until=0).append(1, {"reward": 0.5, "entropy": math.nan, "ratio/max": math.inf})
    assert rows_of(path) == [{"step": "1", "entropy": "", "ratio/max": "inf", "reward": "0.5"}]


@pytest.mark.parametrize("keep_until", [0, 1, 2, 3, 7])
def test_a_resumed_run_keeps_the_rows_up_to_its_step(path, keep_until):
    three_steps(path)
    before = rows_of(path)
    MetricsFile(path, keep_until)
    assert rows_of(path) == [row for row in before if int(row["step"]) <= keep_until]


def test_a_resumed_run_goes_on_in_the_old_columns(path):
    three_steps(path).append(4, {"extra": 1.0})
    metrics = MetricsFile(path, keep_until=3)
    metrics.append(4, {"reward": 0.75})
    metrics.append(5, {"reward": 1.0, "newer": 2.0})
    assert list(rows_of(path)[0]) == ["step", "entropy", "reward", "extra", "newer"]
    assert [row["reward"] for row in rows_of(path)] == ["0.125", "0.25", "0.375", "0.75", "1.0"]


def test_a_resumed_run_gives_the_file_of_one_that_was_not_interrupted(path, tmp_path):
    three_steps(path)
    expected = path.read_bytes()
    other = tmp_path / "other.csv"
    three_steps(other)
    metrics = MetricsFile(other, keep_until=1)
    for step in (2, 3):
        metrics.append(step, {"reward": step / 8, "entropy": 1 / 3})
    assert other.read_bytes() == expected


@pytest.mark.parametrize("stop", range(1, 26))
def test_a_last_line_that_was_written_in_part_is_dropped(path, stop):
    """The line may end anywhere, even within a number, so that the rest reads like another number."""
    three_steps(path)
    complete = path.read_bytes()
    last = complete.splitlines(keepends=True)[-1]
    assert len(last) > 26
    path.write_bytes(complete[: len(complete) - len(last) + stop])
    with pytest.warns(UserWarning, match=r"metrics.csv: dropped 1 damaged line\.$"):
        metrics = MetricsFile(path, keep_until=3)
    assert [row["step"] for row in rows_of(path)] == ["1", "2"]
    metrics.append(3, {"reward": 3 / 8, "entropy": 1 / 3})
    assert path.read_bytes() == complete


def test_a_file_truncated_in_its_first_line_starts_again(path):
    three_steps(path)
    path.write_bytes(b"")
    MetricsFile(path, keep_until=3).append(4, {"reward": 0.5})
    assert rows_of(path) == [{"step": "4", "reward": "0.5"}]


DAMAGED = {
    "NUL bytes at the end": (lambda lines: [*lines, b"\0" * 40 + b"\r\n"], [1, 2, 3], 1),
    "NUL bytes without an end": (lambda lines: [*lines, b"\0" * 40], [1, 2, 3], 1),
    "NUL bytes in place of a row": (lambda lines: [*lines[:2], b"\0" * 40 + b"\n", lines[3]], [1, 3], 1),
    "NUL bytes within a row": (lambda lines: [*lines[:3], lines[3][:8] + b"\0\0" + lines[3][8:]], [1, 2], 1),
    "a half row in the middle": (lambda lines: [*lines[:2], lines[2][:9] + lines[3]], [1], 1),
    "a half row with an end": (lambda lines: [*lines[:3], lines[3][:9] + b"\n"], [1, 2], 1),
    "bytes that are no text": (lambda lines: [*lines[:3], bytes(range(128, 256)) + b"\n", lines[3]], [1, 2, 3], 1),
    "random bytes": (lambda lines: [*lines, random.Random(0).randbytes(3000) + b"\n"], [1, 2, 3], None),
    "a step that is no number": (lambda lines: [*lines[:3], b"x" + lines[3][1:]], [1, 2], 1),
    "a value that is no number": (lambda lines: [*lines[:3], lines[3].replace(b".", b"u", 1)], [1, 2], 1),
    "too many cells": (lambda lines: [*lines[:3], lines[3].replace(b".", b",.", 1)], [1, 2], 1),
    "an open quote": (lambda lines: [*lines[:3], lines[3].replace(b",", b',"', 1)], [1, 2], 1),
    "a row twice": (lambda lines: [*lines, lines[3]], [1, 2, 3], 1),
    "rows of another run between": (lambda lines: [*lines, lines[2], lines[3]], [1, 2, 3], 2),
    "an empty line": (lambda lines: [*lines[:2], b"\r\n", *lines[2:]], [1, 2, 3], 1),
    "no header": (lambda lines: lines[1:], [1, 2, 3], 0),
    "a damaged header": (lambda lines: [b"\0\0" + lines[0], *lines[1:]], [1, 2, 3], 1),
    "a name with a flipped bit": (lambda lines: [lines[0].replace(b"reward", b"rewarf"), *lines[1:]], [1, 2, 3], 1),
    "another file": (lambda lines: [b"PK\3\4" + bytes(500)], [], None),
    "nothing": (lambda lines: [], [], 0),
}


@pytest.mark.parametrize(("damage", "steps", "count"), DAMAGED.values(), ids=DAMAGED.keys())
def test_a_damaged_file_heals(path, damage, steps, count):
    """Undamaged rows stay to the letter, what is dropped is counted, and the file goes on."""
    columns = three_steps(path).columns
    rows = {row["step"]: row for row in rows_of(path)}
    damaged = b"".join(damage(path.read_bytes().splitlines(keepends=True)))
    path.write_bytes(damaged)
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        metrics = MetricsFile(path, keep_until=3, columns=columns)
    assert rows_of(path) == [rows[str(step)] for step in steps]
    said = [str(warning.message) for warning in caught]
    if count == 0:
        assert said == []
    else:
        (message,) = said
        assert f"dropped {count or ''}" in message
    kept = path.with_name("metrics.csv.damaged")
    assert not kept.exists() or kept.read_bytes() == damaged
    assert kept.exists() or count == 0 or not damaged.endswith(b"\n")
    metrics.append(4, {"reward": 0.5})
    metrics.append(5, {"another": 1.0})
    assert [row["reward"] for row in rows_of(path)] == [*(rows[str(step)]["reward"] for step in steps), "0.5", ""]
    assert path.read_bytes().startswith(b"step,entropy,reward,another\r\n")


def test_columns_of_after_the_checkpoint_go_with_a_header_that_is_damaged(path):
    metrics = three_steps(path)
    columns = metrics.columns
    metrics.append(4, {"reward": 0.5, "val/pass@1": 0.25})
    path.write_bytes(path.read_bytes().replace(b"step", b"stop"))
    with pytest.warns(UserWarning, match="dropped 1 damaged line; the file is kept as metrics.csv.damaged"):
        MetricsFile(path, keep_until=3, columns=columns)
    assert [row["reward"] for row in rows_of(path)] == ["0.125", "0.25", "0.375"]
    assert list(rows_of(path)[0]) == columns


def test_a_row_damaged_during_the_run_does_not_stop_a_new_column(path):
    metrics = three_steps(path)
    path.write_bytes(path.read_bytes() + b"\0\0\0\n")
    metrics.append(4, {"new": 1.0})
    assert [row["step"] for row in rows_of(path)] == ["1", "2", "3", "4"]


@pytest.mark.parametrize("occasion", ["resume", "new column"])
def test_an_interrupted_rewrite_leaves_the_old_file(path, monkeypatch, occasion):
    metrics = three_steps(path)
    before = path.read_bytes()

    def interrupted(*args, **kwargs):
        raise KeyboardInterrupt

    monkeypatch.setattr(csv.DictWriter, "writerows", interrupted)
    rewrites = {"resume": lambda: MetricsFile(path, 1), "new column": lambda: metrics.append(4, {"new": 1.0})}
    with pytest.raises(KeyboardInterrupt):
        rewrites[occasion]()
    assert path.read_bytes() == before


def test_what_an_interrupted_rewrite_left_does_no_harm(path):
    three_steps(path)
    (path.parent / ".metrics.csv.part").write_text("step,rew")
    MetricsFile(path, keep_until=2)
    assert [row["step"] for row in rows_of(path)] == ["1", "2"]
    assert os.listdir(path.parent) == ["metrics.csv"]


def test_the_last_row_can_be_amended(path):
    metrics = three_steps(path)
    metrics.amend(3, {"val/pass@1": 0.5})
    last = rows_of(path)[-1]
    assert last == {"step": "3", "entropy": "0.3333333333333333", "reward": "0.375", "val/pass@1": "0.5"}
    assert [row["step"] for row in rows_of(path)] == ["1", "2", "3"]
    written = path.stat().st_mtime_ns
    metrics.amend(3, {"val/pass@1": 0.5})
    assert path.stat().st_mtime_ns == written
    metrics.amend(4, {"val/pass@1": 0.75})
    assert [row["step"] for row in rows_of(path)] == ["1", "2", "3", "4"]


@pytest.mark.parametrize(
    ("content", "holds"),
    [
        (None, False),
        ("", False),
        ("step,reward\n", False),
        ("step,reward\n0,0.5\n", False),
        ("step,reward\n0,0.5\n1,0.5\n", True),
        ("step,reward\n\0\0\0\n", True),
    ],
)
def test_a_file_with_the_row_of_a_step_is_that_of_a_run(path, content, holds):
    path.parent.mkdir()
    if content is not None:
        path.write_text(content)
    assert has_steps(path) is holds


def test_metrics_are_read_back_without_damaged_lines_and_empty_columns(path):
    three_steps(path).append(4, {"reward": 0.5, "kl": math.nan})
    with path.open("a") as file:
        file.write("\0\0\0\n5,0.1")
    steps, metrics = read_metrics(path)
    assert steps == [1, 2, 3, 4]
    assert metrics.keys() == {"reward", "entropy"}
    assert metrics["reward"] == [1 / 8, 2 / 8, 3 / 8, 0.5]
    assert metrics["entropy"] == pytest.approx([1 / 3, 1 / 3, 1 / 3, math.nan], nan_ok=True)
