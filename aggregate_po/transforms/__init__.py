"""Ratio transforms: clips, gates and masks on a log ratio, before or after the mean."""

from aggregate_po.transforms.base import EvaluatedTransform, JointTransform, RatioTransform
from aggregate_po.transforms.clip import (
    AdaptiveClip,
    Clip,
    LogPessimisticClip,
    OneSidedClip,
    PessimisticClip,
    ScaledClip,
)
from aggregate_po.transforms.completion import CompletionRatio
from aggregate_po.transforms.compose import Chain, StraightThrough
from aggregate_po.transforms.gate import ArctanGate, GammaKernel, SigmoidGate
from aggregate_po.transforms.mask import BernoulliKLMask, RatioMask, StaleCompletionMask, TotalVariationMask
from aggregate_po.transforms.transition import GaussianKLMask, RatioNorm
from aggregate_po.transforms.two_sided import NegativeCap, TwoSidedClip

__all__ = [
    "AdaptiveClip",
    "ArctanGate",
    "BernoulliKLMask",
    "Chain",
    "Clip",
    "CompletionRatio",
    "EvaluatedTransform",
    "GammaKernel",
    "GaussianKLMask",
    "JointTransform",
    "LogPessimisticClip",
    "NegativeCap",
    "OneSidedClip",
    "PessimisticClip",
    "RatioMask",
    "RatioNorm",
    "RatioTransform",
    "ScaledClip",
    "SigmoidGate",
    "StaleCompletionMask",
    "StraightThrough",
    "TotalVariationMask",
    "TwoSidedClip",
]
