"""P-GSPO: a length exponent between the product and the geometric mean."""

from collections.abc import Sequence

from aggregate_po.aggregators import LengthScaledProduct
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import PessimisticClip


def p_gspo(
    length_exponent: float = 0.6, clip_low: float = 0.2, clip_high: float = 0.2, penalties: Sequence[Penalty] = ()
) -> PolicyObjective:
    r"""Product of the token ratios to a power of the length, clipped after the product (eq. 50).

    Gradient weight:
        $A_i \, s_i \, \mathbb 1_i / (N n_i^\alpha)$

    Args:
        length_exponent: Power $\alpha$ of the length: 0 for the product, 1 for the geometric mean, that is GSPO.
        clip_low: The completion's ratio is clipped at `1 - clip_low` where the advantage is negative. The published
            bounds are not known; 0.2 is this library's choice. Near `length_exponent` 1/2 the ratio of a completion
            varies about as much as that of a token.
        clip_high: The completion's ratio is clipped at `1 + clip_high` where the advantage is positive.
        penalties: Costs subtracted from the objective.

    Reference: a withdrawn submission to ICLR 2026 (OpenReview OeYb0K8gEu); no paper was published. The exponent
    0.6 is known from a secondary source.
    """
    clip = PessimisticClip(clip_low, clip_high)
    return PolicyObjective(LengthScaledProduct(length_exponent), sequence_transform=clip, penalties=penalties)
