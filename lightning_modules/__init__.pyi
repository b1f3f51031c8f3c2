from .callbacks.aggregation_diagnostics import AggregationDiagnostics
from .callbacks.checkpoints import AtomicCheckpointIO, RunCheckpoint
from .callbacks.completion_rows import read_completions
from .callbacks.completions_file import CompletionsFile
from .callbacks.progress import TrainingProgressBar
from .callbacks.ratio_deviation import RatioDeviationStop
from .callbacks.report import RunReport
from .callbacks.token_weights_file import TokenWeightsFile
from .data.held_out import HeldOutSet
from .data.module import RolloutDataModule
from .data.observers import RolloutObserver
from .data.schemes import Curriculum, DraftRefinement, DynamicPruning, DynamicSampling, Replay, SamplingScheme
from .data.spans import Sentences, SpanRule, Turns
from .metrics import GradientWeightMetrics
from .micro_batch_observers import MicroBatchObserver
from .model.layouts import PackedGroups, PackedSequences, PaddedSequences, SequenceLayout, SharedPrompts
from .model.lora import LoRA
from .policy_module import PolicyModule
from .prompts import HubDataset, JSONLines, Mixture, Parquet, PromptDataset, ReasoningGym
from .rewards import (
    BatchReward,
    ConcurrentReward,
    MathReward,
    ReasoningGymReward,
    RemoteReward,
    RewardPool,
    boxed_answer,
)
from .schedules import CosineDecay, LinearDecay
from .token_rows import read_token_rows

__all__ = [
    "AggregationDiagnostics",
    "AtomicCheckpointIO",
    "BatchReward",
    "CompletionsFile",
    "ConcurrentReward",
    "CosineDecay",
    "Curriculum",
    "DraftRefinement",
    "DynamicPruning",
    "DynamicSampling",
    "GradientWeightMetrics",
    "HeldOutSet",
    "HubDataset",
    "JSONLines",
    "LinearDecay",
    "LoRA",
    "MathReward",
    "MicroBatchObserver",
    "Mixture",
    "PackedGroups",
    "PackedSequences",
    "PaddedSequences",
    "Parquet",
    "PolicyModule",
    "PromptDataset",
    "RatioDeviationStop",
    "ReasoningGym",
    "ReasoningGymReward",
    "RemoteReward",
    "Replay",
    "RewardPool",
    "RolloutDataModule",
    "RolloutObserver",
    "RunCheckpoint",
    "RunReport",
    "SamplingScheme",
    "Sentences",
    "SequenceLayout",
    "SharedPrompts",
    "SpanRule",
    "TokenWeightsFile",
    "TrainingProgressBar",
    "Turns",
    "boxed_answer",
    "read_completions",
    "read_token_rows",
]
