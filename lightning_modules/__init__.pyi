from lightning_modules.callbacks.checkpoints import AtomicCheckpointIO, RunCheckpoint
from lightning_modules.callbacks.progress import TrainingProgressBar
from lightning_modules.callbacks.ratio_deviation import RatioDeviationStop
from lightning_modules.callbacks.report import RunReport
from lightning_modules.data.module import RolloutDataModule
from lightning_modules.data.schemes import DynamicSampling, SamplingScheme
from lightning_modules.metrics import GradientWeightMetrics
from lightning_modules.model.layouts import PackedSequences, SequenceLayout, SharedPrompts
from lightning_modules.model.lora import LoRA
from lightning_modules.policy_module import PolicyModule
from lightning_modules.prompts import JSONLines, Parquet, PromptDataset
from lightning_modules.rewards import boxed_answer

__all__ = [
    "AtomicCheckpointIO",
    "DynamicSampling",
    "GradientWeightMetrics",
    "JSONLines",
    "LoRA",
    "PackedSequences",
    "Parquet",
    "PolicyModule",
    "PromptDataset",
    "RatioDeviationStop",
    "RolloutDataModule",
    "RunCheckpoint",
    "RunReport",
    "SamplingScheme",
    "SequenceLayout",
    "SharedPrompts",
    "TrainingProgressBar",
    "boxed_answer",
]
