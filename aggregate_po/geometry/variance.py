"""Second moment of a completion's gradient as a function of the exponent, under an idealized gradient geometry."""

import torch

from aggregate_po.aggregators.power import log_power_mean
from aggregate_po.batch import PerCompletion, PerToken
from aggregate_po.geometry.effective_size import log_power_ess_derivative, power_ess
from aggregate_po.geometry.inequalities import centered, log_power_mean_derivative, width
from aggregate_po.geometry.power_family import per_completion


def variance_proxy(log_ratio: PerToken, response_mask: PerToken, exponent: float | PerCompletion) -> PerCompletion:
    r"""Return the squared value over the effective sample size, $V(p) = M_p^2 / \mathrm{ESS}(p)$.

    Proposition. If the gradients $\nabla \log \pi$ of the tokens are orthogonal and of equal norm $G$, the
    gradient of an unclipped completion of advantage $A$ has the squared norm $A^2 G^2 \, V(p)$: it is
    $A M_p \sum_t W_t(p) \nabla \log \pi_t$, and $\sum_t W_t^2 = 1 / \mathrm{ESS}$.

    Args:
        log_ratio: log ratios $x$; shape `batch time`.
        response_mask: True on trained tokens, boolean; shape `batch time`.
        exponent: order $p$, a number or one per completion; shape `batch`.

    Returns:
        Proxy, 0 for an empty completion; unlike `log_variance_proxy`, it overflows float32 for log ratios above 44;
        shape `batch`.

    Example:
        >>> x = torch.tensor([[0.6, -0.5, 0.2, 0.1]])
        >>> variance_proxy(x.expand(2, 4), torch.ones(2, 4, dtype=torch.bool), torch.tensor([2.0, 0.0]))
        tensor([0.5810, 0.3054])

    Reference: HölderPO, arXiv:2605.12058; the form with the effective sample size is derived here.
    """
    logarithm = log_variance_proxy(log_ratio, response_mask, exponent)
    return torch.where(response_mask.any(dim=-1), logarithm.exp(), 0)


def log_variance_proxy(log_ratio: PerToken, response_mask: PerToken, exponent: float | PerCompletion) -> PerCompletion:
    r"""Return the logarithm of `variance_proxy`, $2 \log M_p - \log \mathrm{ESS}(p)$.

    Proposition. Its derivative is $2 \frac{d}{dp} \log M_p - 2 \, (\mu(p) - \mu(2p))$, positive for all $p \ge 0$
    unless all ratios are equal, where the proxy is constant. As $p \to -\infty$ it tends to $2 \min x - \log k$, with
    $k$ tokens at the minimum.

    Args:
        log_ratio: log ratios $x$; shape `batch time`.
        response_mask: True on trained tokens, boolean; shape `batch time`.
        exponent: order $p$, a number or one per completion; shape `batch`.

    Returns:
        Log proxy, 0 for an empty completion; shape `batch`; unit: nats.

    Example:
        >>> log_variance_proxy(torch.tensor([[0.6, -0.5, 0.2, 0.1]]), torch.ones(1, 4, dtype=torch.bool), 0.0)
        tensor([-1.1863])

    Reference: HölderPO, arXiv:2605.12058; derivative and limit are derived here.
    """
    log_mean = log_power_mean(log_ratio, response_mask, per_completion(exponent, log_ratio))
    ess = power_ess(log_ratio, response_mask, exponent)
    return torch.where(response_mask.any(dim=-1), 2 * log_mean - ess.clamp(min=1).log(), 0)


def variance_minimizing_exponent(log_ratio: PerToken, response_mask: PerToken, lowest: float = -8.0) -> PerCompletion:
    r"""Return the exponent in $[p_{\min}, 0]$ that minimizes `variance_proxy`.

    Proposition. The minimizer is below 0: for $p > 0$ both the value and the concentration of the weights rise,
    and at 0 the derivative of the log proxy is the variance $v$ of the log ratios. As these become equal,
    $\log V(p) = \text{constant} + v \, (p^2 + p)$ to second order, so the minimizer tends to $-\frac12$.

    A minimum need not exist. As $p \to -\infty$, $V$ tends to $(\min r)^2 / k$, and for widely spread ratios this limit
    is below the local minimum near $-\frac12$, if there is one; the result is then `lowest`.

    A grid on $[p_{\min}, 0]$, finest near 0, brackets the minimum, and bisection of the derivative locates it. For log
    ratios with a range above about 20 the grid may be too coarse for minima close to 0.

    Args:
        log_ratio: log ratios $x$; shape `batch time`.
        response_mask: True on trained tokens, boolean; shape `batch time`.
        lowest: lower end $p_{\min}$ of the interval, below 0.

    Returns:
        Exponents, 0 where all ratios are equal or there is no token; detached; shape `batch`.

    Raises:
        ValueError: `lowest` is not a negative number.

    Example:
        >>> variance_minimizing_exponent(torch.tensor([[0.6, -0.5, 0.2, 0.1]]), torch.ones(1, 4, dtype=torch.bool))
        tensor([-0.4920])

    Reference: HölderPO, arXiv:2605.12058, for a minimizer at or below 0; the rest is derived here.
    """
    if not -float("inf") < lowest < 0:
        raise ValueError(f"`lowest` is {lowest}; pass a negative number.")
    with torch.no_grad():
        deviations = centered(log_ratio.double(), response_mask)  # a common level only scales the proxy
        low, high = _bracket(deviations, response_mask, lowest)
        for _ in range(52):
            middle = (low + high) / 2
            rising = _slope(deviations, response_mask, middle) > 0
            low, high = torch.where(rising, low, middle), torch.where(rising, middle, high)
        exponent = torch.where(width(deviations, response_mask) > 0, (low + high) / 2, 0)
    return exponent.to(log_ratio.dtype)


def _bracket(
    deviations: PerToken, mask: PerToken, lowest: float, steps: int = 64
) -> tuple[PerCompletion, PerCompletion]:
    """Return two exponents around the smallest value on a grid."""
    grid = lowest * (torch.arange(steps + 1, device=deviations.device, dtype=deviations.dtype) / steps).square()
    values = []
    for exponent in grid:
        # The log proxy up to a constant, in a form without cancellation where the ratios are nearly equal.
        order = per_completion(exponent, deviations)
        once, twice = log_power_mean(deviations, mask, order), log_power_mean(deviations, mask, 2 * order)
        values.append(2 * (1 - order) * once + 2 * order * twice)
    best = torch.stack(values).argmin(dim=0)
    return grid[(best + 1).clamp(max=steps)], grid[(best - 1).clamp(min=0)]


def _slope(deviations: PerToken, mask: PerToken, exponent: PerCompletion) -> PerCompletion:
    """Return the derivative of the log proxy in the exponent."""
    return 2 * log_power_mean_derivative(deviations, mask, exponent) - log_power_ess_derivative(
        deviations, mask, exponent
    )
