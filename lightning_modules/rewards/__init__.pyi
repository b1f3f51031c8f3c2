from .base import Reward
from .batch import BatchReward
from .boxed import boxed_answer, last_boxed
from .code import CodeReward, last_code_block
from .concurrent import AsyncReward, ConcurrentReward
from .exact import ExactMatch
from .form import FormatReward
from .mathematics import MathReward
from .numeric import NumericAnswer
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
    "CodeReward",
    "ConcurrentReward",
    "ExactMatch",
    "FailedVerdictRule",
    "FormatReward",
    "MathReward",
    "NumericAnswer",
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
    "last_code_block",
    "scored_completions",
    "trained_tokens",
    "truncated_rewards",
]
