"""Rollout engines: prompts in, completions with their log-probabilities out."""

from lightning_modules.rollouts.base import Completions, RolloutEngine, SamplingParameters
from lightning_modules.rollouts.transformers import TransformersEngine

__all__ = ["Completions", "RolloutEngine", "SamplingParameters", "TransformersEngine"]
