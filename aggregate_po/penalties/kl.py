"""Divergence from a policy to stay near, estimated from the sampled tokens."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor

from aggregate_po.batch import PerToken, PolicyBatch
from aggregate_po.bounds import bounded, log_ratio_of
from aggregate_po.penalties.base import Penalty


@dataclass(frozen=True)
class KLPenalty(Penalty):
    r"""Estimate of $\mathrm{KL}(\pi_\theta \| \pi_\mathrm{ref})$ from the sampled tokens; subclasses estimate it.

    Args:
        coefficient: weight of the estimate; 0 needs no reference.
        anchor: the policy to stay near: the "reference", or the "behaviour" policy that drew the completions.

    Raises:
        ValueError: the coefficient is negative, or there is no such anchor.
    """

    coefficient: float
    anchor: Literal["reference", "behaviour"] = "reference"

    def __post_init__(self) -> None:
        if self.anchor not in ("reference", "behaviour"):
            raise ValueError(f'`anchor` is {self.anchor!r}; pass "reference" or "behaviour".')
        if not self.coefficient >= 0:
            raise ValueError(f"`coefficient` is {self.coefficient}; pass 0 for no penalty, or a positive weight.")

    @property
    def needs_reference(self) -> bool:
        """True unless the coefficient is zero, or the behaviour policy is the anchor."""
        return self.coefficient > 0 and self.anchor == "reference"

    @abstractmethod
    def estimate(self, log_ratio: Tensor) -> Tensor:
        """Estimate from the log ratio to the anchor, elementwise."""

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
        if self.anchor == "behaviour":
            return log_ratio_of(log_probs, batch.old_log_probs, batch.response_mask)
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
