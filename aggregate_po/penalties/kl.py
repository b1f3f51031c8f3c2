"""KL divergence from a reference or behavior policy, estimated from the sampled tokens."""

from __future__ import annotations

from abc import abstractmethod
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor
from typing_extensions import override

from aggregate_po.arguments import require_non_negative
from aggregate_po.batch import PerToken, PolicyBatch
from aggregate_po.bounds import bounded, log_ratio_of
from aggregate_po.penalties.base import Penalty


@dataclass(frozen=True)
class KLPenalty(Penalty):
    r"""Estimate of $\mathrm{KL}(\pi_\theta \| \pi_\mathrm{ref})$ from the sampled tokens.

    A subclass implements `estimate` and its derivative `slope`.

    Args:
        coefficient: Weight of the estimate in the objective; at 0 no reference model is needed.
        anchor: Policy to stay close to: "reference", or "behavior", the policy that generated the completions.

    Raises:
        ValueError: the coefficient is negative or not finite, or the anchor is unknown.
    """

    coefficient: float
    anchor: Literal["reference", "behavior"] = "reference"

    def __post_init__(self) -> None:
        if self.anchor not in ("reference", "behavior"):
            raise ValueError(f'`anchor` is {self.anchor!r}; pass "reference" or "behavior".')
        require_non_negative("pass 0 for no penalty, or a positive weight that is finite", coefficient=self.coefficient)

    @property
    @override
    def needs_reference(self) -> bool:
        """Whether `batch.ref_log_probs` is read: with a positive coefficient and the reference as anchor."""
        return self.coefficient > 0 and self.anchor == "reference"

    @abstractmethod
    def estimate(self, log_ratio: Tensor) -> Tensor:
        """Return the estimate from the log ratio to the anchor, elementwise."""

    @abstractmethod
    def slope(self, log_ratio: Tensor) -> Tensor:
        """Return the derivative of `estimate`, elementwise."""

    @override
    def token_costs(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        return self.coefficient * self.estimate(bounded(self._log_ratio(log_probs, batch)))

    @override
    def token_derivatives(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        log_ratio = self._log_ratio(log_probs, batch)
        inside = bounded(log_ratio) == log_ratio
        return torch.where(inside, self.coefficient * self.slope(bounded(log_ratio)), 0)

    def _log_ratio(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        if self.coefficient == 0:
            return torch.zeros_like(log_probs)
        if self.anchor == "behavior":
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

    @override
    def estimate(self, log_ratio: Tensor) -> Tensor:
        return log_ratio

    @override
    def slope(self, log_ratio: Tensor) -> Tensor:
        return torch.ones_like(log_ratio)


@dataclass(frozen=True)
class K2Penalty(KLPenalty):
    r"""$k_2 = \frac12 (\log \pi_\theta - \log \pi_\mathrm{ref})^2$: biased, but its gradient on policy is not.

    Reference: Schulman (2020), "Approximating KL divergence".
    """

    @override
    def estimate(self, log_ratio: Tensor) -> Tensor:
        return log_ratio.square() / 2

    @override
    def slope(self, log_ratio: Tensor) -> Tensor:
        return log_ratio


@dataclass(frozen=True)
class K3Penalty(KLPenalty):
    r"""$k_3 = \pi_\mathrm{ref}/\pi_\theta - \log(\pi_\mathrm{ref}/\pi_\theta) - 1$: unbiased and never negative.

    Reference: Schulman (2020), "Approximating KL divergence"; GRPO, arXiv:2402.03300.
    """

    @override
    def estimate(self, log_ratio: Tensor) -> Tensor:
        return torch.expm1(-log_ratio) + log_ratio

    @override
    def slope(self, log_ratio: Tensor) -> Tensor:
        return -torch.expm1(-log_ratio)
