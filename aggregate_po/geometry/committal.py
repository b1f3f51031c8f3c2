r"""Rate at which the power weights concentrate on the extreme tokens as the exponent grows.

The extreme tokens are those with the largest ratio for $p \ge 0$ and with the smallest for $p < 0$. There are $k$ of
them among $n$, and the *gap* is the distance in log ratio from them to the nearest other token.
"""

import torch

from aggregate_po.batch import PerCompletion, PerToken
from aggregate_po.geometry.power_family import per_completion, power_weights
from aggregate_po.masked import masked_max, masked_sum


def extreme_weight(log_ratio: PerToken, response_mask: PerToken, exponent: float | PerCompletion) -> PerCompletion:
    r"""Return the total weight of the extreme tokens of a completion, $\sum_{t \text{ extreme}} W_t(p)$.

    Proposition. It rises with $|p|$ from $k/n$ to 1: the power mean becomes the largest ratio as $p \to \infty$ and the
    smallest as $p \to -\infty$. Tokens that tie share it equally at every $p$.

    Args:
        log_ratio: log ratios $x$; shape `batch time`.
        response_mask: True on trained tokens, boolean; shape `batch time`.
        exponent: order $p$, a number or one per completion; shape `batch`.

    Returns:
        Weight from 0 to 1, 0 for an empty completion; shape `batch`.

    Example:
        >>> extreme_weight(torch.tensor([[0.6, -0.5, 0.2, 0.1]]), torch.ones(1, 4, dtype=torch.bool), 10.0)
        tensor([0.9755])

    Reference: HölderPO, arXiv:2605.12058.
    """
    extreme = _extreme_tokens(log_ratio, response_mask, exponent)
    return masked_sum(power_weights(log_ratio, response_mask, exponent), extreme)


def residual_weight(log_ratio: PerToken, response_mask: PerToken, exponent: float | PerCompletion) -> PerCompletion:
    r"""Return the total weight of all other tokens, $1 - {}$`extreme_weight`, accurate also where it is tiny.

    Proposition. It falls to zero exponentially in $|p|$, see `residual_weight_bound`, and is 0 where all ratios are
    equal.

    Args:
        log_ratio: log ratios $x$; shape `batch time`.
        response_mask: True on trained tokens, boolean; shape `batch time`.
        exponent: order $p$, a number or one per completion; shape `batch`.

    Returns:
        Weight from 0 to 1, 0 for an empty completion; shape `batch`.

    Example:
        >>> residual_weight(torch.tensor([[0.6, -0.5, 0.2, 0.1]]), torch.ones(1, 4, dtype=torch.bool), 10.0)
        tensor([0.0245])

    Reference: HölderPO, arXiv:2605.12058.
    """
    others = response_mask & ~_extreme_tokens(log_ratio, response_mask, exponent)
    return masked_sum(power_weights(log_ratio, response_mask, exponent), others)


def residual_weight_bound(
    log_ratio: PerToken, response_mask: PerToken, exponent: float | PerCompletion
) -> PerCompletion:
    r"""Return an upper bound on `residual_weight`, $B / (1 + B)$ with $B = \frac{n-k}{k} e^{-|p| \, \mathrm{gap}}$.

    Proof. Relative to an extreme token the others weigh at most $e^{-|p| \, \mathrm{gap}}$ each, so the residual over
    the extreme weight is at most $B$. It is below $B$, and exact at $p = 0$ and where all other ratios are equal.

    Args:
        log_ratio: log ratios $x$; shape `batch time`.
        response_mask: True on trained tokens, boolean; shape `batch time`.
        exponent: order $p$, a number or one per completion; shape `batch`.

    Returns:
        Bound from 0 to 1, 0 where all ratios are equal or there is no token; shape `batch`.

    Example:
        >>> residual_weight_bound(torch.tensor([[0.6, -0.5, 0.2, 0.1]]), torch.ones(1, 4, dtype=torch.bool), 10.0)
        tensor([0.0521])

    Reference: the limit: HölderPO, arXiv:2605.12058; the rate is derived here.
    """
    extreme, others, gap = _gap(log_ratio, response_mask, exponent)
    log_odds = others.log() - extreme.clamp(min=1).log() - per_completion(exponent, log_ratio).abs() * gap
    return torch.sigmoid(log_odds)


def committal_exponent(
    log_ratio: PerToken, response_mask: PerToken, residual: float | PerCompletion = 0.01
) -> PerCompletion:
    r"""Return an exponent beyond which all tokens except those of largest ratio have total weight at most `residual`.

    Proposition. $\text{residual\_weight}(p) \le \varepsilon$ for all
    $p \ge \bigl( \log \frac{n-k}{k} + \log \frac{1 - \varepsilon}{\varepsilon} \bigr) / \mathrm{gap}$: solve
    `residual_weight_bound` for $p$. It grows without bound as the two largest ratios approach each other. For the
    smallest ratios, pass `-log_ratio` and change the sign of the result.

    Args:
        log_ratio: log ratios $x$; shape `batch time`.
        response_mask: True on trained tokens, boolean; shape `batch time`.
        residual: weight $\varepsilon$ left to the other tokens, between 0 and 1; a number or one per completion.

    Returns:
        Exponent, 0 or more; 0 where all ratios are equal or there is no token; shape `batch`.

    Raises:
        ValueError: `residual` is not between 0 and 1.

    Example:
        >>> committal_exponent(torch.tensor([[0.6, -0.5, 0.2, 0.1]]), torch.ones(1, 4, dtype=torch.bool))
        tensor([14.2343])

    Reference: derived here.
    """
    allowed = per_completion(residual, log_ratio)
    if not ((allowed > 0) & (allowed < 1)).all():
        raise ValueError(f"`residual` is {residual}; pass a weight between 0 and 1, both excluded.")
    extreme, others, gap = _gap(log_ratio, response_mask, 1.0)
    odds = others.log() - extreme.clamp(min=1).log() - torch.logit(allowed)
    smallest = torch.finfo(log_ratio.dtype).tiny
    needed = (odds / gap.clamp(min=smallest)).clamp(min=0, max=torch.finfo(log_ratio.dtype).max)
    return torch.where(others > 0, needed, 0)


def _extreme_tokens(log_ratio: PerToken, response_mask: PerToken, exponent: float | PerCompletion) -> PerToken:
    """Return True on the tokens on which the weights concentrate; shape `batch time`."""
    signed = _signed(log_ratio, exponent)
    return response_mask & (signed == masked_max(signed, response_mask).unsqueeze(-1))


def _gap(
    log_ratio: PerToken, response_mask: PerToken, exponent: float | PerCompletion
) -> tuple[PerCompletion, PerCompletion, PerCompletion]:
    """Return the number of extreme tokens, the number of others, and the gap, which is 0 without others."""
    extreme = _extreme_tokens(log_ratio, response_mask, exponent)
    others = response_mask & ~extreme
    signed = _signed(log_ratio, exponent)
    distance = masked_max(signed, response_mask) - masked_max(signed, others)
    count = others.sum(dim=-1).to(log_ratio.dtype)
    return extreme.sum(dim=-1).to(log_ratio.dtype), count, torch.where(count > 0, distance, 0)


def _signed(log_ratio: PerToken, exponent: float | PerCompletion) -> PerToken:
    """Return the log ratios times the sign of the exponent, so that the extreme ones are the largest."""
    return torch.where(per_completion(exponent, log_ratio).unsqueeze(-1) < 0, -log_ratio, log_ratio)
