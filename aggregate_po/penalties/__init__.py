"""Penalties: per-token costs that are averaged over each completion and subtracted from the objective."""

from aggregate_po.penalties.base import EvaluatedPenalty, Penalty
from aggregate_po.penalties.entropy import EntropyBonus
from aggregate_po.penalties.gaussian import GaussianKL
from aggregate_po.penalties.kl import K1Penalty, K2Penalty, K3Penalty, KLPenalty
from aggregate_po.penalties.lagrange import LagrangePenalty
from aggregate_po.penalties.variance import RatioVariance
from aggregate_po.penalties.weighted import AdvantageWeighted, ImportanceWeighted, ProbabilityWeighted, WeightedCost

__all__ = [
    "AdvantageWeighted",
    "EntropyBonus",
    "EvaluatedPenalty",
    "GaussianKL",
    "ImportanceWeighted",
    "K1Penalty",
    "K2Penalty",
    "K3Penalty",
    "KLPenalty",
    "LagrangePenalty",
    "Penalty",
    "ProbabilityWeighted",
    "RatioVariance",
    "WeightedCost",
]
