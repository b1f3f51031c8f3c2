"""One completion of four tokens, small enough to work every objective by hand.

Ratios 1.8221188, 0.60653066, 1.22140276, 1.10517092; arithmetic mean 1.188805784, geometric 1.105170918,
harmonic 1.020121624, product 1.491824698.
"""

import torch
from torch import Tensor

from aggregate_po import PolicyBatch, PolicyObjective, RatioTransform, TokenRatios

LOG_RATIO = torch.tensor([[0.6, -0.5, 0.2, 0.1]], dtype=torch.float64)
OLD_LOG_PROBS = torch.tensor([[-1.5, -0.25, -3.0, -0.75]], dtype=torch.float64)


def worked_batch(advantage: float) -> tuple[Tensor, PolicyBatch]:
    """Log-probabilities that require gradient, and the batch of this one completion."""
    batch = PolicyBatch(OLD_LOG_PROBS, torch.ones(1, 4), torch.tensor([advantage], dtype=torch.float64))
    return (OLD_LOG_PROBS + LOG_RATIO).requires_grad_(), batch


def worked_tokens(clip: RatioTransform, advantage: float) -> TokenRatios:
    """Context of an aggregator on this completion after `clip`."""
    entering = TokenRatios.of(LOG_RATIO, advantages=torch.tensor([advantage], dtype=torch.float64))
    return TokenRatios(**{**vars(entering), "log_ratio": clip(entering), "saturated": clip.saturated(entering)})


def assert_objective(objective: PolicyObjective, advantage: float, value: float, weights: list[float]) -> None:
    """The value, the closed-form weights and the gradient by autograd are the numbers given, to 1e-7."""
    log_probs, batch = worked_batch(advantage)
    result = objective(log_probs, batch)
    result.backward()
    expected = torch.tensor([weights], dtype=torch.float64)
    close(result, torch.tensor(value, dtype=torch.float64))
    close(objective.gradient_weights(log_probs, batch).total, expected)
    close(log_probs.grad, expected)


def close(actual: Tensor, expected: Tensor | float | list, tolerance: float = 1e-7) -> None:
    """Absolute agreement in float64; the numbers of this example are printed to eight digits."""
    expected = torch.as_tensor(expected, dtype=torch.float64)
    torch.testing.assert_close(actual.detach().double(), expected, rtol=0, atol=tolerance)
