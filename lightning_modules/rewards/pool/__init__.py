"""Rewards in processes that can be killed: what a verdict may cost is bounded, and a failure costs one verdict."""

from lightning_modules.rewards.pool.pool import RewardPool

__all__ = ["RewardPool"]
