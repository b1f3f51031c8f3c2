from .base import Reward
from .boxed import boxed_answer, last_boxed
from .mathematics import MathReward
from .pool import RewardPool, Verdict
from .reasoning_gym import ReasoningGymReward
from .truncation import TruncationRule, trained_tokens, truncated_rewards
from .weighted import WeightedRewards

__all__ = [
    "MathReward",
    "ReasoningGymReward",
    "Reward",
    "RewardPool",
    "TruncationRule",
    "Verdict",
    "WeightedRewards",
    "boxed_answer",
    "last_boxed",
    "trained_tokens",
    "truncated_rewards",
]
