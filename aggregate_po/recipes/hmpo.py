"""HMPO: harmonic-mean policy optimization."""

from collections.abc import Sequence

from aggregate_po.aggregators import PowerMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import PessimisticClip


def hmpo(log_clip: float = 0.4, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""Harmonic mean of token ratios that are clipped in log space before the mean (eq. 30).

    Gradient weight:
        $A_i \, H_i^2 \, e^{-u_{i,t}} \, \mathbb 1_{i,t} / (N n_i)$

    Args:
        log_clip: Bound on the absolute log ratio of each token.
        penalties: Costs subtracted from the objective.

    Reference: a training script published with the code of GMPO, arXiv:2507.20673; it has no paper of its own.
    """
    return PolicyObjective(PowerMean(-1.0), PessimisticClip.log(log_clip, log_clip), penalties=penalties)
