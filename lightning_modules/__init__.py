"""Training of language models with `aggregate_po`, on Lightning."""

from lightning_modules.checkpoints import AtomicCheckpointIO, RunCheckpoint
from lightning_modules.layouts import PackedSequences, SequenceLayout, SharedPrompts
from lightning_modules.lora import LoRA
from lightning_modules.metrics import GradientWeightMetrics
from lightning_modules.policy_module import PolicyModule
from lightning_modules.prompts import JSONLines, PromptDataset
from lightning_modules.ratio_deviation import RatioDeviationStop
from lightning_modules.report import RunReport
from lightning_modules.rewards import boxed_answer
from lightning_modules.rollout_data import RolloutDataModule

__all__ = [
    "AtomicCheckpointIO",
    "GradientWeightMetrics",
    "JSONLines",
    "LoRA",
    "PackedSequences",
    "PolicyModule",
    "PromptDataset",
    "RatioDeviationStop",
    "RolloutDataModule",
    "RunCheckpoint",
    "RunReport",
    "SequenceLayout",
    "SharedPrompts",
    "boxed_answer",
]
