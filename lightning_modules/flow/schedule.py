"""Times of the denoising steps, and the steps that are stochastic."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from torch import Tensor

from aggregate_po.arguments import require_positive, require_whole


def uniform_times(steps: int, shift: float = 1.0) -> Tensor:
    r"""Return the times of a trajectory, from 1 (noise) to 0 (sample); shape `time+1`; float32.

    They are uniform and then shifted, $t \mapsto \kappa t / (1 + (\kappa - 1) t)$. A shift above 1 gives more steps to
    the noisy end, as models of high resolution need.

    Args:
        steps: number of denoising steps.
        shift: $\kappa$; 1 leaves the times uniform, and Stable Diffusion 3 uses 3.

    Raises:
        ValueError: `steps` is no whole number from 1 on, or `shift` is not positive.

    Example:
        >>> uniform_times(4).tolist()
        [1.0, 0.75, 0.5, 0.25, 0.0]

    Reference: Esser et al. (2024), arXiv:2403.03206.
    """
    require_whole(1, steps=steps)
    require_positive(shift=shift)
    times = torch.linspace(1, 0, steps + 1, dtype=torch.float64)
    return (shift * times / (1 + (shift - 1) * times)).float()


def require_times(times: Tensor) -> None:
    """Check that times decrease from at most 1 to at least 0.

    Raises:
        ValueError: they do not, or there are fewer than two.
    """
    if times.ndim != 1 or len(times) < 2 or not (times.diff() < 0).all() or times[0] > 1 or times[-1] < 0:
        raise ValueError(
            f"`times` is {times.tolist()}; pass two or more decreasing times between 1 and 0; see `uniform_times`."
        )


@dataclass(frozen=True)
class StepWindow:
    """Sliding window of stochastic steps, which are the trained ones; all other steps are those of the ODE.

    The window starts at the noisy end, moves toward the sample, and restarts from the noisy end after the last step has
    been in it.

    Args:
        size: Number of steps in the window.
        stride: Number of steps by which the window moves; the last move may be shorter.
        every: Number of rollouts after which the window moves.

    Raises:
        ValueError: a number is not a whole number from 1 on.

    Reference: MixGRPO, arXiv:2507.21802.
    """

    size: int = 4
    stride: int = 1
    every: int = 25

    def __post_init__(self) -> None:
        require_whole(1, size=self.size, stride=self.stride, every=self.every)

    def mask(self, steps: int, rollout: int) -> Tensor:
        """Return True for the stochastic steps; shape `time`.

        Args:
            steps: number of denoising steps.
            rollout: number of the rollout, from 0.

        Raises:
            ValueError: the window is longer than the trajectory.
        """
        masks = self.masks(steps)
        return masks[rollout // self.every % len(masks)]

    def masks(self, steps: int) -> list[Tensor]:
        """Return True for the stochastic steps of each place of the window, in order; see `mask`."""
        last = steps - self.size
        if last < 0:
            raise ValueError(f"`size` is {self.size}; pass at most the number of denoising steps, {steps}.")
        places = torch.arange(steps)
        starts = [min(start, last) for start in range(0, last + self.stride, self.stride)]
        return [(places >= start) & (places < start + self.size) for start in starts]
