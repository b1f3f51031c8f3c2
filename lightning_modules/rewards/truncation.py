"""What becomes of a completion that was cut off."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from aggregate_po import PerCompletion, PerToken

TruncationRule = Literal["score", "zero_reward", "mask"]


def truncated_rewards(rule: TruncationRule, components: Tensor, finished: PerCompletion) -> Tensor:
    """Return each single reward, 0 for completions that were cut off where the rule is "zero_reward".

    Args:
        rule: what becomes of a completion that was cut off.
        components: the single rewards; shape `batch component`.
        finished: False where the completion was cut off; shape `batch`.
    """
    return torch.where(finished.unsqueeze(-1), components, 0) if rule == "zero_reward" else components


def trained_tokens(rule: TruncationRule, completion_mask: PerToken, finished: PerCompletion) -> PerToken:
    """Return the tokens that are trained, none of a completion that was cut off where the rule is "mask"."""
    return completion_mask & finished.unsqueeze(-1) if rule == "mask" else completion_mask
