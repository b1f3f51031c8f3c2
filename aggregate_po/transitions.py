"""Gaussian transitions: divergences and standard deviations of steps, as a batch receives them."""

import torch

from aggregate_po.bounds import bounded, working_precision
from aggregate_po.shapes import PerToken

LARGEST_SCALE = 1e6  # times a log ratio, still far from overflow in single precision


def checked_scale(response_mask: PerToken, scale: PerToken | None) -> PerToken | None:
    """Return standard deviations, 1 on padding, detached and in at least float32; None without.

    Args:
        response_mask: True on trained tokens, boolean; shape `batch time`.
        scale: standard deviation of each token's transition, arbitrary on padding; shape `batch time`.

    Raises:
        ValueError: the standard deviation of a trained token is not positive, not finite or larger than a million.
    """
    if scale is None:
        return None
    filled = torch.where(response_mask, scale.detach(), 1)
    filled = working_precision(filled)
    wrong = ~((filled > 0) & (filled <= LARGEST_SCALE))
    if not wrong.is_meta and wrong.any():  # tensors without data have nothing to check
        raise ValueError(
            f"`scale` has {filled[wrong][0].item()} on a trained token; pass the standard deviation of its transition, "
            f"above 0 and at most {LARGEST_SCALE:g}, and leave steps without noise out of `response_mask`."
        )
    return filled


def checked_divergence(name: str, response_mask: PerToken, divergence: PerToken | None) -> PerToken | None:
    """Return divergences, 0 on padding, with their graph; None without.

    Args:
        name: argument, for the error.
        response_mask: True on trained tokens, boolean; shape `batch time`.
        divergence: divergence of each token's transitions, arbitrary on padding; shape `batch time`.

    Raises:
        ValueError: the divergence of a trained token is negative.
    """
    if divergence is None:
        return None
    filled = torch.where(response_mask, divergence, 0)
    if not filled.is_meta and (filled < 0).any():
        raise ValueError(
            f"`{name}` has {filled.min().item()} on a trained token; pass the divergence between the two transitions, "
            "0 or more, not the mean of the log ratio, which is minus the divergence."
        )
    return filled


def bounded_divergence(divergence: PerToken | None, within: PerToken, dtype: torch.dtype) -> PerToken | None:
    """Return divergences up to the bound of log ratios; where a log ratio is outside, a constant as it is.

    Args:
        divergence: divergences, with their graph; None without; shape `batch time`.
        within: True where the log ratio is inside its bound; shape `batch time`.
        dtype: precision of the result.
    """
    if divergence is None:
        return None
    values = bounded(divergence.to(dtype))
    return torch.where(within, values, values.detach())
