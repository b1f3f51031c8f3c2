"""Verifiable rewards: functions of a completion and its example."""

from lightning_modules.rewards.base import Reward
from lightning_modules.rewards.boxed import boxed_answer, last_boxed
from lightning_modules.rewards.truncation import TruncationRule, trained_tokens, truncated_rewards
from lightning_modules.rewards.weighted import WeightedRewards

__all__ = [
    "Reward",
    "TruncationRule",
    "WeightedRewards",
    "boxed_answer",
    "last_boxed",
    "trained_tokens",
    "truncated_rewards",
]
