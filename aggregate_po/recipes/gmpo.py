"""GMPO: geometric-mean policy optimization, and the ablations of its paper."""

from collections.abc import Sequence

from aggregate_po.aggregators import GeometricMean, Product
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import PessimisticClip, ScaledClip


def gmpo(
    log_clip: float = 0.4, log_clip_high: float | None = None, penalties: Sequence[Penalty] = ()
) -> PolicyObjective:
    r"""Geometric mean of token ratios that are clipped in log space before the mean (eq. 29).

    Gradient weight:
        $A_i \, S_i \, \mathbb 1_{i,t} / (N n_i)$

    Args:
        log_clip: Log ratios are clipped at `-log_clip` where the advantage is negative, and at `log_clip` where it is
            positive.
        log_clip_high: Upper bound in place of `log_clip`, for an asymmetric clip.
        penalties: Costs subtracted from the objective.

    Reference: Zhao et al., arXiv:2507.20673.
    """
    clip = PessimisticClip.log(log_clip, log_clip if log_clip_high is None else log_clip_high)
    return PolicyObjective(GeometricMean(), clip, penalties=penalties)


def gmpo_no_clip(penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""GMPO without its clip.

    Gradient weight:
        $A_i \, S_i / (N n_i)$

    Args:
        penalties: Costs subtracted from the objective.

    Reference: ablation of arXiv:2507.20673.
    """
    return PolicyObjective(GeometricMean(), penalties=penalties)


def gmpo_sequence_clip(log_clip: float = 0.4, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""GMPO with a clip of the *sum* of the log ratios, which bounds the mean by `log_clip / n`, about GSPO's range.

    Gradient weight:
        $A_i \, S_i \, \mathbb 1_i / (N n_i)$

    Args:
        log_clip: Bound on the absolute summed log ratio.
        penalties: Costs subtracted from the objective.

    Reference: ablation of arXiv:2507.20673.
    """
    clip = ScaledClip(PessimisticClip.log(log_clip, log_clip), exponent=-1)
    return PolicyObjective(GeometricMean(), sequence_transform=clip, penalties=penalties)


def gmpo_without_length_norm(log_clip: float = 0.4, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""GMPO without the root: the product of the clipped token ratios.

    Gradient weight:
        $A_i \, e^{\sum_k u_{i,k}} \, \mathbb 1_{i,t} / N$

    Args:
        log_clip: Bound on the absolute log ratio of each token.
        penalties: Costs subtracted from the objective.

    Reference: ablation of arXiv:2507.20673.
    """
    return PolicyObjective(Product(), PessimisticClip.log(log_clip, log_clip), penalties=penalties)
