"""The gradient of an objective as five readable factors."""

from dataclasses import dataclass

from torch import Tensor

from aggregate_po.batch import PerToken


@dataclass(frozen=True)
class GradientWeights:
    """Weight of each token on the gradient of its log-probability, in factors (eq. 4).

    Every factor broadcasts against `batch time`: those of a completion have shape `(batch, 1)`.

    Args:
        completion: normaliser's weight of the completion.
        advantages: advantage of the completion; shape `batch time` where each token has its own.
        magnitude: value of the completion times the derivative of the sequence transform.
        concentration: share of the completion's gradient that each token receives.
        gate: derivative of the token transform.
        penalty: weight that the penalties add.
        clipped: True where a clip made the gradient zero.
        overflow: True where the bound on log ratios made the gradient zero.
    """

    completion: Tensor
    advantages: Tensor
    magnitude: Tensor
    concentration: PerToken
    gate: PerToken
    penalty: PerToken
    clipped: Tensor | None = None
    overflow: Tensor | None = None

    @property
    def total(self) -> PerToken:
        """Gradient of the objective with respect to `log_probs`; shape `batch time`."""
        product = self.completion * self.advantages * self.magnitude * self.concentration * self.gate
        return product + self.penalty
