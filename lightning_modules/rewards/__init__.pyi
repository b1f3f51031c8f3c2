from .base import Reward
from .batch import BatchReward
from .boxed import boxed_answer, last_boxed
from .concurrent import AsyncReward, ConcurrentReward
from .mathematics import MathReward
from .pool import RewardPool
from .reasoning_gym import ReasoningGymReward
from .remote import RemoteReward
from .scores import FailedVerdictRule, Scores, scored_completions
from .truncation import TruncationRule, trained_tokens, truncated_rewards
from .verdict import Cause, Verdict
from .weighted import AnyReward, WeightedRewards

__all__ = [
    "AnyReward",
    "AsyncReward",
    "BatchReward",
    "Cause",
    "ConcurrentReward",
    "FailedVerdictRule",
    "MathReward",
    "ReasoningGymReward",
    "RemoteReward",
    "Reward",
    "RewardPool",
    "Scores",
    "TruncationRule",
    "Verdict",
    "WeightedRewards",
    "boxed_answer",
    "last_boxed",
    "scored_completions",
    "trained_tokens",
    "truncated_rewards",
]
