"""Training of language models with `aggregate_po`, on Lightning.

A name is imported when it is first used, so that the command line can answer a signal before it has loaded torch.
"""

import importlib
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
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
    from lightning_modules.prompts import JSONLines, PromptDataset
    from lightning_modules.rewards import boxed_answer

__all__ = [
    "AtomicCheckpointIO",
    "DynamicSampling",
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
    "SamplingScheme",
    "SequenceLayout",
    "SharedPrompts",
    "TrainingProgressBar",
    "boxed_answer",
]

_MODULES = {
    "AtomicCheckpointIO": "lightning_modules.callbacks.checkpoints",
    "DynamicSampling": "lightning_modules.data.schemes",
    "GradientWeightMetrics": "lightning_modules.metrics",
    "JSONLines": "lightning_modules.prompts",
    "LoRA": "lightning_modules.model.lora",
    "PackedSequences": "lightning_modules.model.layouts",
    "PolicyModule": "lightning_modules.policy_module",
    "PromptDataset": "lightning_modules.prompts",
    "RatioDeviationStop": "lightning_modules.callbacks.ratio_deviation",
    "RolloutDataModule": "lightning_modules.data.module",
    "RunCheckpoint": "lightning_modules.callbacks.checkpoints",
    "RunReport": "lightning_modules.callbacks.report",
    "SamplingScheme": "lightning_modules.data.schemes",
    "SequenceLayout": "lightning_modules.model.layouts",
    "SharedPrompts": "lightning_modules.model.layouts",
    "TrainingProgressBar": "lightning_modules.callbacks.progress",
    "boxed_answer": "lightning_modules.rewards",
}


def __getattr__(name: str) -> Any:
    if name not in _MODULES:
        raise AttributeError(f"module {__name__!r} has no attribute {name!r}")
    return getattr(importlib.import_module(_MODULES[name]), name)


def __dir__() -> list[str]:
    return sorted({*globals(), *__all__})
