r"""The weights $W(p)$ of the power means as a family of distributions over the tokens of a completion.

$W(p)$ tilts the uniform distribution exponentially, $W_t(p) \propto e^{p x_t}$ with log ratios $x$. With
$L(p) = \log \sum_t e^{p x_t}$, the mean of $x$ under $W(p)$ is $\mu(p) = L'(p)$ and the variance is $L''(p)$.
"""

import torch
from torch import Tensor

from aggregate_po.batch import PerCompletion, PerToken
from aggregate_po.geometry.measures import weight_entropy
from aggregate_po.masked import masked_max, masked_softmax, masked_sum


def power_weights(log_ratio: PerToken, response_mask: PerToken, exponent: float | PerCompletion) -> PerToken:
    r"""Return the weights of the power mean, $W_t(p) = e^{p x_t} / \sum_k e^{p x_k}$ (eq. 8).

    Proposition. $W(p) = \partial \log M_p / \partial x$. The weights are positive, sum to one, and do not change when
    all ratios are multiplied by a constant. They are uniform at $p = 0$; for $p > 0$ larger ratios have larger weights,
    for $p < 0$ smaller ratios do.

    Args:
        log_ratio: log ratios $x$; values on padding are ignored; shape `batch time`.
        response_mask: True on trained tokens, boolean; shape `batch time`.
        exponent: order $p$, a number or one per completion; finite; shape `batch`.

    Returns:
        Weights, 0 on padding; shape `batch time`.

    Example:
        >>> x = torch.tensor([[0.6, -0.5, 0.2, 0.1]])
        >>> power_weights(x, torch.ones(1, 4, dtype=torch.bool), 2.0)
        tensor([[0.5187, 0.0575, 0.2331, 0.1908]])

    Reference: PMPO, arXiv:2601.22521; HölderPO, arXiv:2605.12058, eq. 3.
    """
    order = per_completion(exponent, log_ratio)
    return masked_softmax(order.unsqueeze(-1) * _from_heaviest(log_ratio, response_mask, order)[0], response_mask)


def power_weights_derivative(log_ratio: PerToken, response_mask: PerToken, exponent: float | PerCompletion) -> PerToken:
    r"""Return the derivative of the weights in the exponent, $dW_t/dp = W_t(p) \, (x_t - \mu(p))$.

    Proposition. As $p$ grows, weight moves to the tokens whose log ratio is above the tilted mean, from those below;
    the derivatives of a completion sum to zero.

    Args:
        log_ratio: log ratios $x$; shape `batch time`.
        response_mask: True on trained tokens, boolean; shape `batch time`.
        exponent: order $p$, a number or one per completion; shape `batch`.

    Returns:
        Derivative, 0 on padding; shape `batch time`; unit: weight per unit of exponent.

    Example:
        >>> x = torch.tensor([[0.6, -0.5, 0.2, 0.1]])
        >>> power_weights_derivative(x, torch.ones(1, 4, dtype=torch.bool), 0.0)  # (x - 0.1) / 4
        tensor([[ 0.1250, -0.1500,  0.0250,  0.0000]])

    Reference: HölderPO, arXiv:2605.12058.
    """
    weights, deviations, mean, _ = _tilted(log_ratio, response_mask, exponent)
    return weights * (deviations - mean.unsqueeze(-1))


def tilted_mean(log_ratio: PerToken, response_mask: PerToken, exponent: float | PerCompletion) -> PerCompletion:
    r"""Return the mean of the log ratios under the power weights, $\mu(p) = \sum_t W_t(p) \, x_t$.

    Proposition. $\mu'(p) = \mathrm{Var}_{W(p)}(x) \ge 0$: the tilted mean rises from the smallest log ratio as
    $p \to -\infty$, through the plain mean at 0, to the largest as $p \to \infty$.

    Args:
        log_ratio: log ratios $x$; shape `batch time`.
        response_mask: True on trained tokens, boolean; shape `batch time`.
        exponent: order $p$, a number or one per completion; shape `batch`.

    Returns:
        Mean log ratio, 0 for an empty completion; shape `batch`.

    Example:
        >>> tilted_mean(torch.tensor([[0.6, -0.5, 0.2, 0.1]]), torch.ones(1, 4, dtype=torch.bool), 1.0)
        tensor([0.2407])

    Reference: HölderPO, arXiv:2605.12058.
    """
    _, _, mean, heaviest = _tilted(log_ratio, response_mask, exponent)
    return heaviest + mean


def tilted_variance(log_ratio: PerToken, response_mask: PerToken, exponent: float | PerCompletion) -> PerCompletion:
    r"""Return the variance of the log ratios under $W(p)$, $\mathrm{Var}(p) = \sum_t W_t(p) \, (x_t - \mu(p))^2$.

    Proposition. $0 \le \mathrm{Var}(p) \le (\max x - \min x)^2 / 4$, and it is 0 only where all ratios are equal.

    Args:
        log_ratio: log ratios $x$; shape `batch time`.
        response_mask: True on trained tokens, boolean; shape `batch time`.
        exponent: order $p$, a number or one per completion; shape `batch`.

    Returns:
        Variance, 0 for an empty completion; shape `batch`.

    Example:
        >>> tilted_variance(torch.tensor([[0.6, -0.5, 0.2, 0.1]]), torch.ones(1, 4, dtype=torch.bool), 0.0)
        tensor([0.1550])

    Reference: HölderPO, arXiv:2605.12058; the upper bound: Popoviciu (1935).
    """
    weights, deviations, mean, _ = _tilted(log_ratio, response_mask, exponent)
    return masked_sum(weights * (deviations - mean.unsqueeze(-1)).square(), response_mask)


def power_entropy(log_ratio: PerToken, response_mask: PerToken, exponent: float | PerCompletion) -> PerCompletion:
    r"""Return the entropy of the power weights, $H(W(p)) = L(p) - p \, \mu(p)$.

    Proposition. $dH/dp = -p \, \mathrm{Var}(p)$: the entropy is largest at $p = 0$, where it is $\log n$, and falls on
    both sides, strictly unless all ratios are equal.

    Args:
        log_ratio: log ratios $x$; shape `batch time`.
        response_mask: True on trained tokens, boolean; shape `batch time`.
        exponent: order $p$, a number or one per completion; shape `batch`.

    Returns:
        Entropy, 0 for an empty completion; shape `batch`; unit: nats.

    Example:
        >>> power_entropy(torch.tensor([[0.6, -0.5, 0.2, 0.1]]), torch.ones(1, 4, dtype=torch.bool), 2.0)
        tensor([1.1602])

    Reference: HölderPO, arXiv:2605.12058.
    """
    return weight_entropy(power_weights(log_ratio, response_mask, exponent))


def power_entropy_derivative(
    log_ratio: PerToken, response_mask: PerToken, exponent: float | PerCompletion
) -> PerCompletion:
    r"""Return the derivative of the entropy of the power weights in the exponent, $dH/dp = -p \, \mathrm{Var}(p)$.

    Proof. $H = L(p) - p \, L'(p)$, so $H' = -p \, L''(p)$.

    Args:
        log_ratio: log ratios $x$; shape `batch time`.
        response_mask: True on trained tokens, boolean; shape `batch time`.
        exponent: order $p$, a number or one per completion; shape `batch`.

    Returns:
        Derivative, of the opposite sign to $p$; shape `batch`; unit: nats per unit of exponent.

    Example:
        >>> power_entropy_derivative(torch.tensor([[0.6, -0.5, 0.2, 0.1]]), torch.ones(1, 4, dtype=torch.bool), 1.0)
        tensor([-0.1245])

    Reference: HölderPO, arXiv:2605.12058.
    """
    return -per_completion(exponent, log_ratio) * tilted_variance(log_ratio, response_mask, exponent)


def per_completion(exponent: float | Tensor, log_ratio: PerToken) -> PerCompletion:
    """Return one exponent per completion, in the precision and on the device of the log ratios; shape `batch`."""
    exponent = torch.as_tensor(exponent, dtype=log_ratio.dtype, device=log_ratio.device)
    return exponent.expand(log_ratio.shape[:-1])


def _tilted(
    log_ratio: PerToken, response_mask: PerToken, exponent: float | PerCompletion
) -> tuple[PerToken, PerToken, PerCompletion, PerCompletion]:
    """Return power weights, log ratios relative to the heaviest token, their weighted mean, and its log ratio."""
    order = per_completion(exponent, log_ratio)
    deviations, heaviest = _from_heaviest(log_ratio, response_mask, order)
    weights = masked_softmax(order.unsqueeze(-1) * deviations, response_mask)
    return weights, deviations, masked_sum(weights * deviations, response_mask), heaviest


def _from_heaviest(
    log_ratio: PerToken, response_mask: PerToken, exponent: PerCompletion
) -> tuple[PerToken, PerCompletion]:
    """Return log ratios relative to the token of largest weight, 0 on padding, and the log ratio of that token."""
    # The rounding error of a large `p * x` would spoil the weights. Relative to the heaviest token, the product is
    # small on every token that matters. The weights do not depend on this origin, and neither does their gradient.
    sign = torch.where(exponent < 0, -1, 1).to(log_ratio.dtype)
    heaviest = (sign * masked_max(sign.unsqueeze(-1) * log_ratio, response_mask)).detach()
    return torch.where(response_mask, log_ratio - heaviest.unsqueeze(-1), 0), heaviest
