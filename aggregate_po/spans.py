"""Spans of tokens: sentences, steps or turns of a completion, numbered by an integer per token."""

import torch

from aggregate_po.shapes import PerToken


def checked_span_ids(response_mask: PerToken, span_ids: PerToken | None) -> PerToken | None:
    """Return the span of each response token, 0 on padding; None without spans.

    Args:
        response_mask: True on response tokens, boolean; shape `batch time`.
        span_ids: number of each token's span, arbitrary on padding; shape `batch time`.

    Raises:
        ValueError: the numbers are not integers, or the number of a response token is negative.
    """
    if span_ids is None:
        return None
    if span_ids.is_floating_point() or span_ids.is_complex() or span_ids.dtype == torch.bool:
        raise ValueError(f"`span_ids` has dtype {span_ids.dtype}; pass integers, 0 or more, such as torch.long.")
    filled = torch.where(response_mask, span_ids, 0)
    if (filled < 0).any():
        raise ValueError(
            f"`span_ids` has {filled.min().item()} on a response token; pass integers, 0 or more; "
            "a token outside all spans may have a number of its own."
        )
    return filled
