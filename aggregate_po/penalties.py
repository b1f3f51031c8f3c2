"""Penalties: costs per token that are averaged over each completion and taken off the objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregate_po.batch import PerToken, PolicyBatch
from aggregate_po.bounds import bounded, log_ratio_of


class Penalty(ABC):
    """A cost of each token, averaged over a completion's tokens and weighted by the normaliser (eq. 13)."""

    @property
    def needs_reference(self) -> bool:
        """Whether `batch.ref_log_probs` is read."""
        return False

    @abstractmethod
    def token_costs(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        """Cost of each token, coefficient included; anything on padding; shape `batch time`."""

    def token_derivatives(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        """Derivative of the costs with respect to `log_probs`; by autograd, unless a subclass gives the closed form."""
        with torch.inference_mode(False), torch.enable_grad():
            inputs = log_probs.detach().clone().requires_grad_()
            costs = self.token_costs(inputs, batch.to(inputs.device, copy=True))
            (derivatives,) = torch.autograd.grad(costs.sum(), inputs, materialize_grads=True)
        return derivatives


@dataclass(frozen=True)
class KLPenalty(Penalty):
    r"""Estimate of $\mathrm{KL}(\pi_\theta \| \pi_\mathrm{ref})$ from the sampled tokens; subclasses estimate it.

    Args:
        coefficient: weight of the estimate; 0 needs no reference.

    Raises:
        ValueError: the coefficient is negative.
    """

    coefficient: float

    def __post_init__(self) -> None:
        if not self.coefficient >= 0:
            raise ValueError(f"`coefficient` is {self.coefficient}; pass 0 for no penalty, or a positive weight.")

    @property
    def needs_reference(self) -> bool:
        """True unless the coefficient is zero."""
        return self.coefficient > 0

    @abstractmethod
    def estimate(self, log_ratio: Tensor) -> Tensor:
        """Estimate from `log_probs - ref_log_probs`, elementwise."""

    @abstractmethod
    def slope(self, log_ratio: Tensor) -> Tensor:
        """Derivative of `estimate`, elementwise."""

    def token_costs(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        """See `Penalty`."""
        return self.coefficient * self.estimate(bounded(self._log_ratio(log_probs, batch)))

    def token_derivatives(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        """See `Penalty`."""
        log_ratio = self._log_ratio(log_probs, batch)
        inside = bounded(log_ratio) == log_ratio
        return torch.where(inside, self.coefficient * self.slope(bounded(log_ratio)), 0)

    def _log_ratio(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        if self.coefficient == 0:
            return torch.zeros_like(log_probs)
        if batch.ref_log_probs is None:
            raise ValueError(
                "`ref_log_probs` is None, but the objective has a KL penalty; pass the reference policy's "
                "log-probabilities in PolicyBatch, or set the penalty's coefficient to 0."
            )
        return log_ratio_of(log_probs, batch.ref_log_probs, batch.response_mask)


@dataclass(frozen=True)
class K1Penalty(KLPenalty):
    r"""$k_1 = \log \pi_\theta - \log \pi_\mathrm{ref}$: unbiased as a value; its gradient has expectation zero.

    Reference: Schulman (2020), "Approximating KL divergence".
    """

    def estimate(self, log_ratio: Tensor) -> Tensor:
        """See `KLPenalty`."""
        return log_ratio

    def slope(self, log_ratio: Tensor) -> Tensor:
        """See `KLPenalty`."""
        return torch.ones_like(log_ratio)


@dataclass(frozen=True)
class K2Penalty(KLPenalty):
    r"""$k_2 = \frac12 (\log \pi_\theta - \log \pi_\mathrm{ref})^2$: biased as a value, right in its gradient on policy.

    Reference: Schulman (2020), "Approximating KL divergence".
    """

    def estimate(self, log_ratio: Tensor) -> Tensor:
        """See `KLPenalty`."""
        return log_ratio.square() / 2

    def slope(self, log_ratio: Tensor) -> Tensor:
        """See `KLPenalty`."""
        return log_ratio


@dataclass(frozen=True)
class K3Penalty(KLPenalty):
    r"""$k_3 = \pi_\mathrm{ref}/\pi_\theta - \log(\pi_\mathrm{ref}/\pi_\theta) - 1$: unbiased and never negative.

    Reference: Schulman (2020), "Approximating KL divergence"; GRPO, arXiv:2402.03300.
    """

    def estimate(self, log_ratio: Tensor) -> Tensor:
        """See `KLPenalty`."""
        return torch.expm1(-log_ratio) + log_ratio

    def slope(self, log_ratio: Tensor) -> Tensor:
        """See `KLPenalty`."""
        return -torch.expm1(-log_ratio)


@dataclass(frozen=True)
class EntropyBonus(Penalty):
    r"""Rewards entropy, estimated from the sampled tokens: cost $\beta\, r_t \log \pi_\theta(o_t)$.

    The ratio makes the estimate and its gradient $\beta\, r_t (\log \pi_\theta + 1)$ those of the entropy of
    $\pi_\theta$ although the tokens come from the behaviour policy; and the model is reached through the
    log-probabilities of the chosen tokens only, as by every other part.

    Args:
        coefficient: weight of the bonus.

    Raises:
        ValueError: the coefficient is negative.
    """

    coefficient: float

    # Far below any log-probability of a token; with the bound on the ratio it keeps the product finite.
    _most = 1e4

    def __post_init__(self) -> None:
        if not self.coefficient >= 0:
            raise ValueError(f"`coefficient` is {self.coefficient}; pass 0 for no bonus, or a positive weight.")

    def token_costs(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        """See `Penalty`."""
        log_ratio = bounded(log_ratio_of(log_probs, batch.old_log_probs, batch.response_mask))
        return self.coefficient * log_ratio.exp() * log_probs.clamp(-self._most, self._most)

    def token_derivatives(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        """See `Penalty`."""
        log_ratio = log_ratio_of(log_probs, batch.old_log_probs, batch.response_mask)
        clamped = log_probs.clamp(-self._most, self._most)
        ratio_slope = torch.where(bounded(log_ratio) == log_ratio, clamped, 0)
        value_slope = (clamped == log_probs).to(log_probs.dtype)
        return self.coefficient * bounded(log_ratio).exp() * (ratio_slope + value_slope)
