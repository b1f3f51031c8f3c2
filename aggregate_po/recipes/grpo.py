"""GRPO: group relative policy optimization, and variants of its clip."""

from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import Chain, NegativeCap, PessimisticClip, StaleCompletionMask


def grpo(clip_low: float = 0.2, clip_high: float = 0.2, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""Arithmetic mean of clipped token ratios, mean over completions (eq. 24).

    Gradient weight:
        $A_i \, r_{i,t} \, \mathbb 1_{i,t} / (N n_i)$

    Args:
        clip_low: Ratios are clipped at `1 - clip_low` where the advantage is negative.
        clip_high: Ratios are clipped at `1 + clip_high` where the advantage is positive.
        penalties: Costs subtracted from the objective; the paper uses `K3Penalty(0.04)`, most later work none.

    Reference: Shao et al., arXiv:2402.03300.
    """
    return PolicyObjective(ArithmeticMean(), PessimisticClip(clip_low, clip_high), penalties=penalties)


def grpo_wide_clip(penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""GRPO with the ratio bounds of GMPO's clip, 0.67 to 1.49.

    Gradient weight:
        $A_i \, r_{i,t} \, \mathbb 1_{i,t} / (N n_i)$

    Args:
        penalties: Costs subtracted from the objective.

    Reference: ablation in the code of GMPO, arXiv:2507.20673.
    """
    return grpo(clip_low=0.33, clip_high=0.49, penalties=penalties)


def grpo_dual_clip(
    clip_low: float = 0.2, clip_high: float = 0.2, max_ratio: float = 3.0, penalties: Sequence[Penalty] = ()
) -> PolicyObjective:
    r"""GRPO that also bounds the ratio of a token with negative advantage from above (eq. 41).

    Gradient weight:
        $A_i \, r_{i,t} \, \mathbb 1_{i,t} / (N n_i)$

    Args:
        clip_low: Ratios are clipped at `1 - clip_low` where the advantage is negative.
        clip_high: Ratios are clipped at `1 + clip_high` where the advantage is positive.
        max_ratio: Upper bound of the ratio where the advantage is negative.
        penalties: Costs subtracted from the objective.

    Reference: Ye et al., arXiv:1912.09729.
    """
    clip = Chain([PessimisticClip(clip_low, clip_high), NegativeCap(max_ratio)])
    return PolicyObjective(ArithmeticMean(), clip, penalties=penalties)


def grpo_off_policy_mask(
    max_divergence: float = 0.5, clip_low: float = 0.2, clip_high: float = 0.2, penalties: Sequence[Penalty] = ()
) -> PolicyObjective:
    r"""GRPO that masks completions of negative advantage whose probability already decreased too far (eq. 45).

    Gradient weight:
        $A_i \, r_{i,t} \, \mathbb 1_{i,t} \, \mathbb 1_i / (N n_i)$

    Args:
        max_divergence: Largest mean of the negative log ratio of a completion with negative advantage; nats.
        clip_low: Ratios are clipped at `1 - clip_low` where the advantage is negative.
        clip_high: Ratios are clipped at `1 + clip_high` where the advantage is positive.
        penalties: Costs subtracted from the objective.

    Reference: "off-policy sequence masking", DeepSeek-V3.2, arXiv:2512.02556. The threshold is this library's choice.
    """
    clip = Chain([PessimisticClip(clip_low, clip_high), StaleCompletionMask(max_divergence)])
    return PolicyObjective(ArithmeticMean(), clip, penalties=penalties)
