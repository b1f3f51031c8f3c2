"""Grades of a file of completions by two graders, and the completions on which they differ."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass, field
from itertools import islice
from typing import Any

from lightning_modules.audit.rows import BadRow, GivenCompletion, rows_of
from lightning_modules.progress import progress_bar
from lightning_modules.prompts.text_files import require_file
from lightning_modules.rewards import AnyReward, Verdict, WeightedRewards
from lightning_modules.rewards.killable import killable
from lightning_modules.rewards.names import numbered

_CHUNK = 1000  # completions that are graded in one call


@dataclass(frozen=True)
class Difference:
    """A completion on which two graders differ.

    Args:
        line: number of its line, or of its row in a Parquet file, from 1.
        completion: text of the completion.
        example: other fields of the line or row.
        verdict: verdict of the first grader.
        other: verdict of the second grader.
    """

    line: int
    completion: str
    example: dict[str, Any]
    verdict: Verdict
    other: Verdict


@dataclass
class Grades:
    """Verdicts of one grader, as counts.

    Args:
        name: name of the grader.
        total: sum of the rewards.
        count: number of rewards.
        failed: number of failed verdicts by cause.
    """

    name: str
    total: float = 0.0
    count: int = 0
    failed: Counter[str] = field(default_factory=Counter)

    def add(self, verdict: Verdict) -> None:
        """Count one more verdict."""
        if verdict.value is None:
            self.failed[str(verdict.cause)] += 1
        else:
            self.total += verdict.value
            self.count += 1

    @property
    def mean(self) -> float:
        """Mean reward of the verdicts that did not fail; 0 if there are none."""
        return self.total / max(self.count, 1)


@dataclass
class Audit:
    """Comparison of two graders on a file of completions.

    Args:
        first: verdicts of the first grader.
        second: verdicts of the second grader.
        rows: number of graded completions.
        pairs: number of completions by the two rewards, None for a failed verdict.
        differences: completions with different rewards, or without one of them, in the order of the file.
        bad_rows: lines that were left out.
    """

    first: Grades
    second: Grades
    rows: int = 0
    pairs: Counter[tuple[float | None, float | None]] = field(default_factory=Counter)
    differences: list[Difference] = field(default_factory=list)
    bad_rows: list[BadRow] = field(default_factory=list)


def audit_rewards(
    file: str, reward: AnyReward, other: AnyReward, workers: int = 2, limit: float = 5.0, completion: str = "completion"
) -> Audit:
    """Grade the completions of a file with two graders, and return where they differ.

    Functions run in a pool of processes, so that a hang or a crash costs one verdict.

    Args:
        file: JSON Lines file, plain or compressed, with a completion and the fields of its example in each line; or a
            Parquet file with such rows, as an evaluation and `CompletionsFile` write it.
        reward: First grader.
        other: Second grader.
        workers: Number of worker processes of each grader.
        limit: Time limit of a verdict in seconds.
        completion: Name of the field that holds the completion.

    Raises:
        FileNotFoundError: there is no such file.
        ValueError: the file is damaged, or no line has a completion.
    """
    require_file("file", file)
    graders = [WeightedRewards(killable(grader, workers, limit)) for grader in (reward, other)]
    names = numbered([grader.names[0] for grader in graders])
    audit = Audit(Grades(names[0]), Grades(names[1]))
    try:
        with progress_bar(desc="grading", unit="completion", leave=False) as progress:
            rows = rows_of(file, completion, audit.bad_rows)
            while chunk := list(islice(rows, _CHUNK)):
                _grade(chunk, graders, audit)
                progress.update(len(chunk))
    finally:
        for grader in graders:
            grader.close()
    if not audit.rows:
        reason = f"; line {audit.bad_rows[0].line}: {audit.bad_rows[0].reason}" if audit.bad_rows else ""
        raise ValueError(f"`file` is {file!r}, in which no line has a completion{reason}; see `completion`.")
    return audit


def _grade(chunk: Sequence[GivenCompletion], graders: Sequence[WeightedRewards], audit: Audit) -> None:
    texts, examples = [row[1] for row in chunk], [row[2] for row in chunk]
    verdicts = [grader.verdicts(texts, examples)[0] for grader in graders]
    for (line, text, example), verdict, other in zip(chunk, *verdicts, strict=True):
        audit.rows += 1
        audit.first.add(verdict)
        audit.second.add(other)
        audit.pairs[verdict.value, other.value] += 1
        if verdict.value != other.value or verdict.value is None:
            audit.differences.append(Difference(line, text, example, verdict, other))
