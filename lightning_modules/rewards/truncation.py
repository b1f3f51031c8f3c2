"""Rules for truncated completions, which reached the maximum length before a stop token."""

from __future__ import annotations

from typing import Literal

import torch
from torch import Tensor

from aggregate_po import PerCompletion, PerToken

TruncationRule = Literal["score", "zero_reward", "mask"]


def truncated_rewards(rule: TruncationRule, components: Tensor, finished: PerCompletion) -> Tensor:
    """Return the single rewards; under the rule "zero_reward" those of truncated completions are 0.

    Args:
        rule: rule for truncated completions.
        components: single rewards of each completion; shape `batch component`.
        finished: False for truncated completions; shape `batch`.
    """
    return torch.where(finished.unsqueeze(-1), components, 0) if rule == "zero_reward" else components


def trained_tokens(rule: TruncationRule, completion_mask: PerToken, finished: PerCompletion) -> PerToken:
    """Return the mask of trained tokens; under the rule "mask" it is False for truncated completions."""
    return completion_mask & finished.unsqueeze(-1) if rule == "mask" else completion_mask
