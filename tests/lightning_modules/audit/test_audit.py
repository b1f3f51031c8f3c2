"""Two graders on a file of completions: counts, differences, bad lines, failures."""

import datetime
import gzip
import json

import pytest

from lightning_modules.audit import audit_json, audit_rewards, audit_table
from lightning_modules.parquet_files import write_rows
from lightning_modules.rewards import BatchReward, Verdict, boxed_answer
from tests.lightning_modules.rewards.pool.hostile import reward as hostile

ROWS = [
    {"completion": r"\boxed{1}", "answer": "1"},
    {"completion": r"\boxed{2}", "answer": "1"},
    {"completion": "a | b\nends with 1", "answer": "1"},
    {"completion": "exception", "answer": "7"},
]
DATED = {"completion": "ends with 1", "answer": "1", "date": datetime.date(2024, 2, 3)}


class EndsWith(BatchReward):
    """Right if the completion ends with the answer, or has it before the last character; fails on one text."""

    def __init__(self):
        self.closed = False

    def __call__(self, completions, examples):
        pairs = zip(completions, examples, strict=True)
        return [
            Verdict(None, "exit") if text == "exception" else float(example["answer"] in text[-2:])
            for text, example in pairs
        ]

    def close(self):
        self.closed = True


def length(completion, example):
    return float(len(completion))


@pytest.fixture
def file(tmp_path):
    path = tmp_path / "completions.jsonl.gz"
    lines = [*map(json.dumps, ROWS), "not json", "[1]", "", json.dumps({"completion": 3})]
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return str(path)


@pytest.mark.filterwarnings("ignore:`reward`")
def test_what_two_graders_say_is_counted_and_compared(file):
    other = EndsWith()
    audit = audit_rewards(file, boxed_answer, other)
    assert (audit.rows, other.closed) == (4, True)
    assert audit.pairs == {(1.0, 1.0): 1, (0.0, 0.0): 1, (0.0, 1.0): 1, (0.0, None): 1}
    assert (audit.first.name, audit.first.mean, audit.first.count, audit.first.failed) == ("boxed_answer", 0.25, 4, {})
    assert (audit.second.name, audit.second.count, audit.second.failed) == ("EndsWith", 3, {"exit": 1})
    assert [(one.line, one.verdict.value, one.other.value) for one in audit.differences] == [(3, 0, 1), (4, 0, None)]
    assert audit.differences[0].example == {"answer": "1"}
    assert [row.line for row in audit.bad_rows] == [5, 6, 8]

    content = json.loads(audit_json(audit))
    assert content["rows"] == 4
    assert content["first"] == {"name": "boxed_answer", "mean": 0.25, "count": 4, "failed": {}}
    assert content["differences"][1]["second"] == {"value": None, "cause": "exit", "detail": ""}
    assert content["bad_rows"][1] == {"line": 6, "reason": "not a JSON object but list"}

    table = audit_table(audit, show=1)
    assert "4 completions graded, 3 bad lines left out." in table
    assert "| EndsWith | 0.6667 | 3 | exit: 1 |" in table
    assert r"| 3 | 0 | 1 | 1 | a \| b ends with 1 |" in table
    assert "1 further ones. `--format json` has them all." in table
    assert "2 further bad lines. `--format json` has them all." in table
    assert "pairs of rewards" not in table


def test_pairs_beyond_the_table_are_counted(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text("".join(json.dumps({"completion": "x" * (1 + row // 2)}) + "\n" for row in range(24)))
    table = audit_table(audit_rewards(str(path), length, length))
    assert "4 completions have 2 further pairs of rewards. `--format json` has them all." in table


@pytest.mark.filterwarnings("ignore:`reward`")
def test_a_hostile_completion_costs_its_verdict(tmp_path):
    path = tmp_path / "rows.jsonl"
    texts = ["abc", "exit", "exception", "ab"]
    path.write_text("".join(json.dumps({"text": text}) + "\n" for text in texts))
    audit = audit_rewards(str(path), hostile, hostile, completion="text")
    assert (audit.first.name, audit.second.name) == ("reward_1", "reward_2")
    assert audit.first.failed == audit.second.failed == {"exit": 1, "exception": 1}
    assert [difference.line for difference in audit.differences] == [2, 3]


def test_a_file_without_completions_is_an_error(tmp_path):
    path = tmp_path / "rows.jsonl"
    path.write_text('{"text": "a"}\n')
    message = r"^`file` is '.*', in which no line has a completion; line 1: no text under \"completion\"; see `compl"
    with pytest.raises(ValueError, match=message):
        audit_rewards(str(path), EndsWith(), EndsWith())
    with pytest.raises(FileNotFoundError, match=r"^`file` is 'none'"):
        audit_rewards("none", EndsWith(), EndsWith())


def test_a_difference_with_a_date_is_written_as_json(tmp_path):
    write_rows([DATED], tmp_path / "rows.parquet")
    audit = audit_rewards(str(tmp_path / "rows.parquet"), boxed_answer, EndsWith())
    (difference,) = json.loads(audit_json(audit))["differences"]
    assert difference["example"]["date"] == "2024-02-03"
