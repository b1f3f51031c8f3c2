"""Evaluation of a policy on problem sets, with intervals."""

from lightning_modules.evaluation.statistics import Estimate, avg_at_k, maj_at_k, paired_difference, pass_at_k

__all__ = ["Estimate", "avg_at_k", "maj_at_k", "paired_difference", "pass_at_k"]
