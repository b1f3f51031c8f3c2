"""Results of an objective: its gradient as five readable factors, and all that it gives for one batch."""

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
    clipped: PerToken
    overflow: PerToken

    @property
    def total(self) -> PerToken:
        """Gradient of the objective with respect to `log_probs`; shape `batch time`."""
        product = self.completion * self.advantages * self.magnitude * self.concentration * self.gate
        return product + self.penalty


@dataclass(frozen=True)
class Evaluated:
    """Value, gradient and observations of an objective on one batch.

    Args:
        value: value of the objective, a scalar attached to the graph of the log-probabilities.
        weights: gradient of the value with respect to the log-probabilities, in factors; detached.
        observed: this batch's part of what each penalty observes over the optimiser step; detached; shape
            `(penalties,)`.
    """

    value: Tensor
    weights: GradientWeights
    observed: Tensor
