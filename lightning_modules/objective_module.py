"""Lightning module that trains a policy of any kind with any objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from functools import partial
from pathlib import Path
from typing import Any

import torch
from lightning import LightningModule, Trainer
from lightning.pytorch.cli import LRSchedulerCallable, OptimizerCallable
from lightning.pytorch.trainer.states import TrainerFn
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from typing_extensions import override

from aggregate_po import PolicyObjective
from aggregate_po.arguments import require_positive
from lightning_modules.batch import Evaluation, evaluation_metrics
from lightning_modules.distributed import gathered_on_rank_zero, loss_scale, rank, summed_over_ranks
from lightning_modules.group_terms import UpdateGroups
from lightning_modules.loops import align_checkpoint
from lightning_modules.metrics import GradientWeightMetrics, UpdateMetrics
from lightning_modules.micro_batch import MicroBatch, current_rollout_metrics
from lightning_modules.micro_batch_observers import observe_micro_batch
from lightning_modules.model.sharding import full_tensor
from lightning_modules.model.trained import TrainedPolicy
from lightning_modules.optimizer import new_optimizer
from lightning_modules.ratio_check import RatioCheck
from lightning_modules.resumption import MODULE_STATE, Resumption, require_of_a_run
from lightning_modules.schedules import Decay, scheduled
from lightning_modules.seeding import random_state, restore_random_state
from lightning_modules.tally import Tally
from lightning_modules.validation import require_at_least


class ObjectiveModule(LightningModule, ABC):
    """Trains a policy with any `PolicyObjective`; `PolicyModule` and `FlowModule` say what the policy is.

    Subclass requirements: implement `configure_model`, which loads the policy and registers its model, and
    `try_export`.

    Args:
        policy: Policy to train, which `configure_model` loads.
        objective: Objective to maximize.
        learning_rate: Peak learning rate of AdamW, reached after the warm-up.
        warmup_steps: Number of optimizer steps of the linear learning-rate warm-up.
        weight_decay: Weight decay of AdamW.
        optimizer: Optimizer to use in place of AdamW.
        lr_scheduler: Learning-rate schedule, which begins after the warm-up; constant when None.
        max_skipped_steps: Number of consecutive skipped optimizer steps that stops the run, without those in which the
            loss still has a scale above 1.
        resume_with_changes: Whether a resume applies a configuration that is not the one of its checkpoint.

    Raises:
        TypeError: `objective` is not a `PolicyObjective`.
        ValueError: a number is out of its range.

    Attributes:
        held_out_metrics: metrics of the last validation by name.
    """

    def __init__(
        self,
        policy: TrainedPolicy,
        objective: PolicyObjective,
        learning_rate: float,
        warmup_steps: int,
        weight_decay: float,
        optimizer: OptimizerCallable | None,
        lr_scheduler: LRSchedulerCallable | None,
        max_skipped_steps: int,
        resume_with_changes: bool,
    ) -> None:
        super().__init__()
        if not isinstance(objective, PolicyObjective):
            raise TypeError(
                f"`objective` is {objective!r}; pass a PolicyObjective, such as aggregate_po.recipes.gmpo()."
            )
        require_positive(learning_rate=learning_rate)
        require_at_least(0, warmup_steps=warmup_steps, weight_decay=weight_decay)
        require_at_least(1, max_skipped_steps=max_skipped_steps)
        self.policy = policy
        if objective.needs_reference:
            policy.keep_reference()
        self.objective = objective
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.lr_scheduler = lr_scheduler
        self.max_skipped_steps = max_skipped_steps
        self._resumption = Resumption(resume_with_changes)
        self.strict_loading = policy.form is None  # otherwise checkpoints have the trained weights only
        self.weight_metrics = GradientWeightMetrics()
        self._update = UpdateMetrics()
        self._ratio_check = RatioCheck()
        self._held_out = Tally()  # over the batches of one validation
        self.held_out_metrics: dict[str, float] = {}  # of the last validation
        self._observed = torch.zeros(len(objective.penalties), dtype=torch.double)  # by the penalties, in an update
        self._skipped_steps = self._skipped_in_a_row = 0
        self._step_skipped = False
        self._random_state: dict[str, Any] | None = None
        self._decay: Decay | None = None  # until the end of the run

    @abstractmethod
    def try_export(self, folder: Path) -> None:
        """Try what the export of the model will need after the training; every rank must call it."""

    # Training

    @override
    def training_step(self, batch: MicroBatch, batch_idx: int) -> Tensor:
        """Return the negative objective of a micro-batch, scaled so that gradients add up over the update."""
        passed = self.policy.evaluate(batch)
        log_probs, entropy = passed.log_probs, passed.entropy
        inputs = self._groups.with_terms(passed, batch, self.policy.current, self.trainer)
        evaluated = self.objective.evaluate(log_probs, inputs)
        self.weight_metrics.update(evaluated.weights, log_probs.detach(), inputs, evaluated.exponents)
        self._update.update(evaluated.value, entropy, log_probs, inputs)
        self._ratio_check.update(log_probs, batch, batch_idx, self.trainer)
        self._observed = self._observed.to(evaluated.observed.device) + evaluated.observed.double()
        observe_micro_batch(self.trainer, batch, passed, evaluated)
        if batch.closes_update:
            self._log_update()
        return -loss_scale(self.trainer) * evaluated.value

    def _log_update(self) -> None:
        """Log the metrics of one optimizer step."""
        metrics = {**current_rollout_metrics(self.trainer), **self._update.compute(self.trainer)}
        shown: dict[str, Any] = {name: metrics.pop(name) for name in ("reward", "entropy") if name in metrics}
        self.log_dict(shown, prog_bar=True)
        self.log_dict({**metrics, **self.weight_metrics.compute(), **_objective_metrics(self.objective, self._groups)})
        self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        self.weight_metrics.reset()

    @override
    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Make an optimizer step and adapt the penalties, unless the gradient is not finite."""
        super().optimizer_step(*arguments, **options)
        observed, self._observed = self._observed, torch.zeros_like(self._observed)
        if len(observed) and not self._step_skipped:
            self.objective.adapt(summed_over_ranks(observed, self.trainer).tolist())

    @override
    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop a gradient that is not finite, so that the optimizer changes neither parameters nor its state."""
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        norm = full_tensor(torch.nn.utils.get_total_norm(gradients))
        finite = bool(torch.isfinite(norm))
        self._step_skipped = not finite
        self._skipped_steps += not finite
        # The first steps in 16-mixed overflow by design, until the scale of the loss has fallen far enough.
        failed = not finite and _loss_scale(self.trainer) <= 1
        self._skipped_in_a_row = self._skipped_in_a_row + 1 if failed else 0
        self.log("grad_norm", norm)
        self.log("skipped_steps", float(self._skipped_steps))
        _require_fewer_skipped(self._skipped_in_a_row, self.max_skipped_steps)
        if not finite:
            for parameter in self.parameters():
                parameter.grad = None

    @override
    def configure_optimizers(self) -> OptimizerLRScheduler:
        """Return the optimizer, with the linear learning-rate warm-up and the schedule after it."""
        optimizer = self.new_optimizer(fused=self.fuses_steps(self.trainer.precision))
        schedule = None if self.lr_scheduler is None else self.lr_scheduler(optimizer)
        self._decay = schedule if isinstance(schedule, Decay) else None
        return self._resumption.noted(optimizer, scheduled(optimizer, self.warmup_steps, schedule))

    def fuses_steps(self, precision: str) -> bool:
        """Return whether the optimizer updates all parameters in one kernel, in a precision of Lightning."""
        # Lightning clips no gradients of such an optimizer in mixed precision.
        return self.optimizer is None and "mixed" not in precision

    def new_optimizer(self, fused: bool = False) -> torch.optim.Optimizer:
        """Return AdamW, fused or not, or the given optimizer."""
        adamw = partial(torch.optim.AdamW, lr=self.learning_rate, weight_decay=self.weight_decay, fused=fused or None)
        return new_optimizer(list(self.parameters()), self.optimizer or adamw, self.policy.source)

    # Evaluation

    @override
    def on_validation_epoch_start(self) -> None:
        self._held_out = Tally()

    @override
    def validation_step(self, batch: Evaluation, batch_idx: int, dataloader_idx: int = 0) -> None:
        self._held_out += batch.tally

    @override
    def on_validation_epoch_end(self) -> None:
        """Log the mean reward and length of held-out completions, and each single reward if there are several."""
        self.held_out_metrics = evaluation_metrics(self._held_out.over_ranks(self.trainer))
        _log_held_out(self)

    # State

    @override
    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add counters, penalty states and the random state of each rank; drop frozen weights if the policy says so."""
        # Strategies that load checkpoints themselves, such as sharding ones, require all weights.
        if self.policy.form is not None and not self.trainer.strategy.restore_checkpoint_after_setup:
            trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
            checkpoint["state_dict"] = {name: w for name, w in checkpoint["state_dict"].items() if name in trained}
        checkpoint["configuration"] = self._resumption.configuration(self.trainer)
        checkpoint[MODULE_STATE] = {
            "lora": self.policy.form,
            "skipped_steps": self._skipped_steps,
            "skipped_in_a_row": self._skipped_in_a_row,
            "objective": self.objective.state_dict(),
            "trains_every_completion": self.objective.trains_every_completion,
            "rng": gathered_on_rank_zero(random_state()),
        }

    @override
    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Restore the state of the module; the random state follows in `on_train_start`, because set-up uses it.

        Raises:
            ValueError: the checkpoint was saved by another program, with another form of weights, or with another
                configuration.
        """
        require_of_a_run(checkpoint, self.trainer.ckpt_path)
        state = checkpoint[MODULE_STATE]
        self.policy.require_form(state["lora"])
        self._resumption.prepare(checkpoint, self.trainer)
        self._skipped_steps = state["skipped_steps"]
        self._skipped_in_a_row = state["skipped_in_a_row"]
        if not self._resumption.changes_objective:
            self.objective.load_state_dict(state["objective"])
        # With more ranks than before, the additional ranks keep their current random state.
        self._random_state = dict(enumerate(state["rng"])).get(rank())
        align_checkpoint(checkpoint, self.trainer)

    @override
    def on_train_start(self) -> None:
        """Restore the random state of a resumed run, and let a decay of the learning rate end with the run."""
        if self._decay is not None:
            self._decay.end_with(self.trainer.estimated_stepping_batches - self.warmup_steps)
        self._resumption.put_in_force(self.trainer)
        self._groups = UpdateGroups(self.objective)
        if self._random_state is not None:
            restore_random_state(self._random_state)
            self._random_state = None


def _loss_scale(trainer: Trainer) -> float:
    """Return the factor by which a scaler of the precision multiplies the loss, 1 without one."""
    scaler = getattr(trainer.precision_plugin, "scaler", None)
    return 1.0 if scaler is None else float(scaler.get_scale())


def _require_fewer_skipped(in_a_row: int, limit: int) -> None:
    if in_a_row >= limit:
        raise FloatingPointError(
            f"the gradient was not finite in {in_a_row} optimizer steps in a row; lower `learning_rate`, or inspect "
            "the rewards and log-probabilities of the last rollout."
        )


def _log_held_out(module: ObjectiveModule) -> None:
    metrics = {f"val/{name}": value for name, value in module.held_out_metrics.items()}
    fitting = module.trainer.state.fn == TrainerFn.FITTING
    # All ranks have the same values; without `sync_dist` Lightning would warn that they may differ.
    module.log_dict(metrics, logger=not fitting, sync_dist=True)
    if fitting and not module.trainer.sanity_checking:
        # Lightning would log them with the number of the step before.
        for logger in module.trainer.loggers:
            logger.log_metrics(metrics, module.trainer.global_step)


def _objective_metrics(objective: PolicyObjective, groups: UpdateGroups) -> dict[str, float]:
    """Return the adaptive coefficients of the penalties that this update uses, and the metrics of its groups."""
    states = enumerate(objective.state_dict()["penalties"])
    used = {f"penalty_{number}/{name}": float(value) for number, state in states for name, value in state.items()}
    return {**used, **groups.metrics}
