"""Weights of the tokens in a mean, as a batch receives them."""

import torch
from torch import Tensor

from aggregate_po.shapes import PerToken

LARGEST_WEIGHT = 1e6  # times a log ratio and a long completion, still far from overflow in single precision


def checked_weights(response_mask: PerToken, mean_weights: PerToken | None) -> tuple[PerToken, PerToken | None]:
    """Return the mask of the tokens that count, and their weights: 0 on padding, detached, in at least float32.

    Args:
        response_mask: True on response tokens, boolean; shape `batch time`.
        mean_weights: weights of the tokens, arbitrary on padding; boolean weights narrow the mask, which every part
            reads; None counts every token once; shape `batch time`.

    Raises:
        ValueError: the weight of a response token is negative, not finite or larger than a million.
    """
    if mean_weights is None:
        return response_mask, None
    if mean_weights.dtype == torch.bool:
        return response_mask & mean_weights, None
    weights = torch.where(response_mask, mean_weights.detach(), 0)
    weights = weights if weights.dtype == torch.float64 else weights.float()
    wrong = ~((weights >= 0) & (weights <= LARGEST_WEIGHT))
    if wrong.any():
        raise ValueError(
            f"`mean_weights` has {_first(weights, wrong)} on a response token; pass weights from 0 to "
            f"{LARGEST_WEIGHT:g}, in any unit, since a mean does not depend on their scale."
        )
    return response_mask & (weights > 0), weights


def _first(values: Tensor, chosen: Tensor) -> float:
    return values[chosen][0].item()
