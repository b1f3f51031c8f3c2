"""Lightning module that trains a flow-matching model with any objective."""

from __future__ import annotations

import shutil
from contextlib import AbstractContextManager
from pathlib import Path
from typing import Any

from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from typing_extensions import override

from aggregate_po import PolicyObjective
from lightning_modules.configuration import described_arguments
from lightning_modules.distributed import rank
from lightning_modules.flow.model import FlowModelSource
from lightning_modules.flow.policy import FlowPolicy
from lightning_modules.objective_module import ObjectiveModule


class FlowModule(ObjectiveModule):
    """Trains a flow-matching model with any `PolicyObjective`, each denoising step a token.

    Args:
        model: Makes the flow-matching model, such as `lightning_modules.flow.mixture.MixtureWarmStart`.
        objective: Objective to maximize, such as `aggregate_po.recipes.flow_grpo`.
        learning_rate: Peak learning rate of AdamW, reached after the warm-up.
        warmup_steps: Number of optimizer steps of the linear learning-rate warm-up; it applies to `optimizer`, too.
        weight_decay: Weight decay of AdamW.
        optimizer: Optimizer to use in place of AdamW; it has its own learning rate and weight decay.
        lr_scheduler: Learning-rate schedule, which begins after the warm-up; constant when None.
        max_skipped_steps: Number of consecutive skipped optimizer steps that stops the run; a step is skipped if its
            gradient is not finite. Under 16-mixed, steps in which the scale of the loss still falls do not count.
        resume_with_changes: Whether a resume applies a configuration that is not the one of its checkpoint; otherwise
            it is refused, and the error names each difference.

    Raises:
        TypeError: `model` is not a `FlowModelSource`, or `objective` is not a `PolicyObjective`.
        ValueError: a number is out of its range.
    """

    def __init__(
        self,
        model: FlowModelSource,
        objective: PolicyObjective,
        learning_rate: float = 1e-4,
        warmup_steps: int = 0,
        weight_decay: float = 0.0,
        optimizer: OptimizerCallable | None = None,
        lr_scheduler: LRSchedulerCallable | None = None,
        max_skipped_steps: int = 3,
        resume_with_changes: bool = False,
    ) -> None:
        configuration = described_arguments(locals())
        if not isinstance(model, FlowModelSource):
            raise TypeError(
                f"`model` is {model!r}; pass an instance of a subclass of lightning_modules.flow.FlowModelSource."
            )
        policy = FlowPolicy(model)
        optimization = learning_rate, warmup_steps, weight_decay, optimizer, lr_scheduler, max_skipped_steps
        super().__init__(policy, objective, *optimization, resume_with_changes)
        self.policy: FlowPolicy = policy
        self.configuration = configuration

    @override
    def prepare_data(self) -> None:
        """Make what the model needs unless it exists, in one process per node."""
        self.policy.source.prepare()

    @override
    def configure_model(self) -> None:
        """Load the policy.

        Raises:
            ValueError: the strategy shards models, which is not supported for flow-matching models.
        """
        if self.policy.is_loaded:
            return
        if self.device_mesh is not None:
            raise ValueError("`strategy` shards the model, which FlowModule does not support; pass `strategy: ddp`.")
        # Registering the model makes Lightning train and save it, under names that begin with `model.`.
        self.model = self.policy.load(self._forward_context)

    def _forward_context(self) -> AbstractContextManager[Any]:
        return self.trainer.precision_plugin.forward_context()

    @override
    def try_export(self, folder: Path) -> None:
        if rank() != 0:
            return
        scratch = folder / ".trial"
        shutil.rmtree(scratch, ignore_errors=True)
        try:
            self.policy.save_pretrained(scratch)
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
