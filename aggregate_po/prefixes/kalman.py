"""Causal Kalman filter over the log ratios of a completion."""

from __future__ import annotations

import math
from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from aggregate_po.arguments import require_numbers
from aggregate_po.batch import PerToken
from aggregate_po.prefixes.base import PrefixAggregate
from aggregate_po.scans import linear_recurrence
from aggregate_po.token_ratios import TokenRatios

# Below, the drift over a million tokens is lost in rounding, and its exponentials would be in single precision.
_NO_DRIFT = 1e-25


@dataclass(frozen=True)
class PrefixKalmanFilter(PrefixAggregate):
    r"""Log ratio of each token as a Kalman filter estimates it from the log ratios up to it.

    The filter takes the log ratio of a token as a noisy observation of a level that drifts from token to token. From
    $y_0 = 0$ it computes $y_t = (1 - K_t) y_{t-1} + K_t x_t$ with the gain
    $K_t = (K_{t-1} + q) / (K_{t-1} + q + 1)$. Both variances are in units of the variance of the observations. Their
    limits are other aggregates. With $q = \infty$ each token keeps its own ratio. With $q = 0$ the gain is
    $1 / (t + 1 / K_0)$, which gives the geometric mean of the prefix for $K_0 = \infty$, and ratios of one for
    $K_0 = 0$.

    Args:
        process_variance: Variance $q$ of the drift of the level from one token to the next; may be `inf`.
        prior_variance: Variance $K_0$ of the level before the first token; may be `inf`.

    Raises:
        ValueError: a variance is negative or NaN.

    Reference: KPO, arXiv:2602.10609, with the defaults of its code.
    """

    process_variance: float = 1e-6
    prior_variance: float = 0.0

    def __post_init__(self) -> None:
        require_numbers(**vars(self))
        for name, variance in vars(self).items():
            if not variance >= 0:
                raise ValueError(f"`{name}` is {variance}; pass 0 or more, or `inf`.")

    @override
    def log_prefix(self, tokens: TokenRatios) -> PerToken:
        gains = torch.where(tokens.response_mask, self.gains(tokens.positions), 0)
        return linear_recurrence(1 - gains, gains * tokens.log_ratio)

    def gains(self, positions: Tensor) -> Tensor:
        r"""Return the gain $K_t$ at each position $t$, counted from 1.

        The recursion of the gain is a power of one matrix. With $q = 4 \sinh^2(\theta / 2)$, $\rho = e^{-\theta}$ and
        $a = \rho K_0$,

        $$
        K_t = \frac{a (1 + \rho^{2t-1}) + (1 - \rho) (1 - \rho^{2t})}
                   {a (1 - \rho^{2t}) / (1 - \rho) + 1 + \rho^{2t+1}},
        $$

        in which all terms are positive, so no digits are lost.
        """
        theta = 2 * math.asinh(math.sqrt(self.process_variance) / 2)
        theta = theta if theta > _NO_DRIFT else 0.0
        ratio = math.exp(-theta)
        # With an infinite drift the prior has no effect, however uncertain.
        prior = self.prior_variance * ratio if ratio > 0 else 0.0
        # Numerator and denominator are divided by 1 + a, which leaves the limit of a large prior.
        from_prior, from_drift = (1.0, 0.0) if prior == math.inf else (prior / (1 + prior), 1 / (1 + prior))
        fading = -math.expm1(-theta)
        elapsed = -torch.expm1(-2 * theta * positions)
        sum_of_powers = elapsed / fading if fading > 0 else 2 * positions
        numerator = from_prior * (1 + ((1 - 2 * positions) * theta).exp()) + from_drift * fading * elapsed
        denominator = from_prior * sum_of_powers + from_drift * (1 + ((-1 - 2 * positions) * theta).exp())
        return numerator / denominator
