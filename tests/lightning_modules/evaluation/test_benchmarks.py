"""Benchmarks from files: names, fields, answers, and what is refused."""

import json

import pytest

from lightning_modules.evaluation import benchmarks as module
from lightning_modules.evaluation import benchmarks_of
from lightning_modules.evaluation.benchmarks import Problems, _named
from lightning_modules.prompts.rows import Row


@pytest.fixture
def written(tmp_path):
    def write(rows, name="mine.jsonl"):
        path = tmp_path / name
        path.write_text("".join(json.dumps(row) + "\n" for row in rows))
        return str(path)

    return write


@pytest.mark.parametrize("field", ["prompt", "problem", "question"])
def test_the_usual_fields_of_a_problem_are_found(written, field):
    (one,) = benchmarks_of(written([{field: "1 + 1?", "answer": 2.0}, {field: "1 + 2?", "answer": "3"}]))
    assert one.name == "mine"
    assert [(row["prompt"], row["answer"]) for row in one.problems] == [("1 + 1?", "2"), ("1 + 2?", "3")]


def test_fields_by_name(written):
    path = written([{"prompt": "not this", "task": "1 + 1?", "gold": "2"}])
    (one,) = benchmarks_of(path, prompt_field="task", answer_field="gold")
    assert (one.problems[0]["prompt"], one.problems[0]["answer"]) == ("1 + 1?", "2")


def test_a_parquet_file(tmp_path):
    arrow = pytest.importorskip("pyarrow")
    from pyarrow import parquet

    parquet.write_table(arrow.table({"question": ["1 + 1?"], "answer": ["2"]}), tmp_path / "sums.parquet")
    (one,) = benchmarks_of(str(tmp_path / "sums.parquet"))
    assert (one.name, one.problems[0]["prompt"]) == ("sums", "1 + 1?")


def test_several_benchmarks_with_their_numbers_of_samples(written):
    path = written([{"prompt": "1 + 1?", "answer": "2"}])
    found = benchmarks_of(f"math500={path}, aime24={path},{path}")
    assert [(one.name, one.samples) for one in found] == [("math500", 4), ("aime24", 64), ("mine", 4)]
    assert {one.samples for one in benchmarks_of([f"math500={path}", f"aime24={path}"], samples=7)} == {7}


def test_numbers_of_samples_are_those_of_the_literature():
    assert {name: entry["samples"] for name, entry in _named().items()} == {
        "aime24": 64,
        "aime25": 64,
        "amc23": 32,
        "gsm8k": 1,
        "math500": 4,
        "minerva": 4,
        "olympiadbench": 4,
    }


def test_an_answer_in_a_solution_or_in_a_list():
    row = Row("row 0", {"prompt": "?", "answer": "6 and 12 are 18.\n#### 1,018"})
    assert Problems([row], answer_forms=["hashes"])[0]["answer"] == "1,018"
    listed = Row("row 0", {"extra": {"question": "?"}, "final": ["$2$"]})
    assert Problems([listed], "extra.question", "final")[0]["answer"] == "$2$"


def test_a_name_stands_for_a_data_set_of_the_hub(monkeypatch):
    calls = []

    def rows_of(*arguments):
        calls.append(arguments)
        return [Row("openai/gsm8k, row 0", {"question": "6 + 12?", "answer": "It is 18.\n#### 18"})]

    monkeypatch.setattr(module, "rows_of", rows_of)
    (one,) = benchmarks_of("gsm8k")
    assert calls == [("openai/gsm8k", "main", "test", None)]
    assert (one.name, one.samples, one.problems[0]["answer"]) == ("gsm8k", 1, "18")


def test_without_a_network_a_name_says_which_local_file_would_do(monkeypatch):
    def rows_of(*arguments):
        raise ConnectionError("the hub cannot be reached.")

    monkeypatch.setattr(module, "rows_of", rows_of)
    message = r"has 'aime24', which is HuggingFaceH4/aime_2024 on the hub: the hub .*; .* pass aime24=FILE"
    with pytest.raises(ConnectionError, match=message):
        benchmarks_of("aime24")


def test_keys_are_by_content_and_differ_where_a_problem_is_repeated(written):
    rows = [{"prompt": "1?", "answer": "1"}, {"prompt": "2?", "answer": "2"}, {"prompt": "1?", "answer": "1"}]
    first, second = (benchmarks_of(written(part))[0].keys for part in (rows, rows[::-1]))
    assert len({*first}) == 3
    assert {*first} == {*second}
    assert first[1] == second[1]


def test_a_local_copy_has_the_fields_of_the_benchmark_of_its_name(written):
    row = {"question": "1 + 1?", "final_answer": ["2"], "solution": "It is 2."}
    (copy,) = benchmarks_of(f"olympiadbench={written([row])}")
    assert (copy.problems[0]["prompt"], copy.problems[0]["answer"]) == ("1 + 1?", "2")
    solved = {"question": "1 + 1?", "answer": "One and one.\n#### 2"}
    (copy,) = benchmarks_of(f"gsm8k={written([solved])}")
    assert copy.problems[0]["answer"] == "2"
    # A file of one's own under that name may state the answer alone, or in another field.
    plain = written([{"prompt": "1 + 1?", "answer": "2", "gold": "two"}])
    assert benchmarks_of(f"gsm8k={plain}")[0].problems[0]["answer"] == "2"
    assert benchmarks_of(f"olympiadbench={plain}", answer_field="gold")[0].problems[0]["answer"] == "two"


def test_a_benchmark_without_problems_is_refused(tmp_path):
    (tmp_path / "empty.csv").write_text("prompt,answer\n")
    with pytest.raises(ValueError, match=r"has '.*empty\.csv', which has no problems"):
        benchmarks_of(str(tmp_path / "empty.csv"))


def test_what_is_refused(written):
    good = written([{"prompt": "1 + 1?", "answer": "2"}])
    with pytest.raises(
        ValueError, match=r"`benchmarks` is '.*'; pass one or more of aime24, .*, each under another name"
    ):
        benchmarks_of(f"{good},{good}")
    with pytest.raises(ValueError, match=r"`benchmarks` is ''; pass one or more of aime24"):
        benchmarks_of("")
    with pytest.raises(FileNotFoundError, match=r"has 'aime99', which is neither one of aime24, .* nor a file"):
        benchmarks_of("aime99")
    other = written([{"text": "1 + 1?", "answer": "2"}], "other.jsonl")
    with pytest.raises(ValueError, match=r"no field 'prompt' or 'problem' or 'question', found .*by `prompt_field`"):
        benchmarks_of(other)
    empty = written([{"prompt": "1 + 1?", "answer": "2"}, {"prompt": "2?", "answer": " "}], "empty.jsonl")
    with pytest.raises(ValueError, match=r"empty\.jsonl, line 2: the answer 'answer' is ' '; name the field"):
        benchmarks_of(empty)
    for answer in (float("nan"), ["1", "2"], {"a": 1}, []):
        odd = written([{"prompt": "2?", "answer": answer}], "odd.jsonl")
        with pytest.raises(ValueError, match=r"odd\.jsonl, line 1: the answer 'answer' is .*; name the field"):
            benchmarks_of(odd)
