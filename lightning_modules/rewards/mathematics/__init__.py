"""Rewards for mathematics: the final answer of a completion, compared with the reference answer."""

from lightning_modules.rewards.mathematics.extraction import AnswerForm, final_answer
from lightning_modules.rewards.mathematics.grading import same_answer
from lightning_modules.rewards.mathematics.numbers import plain_number
from lightning_modules.rewards.mathematics.reward import MathReward

__all__ = ["AnswerForm", "MathReward", "final_answer", "plain_number", "same_answer"]
