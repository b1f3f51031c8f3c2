"""Lightning module that trains a language model with any objective."""

from __future__ import annotations

from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

import torch
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from typing_extensions import override

from aggregate_po import PolicyObjective
from lightning_modules.configuration import described_arguments
from lightning_modules.model.export import try_export
from lightning_modules.model.layouts import SequenceLayout
from lightning_modules.model.lora import LoRA
from lightning_modules.model.policy import ModelSource, Policy
from lightning_modules.objective_module import ObjectiveModule


class PolicyModule(ObjectiveModule):
    """Trains a causal language model with any `PolicyObjective`.

    Args:
        model_name: Hub id or folder of a Hugging Face causal language model, or a `ModelSource` that builds one.
        objective: Objective to maximize, such as `aggregate_po.recipes.gmpo`.
        learning_rate: Peak learning rate of AdamW, reached after the warm-up.
        warmup_steps: Number of optimizer steps of the linear learning-rate warm-up; it applies to `optimizer`, too.
        weight_decay: Weight decay of AdamW.
        optimizer: Optimizer to use in place of AdamW; it has its own learning rate and weight decay.
        lr_scheduler: Learning-rate schedule, which begins after the warm-up; constant when None. `CosineDecay` and
            `LinearDecay` decay until the end of the run.
        max_skipped_steps: Number of consecutive skipped optimizer steps that stops the run; a step is skipped if its
            gradient is not finite. Under 16-mixed, steps in which the scale of the loss still falls do not count.
        layout: Layout of prompts and completions in the forward pass: `PackedGroups`, `SharedPrompts`,
            `PaddedSequences` or `PackedSequences`. A layout that is wrong for the model is refused when training
            starts. When None, the first that serves of the first three.
        lora: LoRA adapters to train while the weights of the model are frozen; the model without them is the reference.
        attn_implementation: Name of the attention implementation in transformers, such as flash_attention_2;
            transformers chooses one when None.
        resume_with_changes: Whether a resume applies a configuration that is not the one of its checkpoint; otherwise
            it is refused, and the error names each difference.

    Raises:
        TypeError: `objective` is not a `PolicyObjective`.
        ValueError: a number is out of its range.

    Weights are loaded in float32; `Trainer(precision="bf16-mixed")` computes in bfloat16. Remote code is never run.
    """

    def __init__(
        self,
        model_name: str | ModelSource,
        objective: PolicyObjective,
        learning_rate: float = 1e-6,
        warmup_steps: int = 10,
        weight_decay: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        max_skipped_steps: int = 3,
        layout: SequenceLayout | None = None,
        lora: LoRA | None = None,
        attn_implementation: str | None = None,
        resume_with_changes: bool = False,
    ) -> None:
        configuration = described_arguments(locals())
        policy = Policy(model_name, layout, lora, attn_implementation)
        optimization = learning_rate, warmup_steps, weight_decay, optimizer, lr_scheduler, max_skipped_steps
        super().__init__(policy, objective, *optimization, resume_with_changes)
        self.policy: Policy = policy
        self.configuration = configuration

    # Loading

    @override
    def prepare_data(self) -> None:
        """Build the model of a `ModelSource` unless it exists, in one process per node."""
        if not isinstance(self.policy.source, str):
            self.policy.source.prepare()

    @override
    def configure_model(self) -> None:
        """Load the policy, sharded over the device mesh of the strategy.

        Raises:
            ValueError: the strategy asks for tensor parallelism, which the model or the adapters do not support.
        """
        if self.policy.is_loaded:
            return
        # Registering the model makes Lightning train and save it, under names that begin with `model.`.
        self.model = self.policy.load(self.device_mesh, self._gathered_dtype, self._forward_context)

    def _gathered_dtype(self) -> torch.dtype | None:
        return torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None

    def _forward_context(self) -> AbstractContextManager[Any]:
        return self.trainer.precision_plugin.forward_context()

    @override
    def try_export(self, folder: Path) -> None:
        try_export(self.policy, folder)
