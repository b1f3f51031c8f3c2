"""KL divergence from a reference policy in closed form, for policies with Gaussian transitions."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from typing_extensions import override

from aggregate_po.arguments import require_non_negative
from aggregate_po.batch import PerToken, PolicyBatch
from aggregate_po.bounds import bounded
from aggregate_po.penalties.base import Penalty


@dataclass(frozen=True)
class GaussianKL(Penalty):
    r"""Divergence of each denoising step from the reference policy, $\overline{(\mu - \mu_\mathrm{ref})^2} / 2 s^2$.

    The cost is `ref_divergence` of the batch. It is exact, and not an estimate from the sample as `K3Penalty` is.

    It depends on the mean of the transition and not on the sample, so its derivative by the log-probability is 0: the
    closed-form weights do not contain it. Its gradient flows through `ref_divergence`, which must have its graph.
    Divergences above 20 are clamped and have no gradient.

    Args:
        coefficient: Weight of the divergence in the objective; at 0 no reference model is needed.

    Raises:
        ValueError: the coefficient is negative or not finite; when called, if the batch has no `ref_divergence`.

    Example:
        >>> batch = PolicyBatch(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1), ref_divergence=torch.ones(1, 2))
        >>> GaussianKL(0.04).token_costs(torch.zeros(1, 2), batch)
        tensor([[0.0400, 0.0400]])

    Reference: Flow-GRPO, arXiv:2505.05470, with a coefficient of 0.04 for rendered text.
    """

    coefficient: float

    def __post_init__(self) -> None:
        require_non_negative("pass 0 for no penalty, or a positive weight that is finite", coefficient=self.coefficient)

    @property
    @override
    def needs_reference(self) -> bool:
        """Whether `batch.ref_divergence` is read: with a positive coefficient."""
        return self.coefficient > 0

    @override
    def token_costs(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        return self.coefficient * self._divergence(log_probs, batch)

    @override
    def token_derivatives(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        """Return 0: the divergence does not depend on the sample."""
        return torch.zeros_like(log_probs)

    @override
    def observed(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        """Return the divergence without the coefficient."""
        return self._divergence(log_probs, batch).detach()

    def _divergence(self, log_probs: PerToken, batch: PolicyBatch) -> PerToken:
        if self.coefficient == 0:
            return torch.zeros_like(log_probs)
        if batch.ref_divergence is None:
            raise ValueError(
                "`ref_divergence` is None, but the objective has a GaussianKL; pass the divergence of each step from "
                "the reference policy in PolicyBatch, or set the coefficient to 0."
            )
        return bounded(batch.ref_divergence.to(log_probs.dtype))
