"""Flow-DPPO: a divergence mask on denoising steps in place of a clip."""

from collections.abc import Sequence

from aggregate_po.aggregators import ArithmeticMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.transforms import GaussianKLMask


def flow_dppo(max_divergence: float = 1e-5, penalties: Sequence[Penalty] = ()) -> PolicyObjective:
    r"""Arithmetic mean of the ratios of denoising steps; masks steps whose transition moved too far (eq. 65).

    The batch needs `divergence`.

    Gradient weight:
        $A_i \, r_{i,t} \, \mathbb 1_{i,t} / (N n_i)$

    Args:
        max_divergence: Divergence from which on a step that moved in the direction of its advantage is masked; nats,
            averaged over latent dimensions. The default is that of the public code.
        penalties: Costs subtracted from the objective.

    Reference: arXiv:2606.11025. Not DPPO of language models, whose masks are `dppo_tv` and `dppo_kl`.
    """
    return PolicyObjective(ArithmeticMean(), GaussianKLMask(max_divergence), penalties=penalties)
