"""Linear recurrences along the tokens of a completion, without a loop over positions."""

import torch
from torch.nn.functional import pad

from aggregate_po.shapes import PerToken


def linear_recurrence(decay: PerToken, inputs: PerToken) -> PerToken:
    r"""Return $y_t = a_t y_{t-1} + b_t$ with $y_0 = 0$, along the last dimension.

    Neighboring steps are joined into one, level by level (Blelloch, 1990): the work is proportional to the number of
    tokens, in about $\log_2$ of it levels. Only products of decays are formed, so with decays from 0 to 1 nothing
    overflows or is divided by a small number.

    Args:
        decay: Factor $a_t$ of the previous value, from 0 to 1; the first has no effect; shape `batch time`.
        inputs: What each step adds, $b_t$; shape `batch time`.

    Example:
        >>> linear_recurrence(torch.full((4,), 0.5), torch.tensor([8.0, 0.0, 0.0, 1.0]))
        tensor([8., 4., 2., 2.])
    """
    if inputs.shape[-1] < 2:
        return inputs
    pairs = inputs.shape[-1] // 2
    first, first_decay = inputs[..., ::2], decay[..., ::2]
    second, second_decay = inputs[..., 1::2], decay[..., 1::2]
    joined = second + second_decay * first[..., :pairs]
    after_pairs = linear_recurrence(second_decay * first_decay[..., :pairs], joined)
    result = torch.empty_like(inputs)
    result[..., 1::2] = after_pairs
    result[..., ::2] = first + first_decay * pad(after_pairs, (1, 0))[..., : first.shape[-1]]
    return result
