"""Times of the denoising steps."""

from __future__ import annotations

import torch
from torch import Tensor

from aggregate_po.arguments import require_positive


def uniform_times(steps: int, shift: float = 1.0) -> Tensor:
    r"""Return the times of a trajectory, from 1 (noise) to 0 (sample); shape `time+1`; float64.

    They are uniform and then shifted, $t \mapsto \kappa t / (1 + (\kappa - 1) t)$. A shift above 1 gives more steps to
    the noisy end, as models of high resolution need.

    Args:
        steps: number of denoising steps.
        shift: $\kappa$; 1 leaves the times uniform, and Stable Diffusion 3 uses 3.

    Raises:
        ValueError: `steps` or `shift` is not positive.

    Example:
        >>> uniform_times(4).tolist()
        [1.0, 0.75, 0.5, 0.25, 0.0]

    Reference: Esser et al. (2024), arXiv:2403.03206.
    """
    require_positive(steps=steps, shift=shift)
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return shift * times / (1 + (shift - 1) * times)
