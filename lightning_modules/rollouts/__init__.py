"""Rollout engines, which generate completions with log-probabilities from prompts."""

from lightning_modules.rollouts.base import Completions, RolloutEngine, SamplingParameters
from lightning_modules.rollouts.servers.engine import VLLMServers
from lightning_modules.rollouts.servers.weight_channels import SharedFolder
from lightning_modules.rollouts.transformers import TransformersEngine
from lightning_modules.rollouts.vllm import VLLM

__all__ = [
    "VLLM",
    "Completions",
    "RolloutEngine",
    "SamplingParameters",
    "SharedFolder",
    "TransformersEngine",
    "VLLMServers",
]
