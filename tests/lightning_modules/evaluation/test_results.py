"""Results of graded completions, worked by hand."""

import pytest

from lightning_modules.evaluation.benchmarks import Benchmark, Problems
from lightning_modules.evaluation.records import GradedCompletion
from lightning_modules.evaluation.results import BenchmarkResult, result_of
from lightning_modules.evaluation.statistics import avg_at_k, avg_at_k_over_samples
from lightning_modules.prompts.rows import Row


def graded(problem, value, answer=None, greedy=False, cause=None, length=10, truncated=False):
    return GradedCompletion(problem, greedy, "text", value, cause, answer, length, truncated)


BENCHMARK = Benchmark(
    "mine", Problems([Row("1", {"prompt": "1?", "answer": "1"}), Row("2", {"prompt": "2?", "answer": "2"})]), 4
)
COMPLETIONS = [
    # The majority of the first problem is right, that of the second one is wrong.
    *(graded(0, 1.0, "1"), graded(0, 0.0, "7"), graded(0, 1.0, "1"), graded(0, 0.0, truncated=True, length=30)),
    *(graded(1, 0.0, "3"), graded(1, 1.0, "2"), graded(1, None, "3", cause="time"), graded(1, 0.0, "3")),
    *(graded(0, 1.0, greedy=True), graded(1, 0.0, greedy=True, length=20)),
]


def test_the_metrics_by_hand():
    result = result_of(BENCHMARK, COMPLETIONS, votes=True)
    assert {name: one.value for name, one in result.metrics.items()} == {
        "greedy": 0.5,
        "avg@4": pytest.approx((0.5 + 0.25) / 2),
        "avg@4 over samples": pytest.approx((0.5 + 0.25) / 2),
        "pass@2": pytest.approx(((1 - 1 / 6) + (1 - 3 / 6)) / 2),  # pairs without a right one: 1 and 3 of 6
        "pass@4": 1.0,
        "maj@4": 0.5,
    }
    assert result.metrics["avg@4"] == avg_at_k([[1, 0, 1, 0], [0, 1, 0, 0]])
    assert result.metrics["avg@4 over samples"] == avg_at_k_over_samples([[1, 0, 1, 0], [0, 1, 0, 0]])
    assert result.truncated == {"sampled": 1 / 8, "greedy": 0.0}
    assert result.mean_length == {"sampled": pytest.approx(100 / 8), "greedy": 15.0}
    assert result.failed == {"time": 1}
    assert [*result.scores["sampled"].values()] == [[1, 0, 1, 0], [0, 1, 0, 0]]
    assert [*result.scores["greedy"]] == BENCHMARK.keys
    assert result.problems == 2


def test_without_greedy_completions_and_votes_there_is_less():
    result = result_of(BENCHMARK, COMPLETIONS[:8], votes=False)
    assert [*result.metrics] == ["avg@4", "avg@4 over samples", "pass@2", "pass@4"]
    assert result.scores.keys() == {"sampled"}


def test_results_survive_as_plain_values():
    result = result_of(BENCHMARK, COMPLETIONS, votes=True)
    assert BenchmarkResult.from_state_dict(result.state_dict()) == result
