"""Results of an objective: the gradient weights in five factors, and everything evaluated on one batch."""

from dataclasses import dataclass

from torch import Tensor

from aggregate_po.batch import PerCompletion, PerToken


@dataclass(frozen=True)
class GradientWeights:
    """Gradient weight of each token's log-probability, in factors (eq. 4).

    These are derivatives by `log_probs`, with every other tensor of the batch held fixed. The divergence of a denoising
    step depends on the policy too. Where `RatioNorm` is the first transform, the derivative by the divergence of a step
    equals that by its log-probability, because it reads their sum. So the gradient by the mean of a transition is
    `total` times the derivative of `log_probs + divergence` (eq. 62).

    Every factor broadcasts against `batch time`; factors of a completion have shape `(batch, 1)`.

    Args:
        completion: weight of the completion, from the normalizer.
        advantages: advantage of the completion; shape `batch time` for per-token advantages, and with a suffix weight,
            by which they are multiplied. With a group objective, the advantage that it gives the completion,
            `GroupTerms.advantages`.
        magnitude: value of the completion times the derivative of the sequence transform; with a group objective, that
            derivative alone.
        concentration: share of the completion's gradient that each token receives.
        gate: derivative of the token transform.
        penalty: additive weight from the penalties.
        clipped: True where a clip sets the gradient to zero.
        overflow: True where the bound on log ratios sets the gradient to zero.
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
    """Value, gradient weights and penalty observations of an objective on one batch.

    Args:
        value: value of the objective, a scalar attached to the graph of the log-probabilities.
        weights: gradient of the value with respect to the log-probabilities, in factors; detached.
        observed: contribution of this batch to the average that each penalty adapts to; detached; shape
            `(penalties,)`.
        exponents: exponent that the aggregator's rule chose for each completion, None without a rule; detached; shape
            `batch`.
    """

    value: Tensor
    weights: GradientWeights
    observed: Tensor
    exponents: PerCompletion | None = None
