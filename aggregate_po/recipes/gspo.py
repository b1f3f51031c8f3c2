"""Group sequence policy optimisation."""

from collections.abc import Sequence

from aggregate_po.aggregators import GeometricMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import PessimisticClip


def gspo(clip_low: float = 3e-4, clip_high: float = 4e-4, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    """Geometric mean of the token ratios, clipped after the mean (eq. 17).

    Args:
        clip_low: the completion's ratio is clipped at `1 - clip_low` where the advantage is negative.
        clip_high: the completion's ratio is clipped at `1 + clip_high` where it is positive.
        penalties: costs taken off the objective.

    Reference: Zheng et al., arXiv:2507.18071.
    """
    return PolicyObjective(
        GeometricMean(), sequence_transform=PessimisticClip(clip_low, clip_high), penalties=penalties
    )
