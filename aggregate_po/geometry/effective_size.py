"""Effective sample size of the power weights as a function of the exponent, and its inverse."""

import torch

from aggregate_po.batch import PerCompletion, PerToken
from aggregate_po.exponents import ESSCurve
from aggregate_po.geometry.measures import effective_sample_size
from aggregate_po.geometry.power_family import per_completion, power_weights, tilted_mean
from aggregate_po.masked import masked_max


def power_ess(log_ratio: PerToken, response_mask: PerToken, exponent: float | PerCompletion) -> PerCompletion:
    r"""Return the effective sample size of $W(p)$, $\mathrm{ESS}(p) = (\sum_t r_t^p)^2 / \sum_t r_t^{2p}$ (eq. 17).

    Proposition. It is $n$ at $p = 0$ and does not change when all ratios are multiplied by a constant. It falls as
    $p$ moves away from 0 to either side, strictly unless all ratios are equal, toward the number of tokens that share
    the extreme ratio. In logarithms of power means, $\log \mathrm{ESS}(p) = \log n - 2p \, (\log M_{2p} - \log M_p)$.

    Args:
        log_ratio: log ratios $x = \log r$; shape `batch time`.
        response_mask: True on trained tokens, boolean; shape `batch time`.
        exponent: order $p$, a number or one per completion; shape `batch`.

    Returns:
        Effective token count, 0 for an empty completion; shape `batch`; unit: tokens.

    Example:
        >>> power_ess(torch.tensor([[0.6, -0.5, 0.2, 0.1]]), torch.ones(1, 4, dtype=torch.bool), 2.0)
        tensor([2.7545])

    Reference: Kong (1992); of power weights: PMPO, arXiv:2601.22521; the last identity is derived here.
    """
    return effective_sample_size(power_weights(log_ratio, response_mask, exponent))


def log_power_ess_derivative(
    log_ratio: PerToken, response_mask: PerToken, exponent: float | PerCompletion
) -> PerCompletion:
    r"""Return the derivative of the log effective sample size in the exponent, $2 \, (\mu(p) - \mu(2p))$.

    Proof. $\log \mathrm{ESS}(p) = 2 L(p) - L(2p)$ and $L' = \mu$. Since $\mu$ rises, the derivative has the opposite
    sign to $p$; it is 0 at $p = 0$ and where all ratios are equal.

    Args:
        log_ratio: log ratios $x$; shape `batch time`.
        response_mask: True on trained tokens, boolean; shape `batch time`.
        exponent: order $p$, a number or one per completion; shape `batch`.

    Returns:
        Derivative, 0 for an empty completion; shape `batch`; unit: nats per unit of exponent.

    Example:
        >>> log_power_ess_derivative(torch.tensor([[0.6, -0.5, 0.2, 0.1]]), torch.ones(1, 4, dtype=torch.bool), 1.0)
        tensor([-0.2148])

    Reference: derived here; that the effective sample size is monotone is stated by PMPO, arXiv:2601.22521.
    """
    order = per_completion(exponent, log_ratio)
    # Relative to a token of the completion, so that a common level does not cause cancellation.
    relative = log_ratio - masked_max(log_ratio, response_mask).unsqueeze(-1)
    return 2 * (tilted_mean(relative, response_mask, order) - tilted_mean(relative, response_mask, 2 * order))


def exponent_of_ess(
    log_ratio: PerToken, response_mask: PerToken, share: float | PerCompletion, largest: float = 1.0
) -> PerCompletion:
    r"""Return the $p$ in $[0, p_{\max}]$ at which $\mathrm{ESS}(p) / n$ equals `share`, by bisection.

    Proposition. On $p \ge 0$ the effective sample size falls strictly unless all ratios are equal, so there is at most
    one solution. It exists where $\mathrm{ESS}(p_{\max}) / n \le$ `share` $\le 1$; otherwise the nearer end is
    returned. For exponents below 0, pass `-log_ratio` and change the sign of the result.

    The result is `largest` where all ratios are equal. Near `share` 1 the curve is flat, and the exponent is known only
    to about $10^{-8}$ over the standard deviation of the log ratios.

    Args:
        log_ratio: log ratios $x$; shape `batch time`.
        response_mask: True on trained tokens, boolean; shape `batch time`.
        share: effective sample size over the length, a number or one per completion; shape `batch`.
        largest: upper end $p_{\max}$ of the interval, above 0.

    Returns:
        Exponents, 0 for an empty completion; detached; shape `batch`.

    Raises:
        ValueError: `largest` is not a positive number.

    Example:
        >>> exponent_of_ess(torch.tensor([[0.6, -0.5, 0.2, 0.1]]), torch.ones(1, 4, dtype=torch.bool), 0.95)
        tensor([0.6110])

    Reference: PMPO, arXiv:2601.22521, whose rule, `ESSMatching`, solves the same equation with this code.
    """
    if not 0 < largest < float("inf"):
        raise ValueError(f"`largest` is {largest}; pass a positive number, and `-log_ratio` for exponents below 0.")
    with torch.no_grad():
        target = torch.as_tensor(share, dtype=torch.float64)  # a Python number would become float32
        exponents = ESSCurve.of(log_ratio, response_mask).exponent(target, largest)
    return torch.where(response_mask.any(dim=-1), exponents, 0).to(log_ratio.dtype)
