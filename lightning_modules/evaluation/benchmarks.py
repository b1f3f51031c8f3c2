"""Benchmarks: problems with reference answers, from a file, or by a name that `benchmarks.json` knows."""

from __future__ import annotations

import hashlib
import json
from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from numbers import Number
from pathlib import Path
from typing import Any

from typing_extensions import override

from lightning_modules.prompts.base import StoredPrompts, require_prompt, short
from lightning_modules.prompts.columns import ABSENT, value_at
from lightning_modules.prompts.loading import rows_of
from lightning_modules.prompts.rows import Row
from lightning_modules.rewards.mathematics import AnswerForm, final_answer

_NAMED = Path(__file__).with_name("benchmarks.json")
_PROMPTS = ("prompt", "problem", "question")
_SAMPLES = 4  # of a file without a name


class Problems(StoredPrompts):
    """Problems of a benchmark, each with a prompt under "prompt" and a reference answer under "answer".

    Args:
        rows: rows of a data set.
        prompt: column of the prompt; the first of "prompt", "problem" and "question" that a row has when None.
        answer: column of the reference answer.
        answer_forms: forms in which the column states the answer; the column is the answer itself when empty.

    Raises:
        ValueError: a row has no prompt or no answer; the message names its place.
    """

    def __init__(
        self,
        rows: Sequence[Row],
        prompt: str | None = None,
        answer: str = "answer",
        answer_forms: Sequence[AnswerForm] = (),
    ) -> None:
        self._places = [row.place for row in rows]
        self._examples = [
            {**row.values, "prompt": _prompt(row, prompt), "answer": _answer(row, answer, answer_forms)} for row in rows
        ]

    @override
    def location(self, index: int) -> str:
        return self._places[index]


@dataclass(frozen=True)
class Benchmark:
    """Problems under a name, with the number of completions to sample for each.

    Args:
        name: name of the benchmark.
        problems: problems with their reference answers.
        samples: number of completions of a problem.
    """

    name: str
    problems: Problems
    samples: int

    @property
    def keys(self) -> list[str]:
        """Keys of the problems by their content, by which two evaluations are compared."""
        keys: list[str] = []
        counts: Counter[str] = Counter()
        for example in self.problems:
            text = json.dumps([example["prompt"], example["answer"]])
            key = hashlib.sha256(text.encode()).hexdigest()[:16]
            keys.append(f"{key}-{counts[key]}" if counts[key] else key)
            counts[key] += 1
        return keys


def benchmarks_of(
    benchmarks: str | Sequence[str],
    samples: int | None = None,
    prompt_field: str | None = None,
    answer_field: str | None = None,
) -> list[Benchmark]:
    """Return the benchmarks with these names or files.

    Args:
        benchmarks: names, files, or `NAME=FILE`, as a list or separated by commas.
        samples: number of completions of each problem; that of the benchmark when None.
        prompt_field: field of the prompt in files; when None, that of the benchmark of this name, or the first of
            "prompt", "problem" and "question".
        answer_field: field of the reference answer in files; when None, that of the benchmark of this name, or
            "answer".

    Raises:
        FileNotFoundError: a file does not exist.
        ValueError: there are no benchmarks, a name is unknown or used twice, a benchmark has no problems, or a problem
            has no prompt or answer.
    """
    asked = [text.strip() for text in benchmarks.split(",")] if isinstance(benchmarks, str) else list(benchmarks)
    found = [_benchmark(text, samples, prompt_field, answer_field) for text in asked if text]
    names = [one.name for one in found]
    if not names or len({*names}) < len(names):
        raise ValueError(
            f"`benchmarks` is {benchmarks!r}; pass one or more of {', '.join(_named())}, or files, each under another "
            "name, such as aime24,mine=problems.jsonl."
        )
    return found


def _named() -> dict[str, dict[str, Any]]:
    """Return the benchmarks that have a name: source, fields and number of completions."""
    named: dict[str, dict[str, Any]] = json.loads(_NAMED.read_text(encoding="utf-8"))
    return named


def _benchmark(text: str, samples: int | None, prompt_field: str | None, answer_field: str | None) -> Benchmark:
    name, _, path = text.rpartition("=")
    if not name and text in _named():
        return _from_hub(text, samples)
    name = name or Path(path).name.partition(".")[0]
    if not Path(path).exists():
        raise FileNotFoundError(
            f"`benchmarks` has {text!r}, which is neither one of {', '.join(_named())} nor a file; pass the path of a "
            "JSON Lines, CSV or Parquet file, or NAME=FILE."
        )
    rows = _rows_of(text, path, None, None)
    entry = {"prompt": None, "answer": None, "answer_forms": [], "samples": _SAMPLES, **_named().get(name, {})}
    prompt, answer, forms = prompt_field, answer_field or "answer", ()
    if prompt is None and _value(rows[0], entry["prompt"]) is not None:
        prompt = entry["prompt"]
    if answer_field is None and (own := _value(rows[0], entry["answer"])) is not None:
        answer = entry["answer"]
        forms = entry["answer_forms"] if final_answer(str(own), entry["answer_forms"]) is not None else ()
    return Benchmark(name, Problems(rows, prompt, answer, forms), samples or entry["samples"])


def _from_hub(name: str, samples: int | None) -> Benchmark:
    entry = _named()[name]
    try:
        rows = _rows_of(name, entry["source"], entry["subset"], entry["split"])
    except OSError as error:  # no network, or no such data set
        raise type(error)(
            f"`benchmarks` has {name!r}, which is {entry['source']} on the hub: {str(error).rstrip('.')}; with a local "
            f"copy of its split {entry['split']!r}, pass {name}=FILE."
        ) from None
    problems = Problems(rows, entry["prompt"], entry["answer"], entry["answer_forms"])
    return Benchmark(name, problems, samples or entry["samples"])


def _rows_of(text: str, source: str, subset: str | None, split: str | None) -> Sequence[Row]:
    rows = rows_of(source, subset, split, None)
    if not rows:
        raise ValueError(f"`benchmarks` has {text!r}, which has no problems; pass a benchmark that has some.")
    return rows


def _prompt(row: Row, column: str | None) -> Any:
    columns = _PROMPTS if column is None else (column,)
    found = next((value for name in columns if (value := _value(row, name)) is not None), None)
    if found is None:
        raise ValueError(
            f"{row.place}: no field {' or '.join(map(repr, columns))}, found {short(sorted(map(str, row.values)))}; "
            "name the field of the problem by `prompt_field`."
        )
    require_prompt({"prompt": found}, row.place)
    return found


def _answer(row: Row, column: str, forms: Sequence[AnswerForm]) -> str:
    value = _value(row, column)
    if isinstance(value, list) and len(value) == 1:
        value = value[0]
    text = str(int(value)) if isinstance(value, float) and value.is_integer() else str(value)
    answer = final_answer(text, forms) if forms else text
    known = isinstance(value, (str, Number)) and value == value  # NaN is a missing answer of a table
    if not known or answer is None or not answer.strip():
        raise ValueError(
            f"{row.place}: the answer {column!r} is {short(value)}; name the field of the reference answer by "
            "`answer_field`, or leave out the problem."
        )
    return answer.strip()


def _value(row: Row, column: str | None) -> Any:
    found = ABSENT if column is None else value_at(row.values, column)
    return None if found is ABSENT else found
