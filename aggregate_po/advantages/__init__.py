"""Advantage estimators: from the rewards of a rollout to advantages."""

from aggregate_po.advantages.base import AdvantageEstimator, GroupAdvantage, GroupedRewards
from aggregate_po.advantages.batch import BatchScaled, ComponentNormalized, WhitenedCentered, WhitenedReturns
from aggregate_po.advantages.beta import BetaNormalized
from aggregate_po.advantages.clamped import Clamped
from aggregate_po.advantages.group import (
    BestOfGroup,
    GroupCentered,
    GroupNormalized,
    LeaveOneOut,
    LengthWeightedCentered,
    MeanNormalized,
)
from aggregate_po.advantages.kalman import KalmanBaseline, KalmanInnovation
from aggregate_po.advantages.shaping import LengthCorrected, LengthPenalty, OverlongShaping
from aggregate_po.advantages.steps import StepValues

__all__ = [
    "AdvantageEstimator",
    "BatchScaled",
    "BestOfGroup",
    "BetaNormalized",
    "Clamped",
    "ComponentNormalized",
    "GroupAdvantage",
    "GroupCentered",
    "GroupNormalized",
    "GroupedRewards",
    "KalmanBaseline",
    "KalmanInnovation",
    "LeaveOneOut",
    "LengthCorrected",
    "LengthPenalty",
    "LengthWeightedCentered",
    "MeanNormalized",
    "OverlongShaping",
    "StepValues",
    "WhitenedCentered",
    "WhitenedReturns",
]
