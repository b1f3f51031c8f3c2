"""Measures of the distribution of a completion's gradient over its tokens."""

import torch

from aggregate_po.batch import PerCompletion, PerToken
from aggregate_po.masked import masked_max, masked_mean, masked_sum


def effective_sample_size(weights: PerToken) -> PerCompletion:
    r"""Return the number of tokens that effectively share the gradient.

    $\mathrm{ESS} = (\sum_t |w_t|)^2 / \sum_t w_t^2$, between 1 and the completion length.

    Args:
        weights: gradient weights, zero on padding; shape `batch time`; any scale.

    Returns:
        Effective token count, 0 for a completion without weight, in float32 for weights in half precision; shape
        `batch`; unit: tokens.

    Example:
        >>> effective_sample_size(torch.tensor([[0.5, 0.5, 0.0]]))
        tensor([2.])

    Reference: Kong (1992); its use for PMPO: arXiv:2601.22521.
    """
    shares = _shares(weights)
    squares = shares.square().sum(dim=-1)
    return torch.where(squares == 0, 0, 1 / squares.clamp(min=torch.finfo(squares.dtype).tiny))


def weight_entropy(weights: PerToken) -> PerCompletion:
    r"""Return the entropy of the normalized gradient weights, $-\sum_t s_t \log s_t$ with $s_t = |w_t| / \sum_k |w_k|$.

    Args:
        weights: gradient weights, zero on padding; shape `batch time`; any scale.

    Returns:
        Entropy, from 0 (one token) to the log of the length (equal weights), in float32 for weights in half precision;
        shape `batch`; unit: nats.

    Example:
        >>> weight_entropy(torch.tensor([[0.5, 0.5, 0.0]]))
        tensor([0.6931])

    Reference: its maximum at the geometric mean: HölderPO, arXiv:2605.12058.
    """
    return torch.special.entr(_shares(weights)).sum(dim=-1)


def gated_fraction(gate: PerToken, response_mask: PerToken) -> PerCompletion:
    """Return the fraction of a completion's tokens whose gate is zero.

    Args:
        gate: derivative of the token transform, `GradientWeights.gate`; shape `batch time`.
        response_mask: True on trained tokens; shape `batch time`.

    Returns:
        Fraction from 0 to 1, 0 for an empty completion; shape `batch`.

    Example:
        >>> gated_fraction(torch.tensor([[1.0, 0.0, 1.0, 1.0]]), torch.ones(1, 4))
        tensor([0.2500])
    """
    return masked_mean((gate == 0).to(gate.dtype), response_mask.bool())


def _shares(weights: PerToken) -> PerToken:
    """Return absolute weights that sum to one, or to zero; scaled first to avoid under- and overflow of squares.

    In half precision the square of a share of a thousandth would be 0.
    """
    absolute = weights.abs().to(torch.promote_types(weights.dtype, torch.float32))
    smallest = torch.finfo(absolute.dtype).tiny
    largest = masked_max(absolute, torch.ones_like(absolute, dtype=torch.bool)).unsqueeze(-1)
    absolute = absolute / largest.clamp(min=smallest)
    total = masked_sum(absolute, absolute > 0).unsqueeze(-1)
    return absolute / total.clamp(min=smallest)
