"""Token aggregation as a first-class object: group-based policy optimisation of language models."""

from aggregate_po.aggregators import (
    ArithmeticMean,
    GeometricMean,
    KolmogorovMean,
    PowerMean,
    Product,
    TokenAggregator,
)
from aggregate_po.batch import PerCompletion, PerToken, PolicyBatch, StepTotals, TokenRatios
from aggregate_po.exponents import ESSMatching, ExponentRule, FixedExponent, LinearExponent
from aggregate_po.geometry import effective_sample_size, gated_fraction, weight_entropy
from aggregate_po.masked import masked_logsumexp, masked_mean, masked_softmax, masked_sum
from aggregate_po.normalizers import ConstantLength, Normalizer, SequenceMean, TokenMean
from aggregate_po.objective import GradientWeights, PolicyObjective
from aggregate_po.penalties import EntropyBonus, K1Penalty, K2Penalty, K3Penalty, KLPenalty, Penalty
from aggregate_po.transforms import LogPessimisticClip, PessimisticClip, RatioTransform, TrajectoryLogClip

__all__ = [
    "ArithmeticMean",
    "ConstantLength",
    "ESSMatching",
    "EntropyBonus",
    "ExponentRule",
    "FixedExponent",
    "GeometricMean",
    "GradientWeights",
    "K1Penalty",
    "K2Penalty",
    "K3Penalty",
    "KLPenalty",
    "KolmogorovMean",
    "LinearExponent",
    "LogPessimisticClip",
    "Normalizer",
    "Penalty",
    "PerCompletion",
    "PerToken",
    "PessimisticClip",
    "PolicyBatch",
    "PolicyObjective",
    "PowerMean",
    "Product",
    "RatioTransform",
    "SequenceMean",
    "StepTotals",
    "TokenAggregator",
    "TokenMean",
    "TokenRatios",
    "TrajectoryLogClip",
    "effective_sample_size",
    "gated_fraction",
    "masked_logsumexp",
    "masked_mean",
    "masked_softmax",
    "masked_sum",
    "weight_entropy",
]
