"""Inequalities between means of one completion: monotone in the order, bounded by the spread of the log ratios."""

import torch
from torch import Tensor

from aggregate_po.aggregators.power import log_power_mean
from aggregate_po.batch import PerCompletion, PerToken
from aggregate_po.geometry.power_family import per_completion, tilted_mean, tilted_variance
from aggregate_po.masked import masked_max, masked_mean


def log_power_mean_derivative(
    log_ratio: PerToken, response_mask: PerToken, exponent: float | PerCompletion
) -> PerCompletion:
    r"""Return the derivative of $\log M_p$ in $p$: the divergence of the power weights from uniform, over $p^2$.

    Proposition. $\frac{d}{dp} \log M_p = \mathrm{KL}(W(p) \Vert \text{uniform}) / p^2
    = \int_0^1 s \, \mathrm{Var}(sp) \, ds$. So $M_p$ rises with $p$, strictly unless all ratios are equal; at $p = 0$
    the derivative is half the variance of the log ratios; it never exceeds $(\max x - \min x)^2 / 8$.

    Proof. Differentiate $(L(p) - \log n) / p$, and use $\mathrm{KL} = \log n - H(W(p))$. By the derivative of the
    entropy, the divergence is $\int_0^p q \, \mathrm{Var}(q) \, dq$; put $q = sp$. The bound is Popoviciu's for the
    variance, times $\int_0^1 s \, ds$.

    Args:
        log_ratio: log ratios $x$; shape `batch time`.
        response_mask: True on trained tokens, boolean; shape `batch time`.
        exponent: order $p$, a number or one per completion; shape `batch`.

    Returns:
        Derivative, 0 for an empty completion; shape `batch`; unit: nats per unit of exponent.

    Example:
        >>> log_power_mean_derivative(torch.tensor([[0.6, -0.5, 0.2, 0.1]]), torch.ones(1, 4, dtype=torch.bool), 1.0)
        tensor([0.0678])

    Reference: that power means rise: Hardy, Littlewood, Pólya (1934), theorem 16; this form is derived here.
    """
    order = per_completion(exponent, log_ratio)
    deviations = centered(log_ratio, response_mask)
    variance = tilted_variance(deviations, response_mask, 0.0)
    third_moment = masked_mean(deviations.pow(3), response_mask)
    # KL / p is the tilted mean minus log M_p; near zero their digits cancel, so use two terms of the series.
    near_zero = order.abs() * width(deviations, response_mask) < torch.finfo(deviations.dtype).eps ** (1 / 3)
    divisor = torch.where(near_zero, 1, order)
    far = (tilted_mean(deviations, response_mask, order) - log_power_mean(deviations, response_mask, order)) / divisor
    return torch.where(near_zero, variance / 2 + order * third_moment / 3, far.clamp(min=0))


def order_gap_bound(
    log_ratio: PerToken, response_mask: PerToken, exponent: float | PerCompletion, other: float | PerCompletion
) -> PerCompletion:
    r"""Return an upper bound on $|\log M_p - \log M_q|$, which is $|p - q| \, (\max x - \min x)^2 / 8$.

    Proof. Integrate the bound of `log_power_mean_derivative` from $q$ to $p$. With $q = 0$ this is Hoeffding's lemma.
    It bounds what a schedule of exponents can change between two steps.

    Args:
        log_ratio: log ratios $x$; shape `batch time`.
        response_mask: True on trained tokens, boolean; shape `batch time`.
        exponent: order $p$, a number or one per completion; shape `batch`.
        other: order $q$, a number or one per completion; shape `batch`.

    Returns:
        Bound, 0 for an empty completion; shape `batch`; unit: nats.

    Example:
        >>> order_gap_bound(torch.tensor([[0.6, -0.5, 0.2, 0.1]]), torch.ones(1, 4, dtype=torch.bool), 2.0, -2.0)
        tensor([0.6050])

    Reference: Hoeffding (1963), lemma 1; between any two orders, derived here.
    """
    distance = (per_completion(exponent, log_ratio) - per_completion(other, log_ratio)).abs()
    return distance * width(log_ratio, response_mask).square() / 8


def am_gm_gap(log_ratio: PerToken, response_mask: PerToken) -> PerCompletion:
    r"""Return the log of the arithmetic over the geometric mean of the ratios, $\log M_1 - \log M_0 \ge 0$.

    Proposition. Without clips, the value of a completion under GMPO is $e^{-\mathrm{gap}}$ times that under GRPO, so
    $|J_\mathrm{GMPO}| \le |J_\mathrm{GRPO}|$ for each completion, with equality where all ratios are equal. The
    inequality does not extend to a group: with advantages of both signs terms cancel, and the sum may be larger.

    Args:
        log_ratio: log ratios $x$; shape `batch time`.
        response_mask: True on trained tokens, boolean; shape `batch time`.

    Returns:
        Gap, 0 for an empty completion; shape `batch`; unit: nats.

    Example:
        >>> am_gm_gap(torch.tensor([[0.6, -0.5, 0.2, 0.1]]), torch.ones(1, 4, dtype=torch.bool))
        tensor([0.0729])

    Reference: GMPO, arXiv:2507.20673; the restriction to one completion is derived here.
    """
    deviations = centered(log_ratio, response_mask)
    arithmetic = log_power_mean(deviations, response_mask, per_completion(1.0, deviations))
    return (arithmetic - masked_mean(deviations, response_mask)).clamp(min=0)


def am_gm_bounds(log_ratio: PerToken, response_mask: PerToken) -> tuple[PerCompletion, PerCompletion]:
    r"""Return a lower and an upper bound on `am_gm_gap`, from the variance $v$ and the extremes of $d = x - \bar x$.

    Proposition. With $\varphi(b) = (e^b - 1 - b) / b^2$ and $\varphi(0) = \frac12$,

    $$\log(1 + v \, \varphi(\min d)) \le \log M_1 - \log M_0
    \le \min\bigl\{ \log(1 + v \, \varphi(\max d)), \; (\max d - \min d)^2 / 8 \bigr\} .$$

    Proof. $\varphi(b) = \int_0^1 (1 - s) \, e^{sb} \, ds$ rises with $b$, and
    $e^{d_t} = 1 + d_t + d_t^2 \, \varphi(d_t)$. Put the smallest or largest $d$ into $\varphi$ and average:
    $\sum_t d_t = 0$ leaves $1 + v \, \varphi$. The other upper bound is Hoeffding's. So the gap is positive unless all
    ratios are equal, and as they become equal both bounds by the variance tend to $v / 2$.

    Args:
        log_ratio: log ratios $x$; shape `batch time`.
        response_mask: True on trained tokens, boolean; shape `batch time`.

    Returns:
        Lower and upper bound, 0 for an empty completion; shape `batch` each; unit: nats.

    Example:
        >>> am_gm_bounds(torch.tensor([[0.6, -0.5, 0.2, 0.1]]), torch.ones(1, 4, dtype=torch.bool))
        (tensor([0.0621]), tensor([0.0882]))

    Reference: Hoeffding (1963), lemma 1; the upper bound by the variance: Bennett (1962); the lower one, by the same
        argument, is derived here.
    """
    deviations = centered(log_ratio.double(), response_mask)  # exp(160) leaves the range of float32
    variance = masked_mean(deviations.square(), response_mask)
    smallest, largest = -masked_max(-deviations, response_mask), masked_max(deviations, response_mask)
    lower = torch.log1p(variance * _bennett(smallest))
    upper = torch.minimum(torch.log1p(variance * _bennett(largest)), (largest - smallest).square() / 8)
    return lower.to(log_ratio.dtype), upper.to(log_ratio.dtype)


def width(log_ratio: PerToken, response_mask: PerToken) -> PerCompletion:
    """Return the range of the log ratios of each completion, 0 for an empty one; shape `batch`."""
    return masked_max(log_ratio, response_mask) + masked_max(-log_ratio, response_mask)


def centered(log_ratio: PerToken, response_mask: PerToken) -> PerToken:
    """Return the log ratios minus their mean, 0 on padding; shape `batch time`."""
    # Relative to a token first: the mean of large numbers has a rounding error above their differences.
    relative = torch.where(response_mask, log_ratio - masked_max(log_ratio, response_mask).unsqueeze(-1), 0)
    return torch.where(response_mask, relative - masked_mean(relative, response_mask).unsqueeze(-1), 0)


def _bennett(values: Tensor) -> Tensor:
    """Return `(exp(b) - 1 - b) / b^2`, which is 1/2 at zero; float64."""
    small = values.abs() < 1e-2  # above, at most four digits cancel; below, five terms of the series are exact
    divisor = torch.where(small, 1, values)
    series = 1 / 2 + values / 6 * (1 + values / 4 * (1 + values / 5 * (1 + values / 6)))
    return torch.where(small, series, (torch.expm1(divisor) - divisor) / divisor.square())
