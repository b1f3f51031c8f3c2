"""Evaluation of a policy on problem sets, with intervals."""

from lightning_modules.evaluation.benchmarks import Benchmark, benchmarks_of
from lightning_modules.evaluation.results import BenchmarkResult
from lightning_modules.evaluation.run import evaluate
from lightning_modules.evaluation.statistics import (
    Estimate,
    avg_at_k,
    avg_at_k_over_samples,
    maj_at_k,
    paired_difference,
    pass_at_k,
)
from lightning_modules.evaluation.tables import comparison_table, read_results, results_table

__all__ = [
    "Benchmark",
    "BenchmarkResult",
    "Estimate",
    "avg_at_k",
    "avg_at_k_over_samples",
    "benchmarks_of",
    "comparison_table",
    "evaluate",
    "maj_at_k",
    "paired_difference",
    "pass_at_k",
    "read_results",
    "results_table",
]
