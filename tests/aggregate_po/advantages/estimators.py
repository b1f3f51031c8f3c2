"""The fixture of the oracles, and every estimator by what it claims."""

import torch

from aggregate_po.advantages import (
    BatchScaled,
    BestOfGroup,
    BetaNormalized,
    Clamped,
    ComponentNormalized,
    GroupCentered,
    GroupedRewards,
    GroupNormalized,
    KalmanBaseline,
    KalmanInnovation,
    LeaveOneOut,
    LengthCorrected,
    LengthPenalty,
    LengthWeightedCentered,
    MeanNormalized,
    OverlongShaping,
    StepValues,
    WhitenedCentered,
    WhitenedReturns,
)

LENGTHS = torch.tensor([10, 20, 30, 40])


def one_group(*rewards, lengths=LENGTHS):
    """A group of four in float64, with the lengths of the fixture."""
    return GroupedRewards(torch.tensor(rewards, dtype=torch.float64), group_size=4, lengths=lengths)


FIXTURE = one_group(1.0, 0.0, 0.0, 0.0)

# Compare within a group, and center there: equal rewards and a group of one have exactly no advantage.
CENTERED_IN_GROUPS = [
    GroupNormalized(),
    GroupNormalized(ddof=0, delta=0.0),
    GroupCentered(),
    LeaveOneOut(),
    LengthWeightedCentered(),
    MeanNormalized(),
    BestOfGroup(),
    BestOfGroup(delta=0.0),
]
KALMAN = [KalmanBaseline(), KalmanBaseline("shuffled"), KalmanBaseline("two_pass")]
KALMAN += [KalmanInnovation(), KalmanInnovation("shuffled"), KalmanInnovation("leave_one_out")]

# Each group by itself.
GROUPWISE = [
    *CENTERED_IN_GROUPS,
    *KALMAN,
    OverlongShaping(GroupNormalized(), 40, 20),
    LengthPenalty(GroupCentered(), 0.125),
    LengthCorrected(LeaveOneOut()),
    Clamped(GroupNormalized(), 1.0),
]

# A group of equal rewards has exactly no advantage, whatever the other groups are.
ZERO_WHERE_EQUAL = [*CENTERED_IN_GROUPS, BatchScaled(), BatchScaled(delta=0.0), BetaNormalized()]

WHITENED = [
    WhitenedReturns(),
    WhitenedReturns(discount=0.9),
    WhitenedReturns(variance_delta=0.0),
    WhitenedCentered(),
    WhitenedCentered(variance_delta=0.0),
    ComponentNormalized(),
]

# These read the rewards of steps.
STEPWISE = [StepValues(), StepValues(1.0, absolute=0.0, delta=0.0), StepValues(0.0, absolute_steps=0)]

ALL = [*GROUPWISE, BatchScaled(), BatchScaled(delta=0.0), BetaNormalized(), *WHITENED]
