"""Sampling schemes, which select the scored groups of a rollout."""

from lightning_modules.data.schemes.base import SamplingScheme, Stage
from lightning_modules.data.schemes.curriculum import Curriculum
from lightning_modules.data.schemes.drafts import DraftRefinement
from lightning_modules.data.schemes.dynamic import DynamicSampling
from lightning_modules.data.schemes.pruning import DynamicPruning
from lightning_modules.data.schemes.replay import Replay

__all__ = ["Curriculum", "DraftRefinement", "DynamicPruning", "DynamicSampling", "Replay", "SamplingScheme", "Stage"]
