"""Reward for code that passes tests, which run in a process of their own."""

from lightning_modules.rewards.code.reward import CodeReward, last_code_block

__all__ = ["CodeReward", "last_code_block"]
