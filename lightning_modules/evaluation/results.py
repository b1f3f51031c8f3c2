"""Results of an evaluation on one benchmark: accuracies with intervals, lengths, and failed verdicts."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass
from statistics import fmean
from typing import Any

from lightning_modules.evaluation.benchmarks import Benchmark
from lightning_modules.evaluation.records import GradedCompletion
from lightning_modules.evaluation.statistics import (
    Estimate,
    Scores,
    avg_at_k,
    avg_at_k_over_samples,
    maj_at_k,
    pass_at_k,
)


@dataclass(frozen=True)
class BenchmarkResult:
    """Results on one benchmark.

    Args:
        name: name of the benchmark.
        samples: number of sampled completions of each problem.
        metrics: estimates by name: `greedy`, the accuracy of the greedy completion; for `k` samples `avg@k`, `pass@k`
            for `k` and the powers of two below it, and `maj@k` where the reward reads answers. Their intervals are
            over problems. For two samples or more, `avg@k over samples` has the interval over samples alone.
        truncated: share of the completions that reached their maximum length, by "sampled" and "greedy".
        mean_length: mean number of tokens of a completion, by "sampled" and "greedy".
        failed: number of failed verdicts by their cause; their completions count as wrong.
        scores: scores of each problem's completions, by "sampled" and "greedy", and by the key of the problem.
    """

    name: str
    samples: int
    metrics: Mapping[str, Estimate]
    truncated: Mapping[str, float]
    mean_length: Mapping[str, float]
    failed: Mapping[str, int]
    scores: Mapping[str, Mapping[str, Sequence[float]]]

    @property
    def problems(self) -> int:
        """Number of problems."""
        return len(next(iter(self.scores.values())))

    def state_dict(self) -> dict[str, Any]:
        """Return the results as plain values."""
        return asdict(self)

    @staticmethod
    def from_state_dict(state: Mapping[str, Any]) -> BenchmarkResult:
        """Return the results of a `state_dict`."""
        return BenchmarkResult(
            **{**state, "metrics": {name: Estimate(**values) for name, values in state["metrics"].items()}}
        )


def result_of(benchmark: Benchmark, completions: Sequence[GradedCompletion], votes: bool) -> BenchmarkResult:
    """Return the results of all graded completions of a benchmark.

    Args:
        benchmark: benchmark.
        completions: graded completions, those of a problem in the order of their samples.
        votes: whether the completions have answers for a majority vote.

    Raises:
        ValueError: a score is not in [0, 1].
    """
    kinds = {
        name: found
        for name, greedy in (("sampled", False), ("greedy", True))
        if (found := [one for one in completions if one.greedy == greedy])
    }
    by_kind = {name: _by_problem(found) for name, found in kinds.items()}
    return BenchmarkResult(
        name=benchmark.name,
        samples=benchmark.samples,
        metrics=_metrics(by_kind, benchmark.samples, votes),
        truncated={name: fmean(one.truncated for one in found) for name, found in kinds.items()},
        mean_length={name: fmean(one.length for one in found) for name, found in kinds.items()},
        failed=dict(Counter(one.cause for one in completions if one.cause is not None)),
        scores={
            name: dict(zip(benchmark.keys, map(_scores, problems), strict=True)) for name, problems in by_kind.items()
        },
    )


def _metrics(by_kind: Mapping[str, list[list[GradedCompletion]]], samples: int, votes: bool) -> dict[str, Estimate]:
    metrics = {}
    if "greedy" in by_kind:
        metrics["greedy"] = avg_at_k([_scores(problem) for problem in by_kind["greedy"]])
    problems = by_kind["sampled"]
    scores: Scores = [_scores(problem) for problem in problems]
    metrics[f"avg@{samples}"] = avg_at_k(scores)
    if samples > 1:
        metrics[f"avg@{samples} over samples"] = avg_at_k_over_samples(scores)
    powers = [2**exponent for exponent in range(1, samples.bit_length()) if 2**exponent < samples]
    metrics |= {f"pass@{k}": pass_at_k(scores, k) for k in [*powers, samples]}
    if votes:
        metrics[f"maj@{samples}"] = maj_at_k([[one.extracted for one in problem] for problem in problems], scores)
    return metrics


def _by_problem(completions: Sequence[GradedCompletion]) -> list[list[GradedCompletion]]:
    problems: dict[int, list[GradedCompletion]] = {}
    for one in completions:
        problems.setdefault(one.problem, []).append(one)
    return [problems[number] for number in sorted(problems)]


def _scores(problem: Sequence[GradedCompletion]) -> list[float]:
    return [one.score for one in problem]
