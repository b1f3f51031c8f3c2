"""Steps that are trained: those with noise, in the window, and with a weight in the means."""

from __future__ import annotations

import torch
from torch import Tensor

from lightning_modules.flow.dynamics import Dynamics
from lightning_modules.flow.schedule import StepWindow, uniform_times
from lightning_modules.flow.step_weights import StepWeights

_MANY_STEPS = 100  # where dynamics that have noise anywhere have it in some step


def require_trained_steps(
    times: Tensor, dynamics: Dynamics, window: StepWindow | None, step_weights: StepWeights | None
) -> None:
    """Check that something is trained wherever the window is.

    Args:
        times: decreasing times from noise to sample; shape `time+1`.
        dynamics: rule of the stochastic steps.
        window: steps that are stochastic and trained; all steps when None.
        step_weights: rule for the weights of the steps in every mean; every step counts once when None.

    Raises:
        ValueError: the window does not fit; no step in it has noise, or those with noise have the weight 0; or the
            weights have another shape.
    """
    stochastic = _stochastic(dynamics, times)
    weighted = torch.ones_like(stochastic) if step_weights is None else _weights(step_weights, times) != 0
    for chosen in [torch.ones_like(stochastic)] if window is None else window.masks(len(stochastic)):
        if not (stochastic & chosen).any():
            raise ValueError(
                f"`dynamics` {dynamics!r} adds no noise in step {_numbers(chosen)}, so nothing would be trained; pass "
                f"{_source_of_noise(dynamics, window)}."
            )
        if not (stochastic & chosen & weighted).any():
            larger = "" if window is None else f", or a larger `size` of `window` {window!r}"
            raise ValueError(
                f"`step_weights` {step_weights!r} gave 0 for step {_numbers(stochastic & chosen)}, so nothing would be "
                f"trained; pass weights above 0{larger}."
            )


def _stochastic(dynamics: Dynamics, times: Tensor) -> Tensor:
    return dynamics.coefficients(times[:-1], times[1:]).scale > 0


def _weights(step_weights: StepWeights, times: Tensor) -> Tensor:
    found = step_weights(times)
    if found.shape != (len(times) - 1,):
        raise ValueError(
            f"`step_weights` {step_weights!r} gave the shape {tuple(found.shape)}; return one weight for each of "
            f"{len(times) - 1} steps."
        )
    return found


def _source_of_noise(dynamics: Dynamics, window: StepWindow | None) -> str:
    if not _stochastic(dynamics, uniform_times(_MANY_STEPS)).any():
        return "stochastic dynamics, such as FlowSDE()"
    return "more `steps`" if window is None else f"a larger `size` of `window` {window!r}"


def _numbers(steps: Tensor) -> str:
    return ", ".join(str(step + 1) for step in steps.nonzero().flatten().tolist())
