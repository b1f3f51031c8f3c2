"""The Lightning module: a language model, an objective, and nothing about which objective it is."""

from __future__ import annotations

from contextlib import AbstractContextManager
from typing import Any

import torch
from lightning import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor

from aggregate_po import PolicyObjective
from lightning_modules.batch import Evaluation, RolloutBatch, current_rollout_metrics, evaluation_metrics
from lightning_modules.distributed import collected_on_first_rank, loss_scale, rank, summed_over_ranks
from lightning_modules.metrics import GradientWeightMetrics, UpdateMetrics
from lightning_modules.model.layouts import SequenceLayout, SharedPrompts
from lightning_modules.model.lora import LoRA
from lightning_modules.model.policy import ModelSource, Policy
from lightning_modules.model.sharding import whole
from lightning_modules.seeding import random_state, restore_random_state
from lightning_modules.tally import Tally
from lightning_modules.validation import require_at_least


class PolicyModule(LightningModule):
    """Trains a causal language model with any `PolicyObjective`.

    Args:
        model_name: hub id or folder of a Hugging Face causal language model, or what makes one (`prepare`).
        objective: maximised.
        learning_rate: of AdamW, after the warm-up.
        warmup_steps: optimiser steps over which the learning rate rises, of whichever optimiser.
        weight_decay: of AdamW.
        optimizer: makes another optimiser from the parameters; it then has its own learning rate and weight decay.
        max_skipped_steps: an optimiser step whose gradient is not finite is skipped; this many in a row stop the run.
        layout: how prompts and completions are laid out for the forward pass.
        lora: trains adapters in place of the weights; their absence is the reference.
        attn_implementation: transformers' name of the attention, as flash_attention_2; transformers chooses when None.

    Raises:
        TypeError: `objective` is no `PolicyObjective`.
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
        max_skipped_steps: int = 3,
        layout: SequenceLayout = SharedPrompts(),
        lora: LoRA | None = None,
        attn_implementation: str | None = None,
    ) -> None:
        super().__init__()
        if not isinstance(objective, PolicyObjective):
            raise TypeError(
                f"`objective` is {objective!r}; pass a PolicyObjective, such as aggregate_po.recipes.gmpo()."
            )
        if not learning_rate > 0:
            raise ValueError(f"`learning_rate` is {learning_rate}; pass a positive number.")
        require_at_least(0, warmup_steps=warmup_steps, weight_decay=weight_decay)
        require_at_least(1, max_skipped_steps=max_skipped_steps)
        self.policy = Policy(model_name, layout, lora, attn_implementation)
        if objective.needs_reference:
            self.policy.keep_reference()
        self.objective = objective
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.max_skipped_steps = max_skipped_steps
        self.strict_loading = lora is None  # a checkpoint of adapters has no other weights
        self.weight_metrics = GradientWeightMetrics()
        self._update = UpdateMetrics()
        self._held_out = Tally()  # over the evaluations of a validation
        self._observed = torch.zeros(len(objective.penalties), dtype=torch.double)  # by the penalties, over the update
        self._skipped_steps = 0
        self._skipped_in_a_row = 0
        self._random_state: dict[str, Any] | None = None

    # Loading

    def prepare_data(self) -> None:
        """Make the model where it does not exist yet; one process per node does this."""
        if not isinstance(self.policy.source, str):
            self.policy.source.prepare()

    def configure_model(self) -> None:
        """Load the policy, sharded where the strategy says so.

        Raises:
            ValueError: the strategy asks for tensor parallelism, which the model or adapters do not allow.
        """
        if self.policy.is_loaded:
            return
        # Registered here, so that it is trained and saved, under names that begin with `model.`.
        self.model = self.policy.load(self.device_mesh, self._gathered_dtype, self._forward_context)

    def _gathered_dtype(self) -> torch.dtype | None:
        return torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None

    def _forward_context(self) -> AbstractContextManager[Any]:
        return self.trainer.precision_plugin.forward_context()

    # Training

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> Tensor:
        """Return the negative objective of a micro-batch, scaled so that the gradients of an update add up."""
        log_probs, entropy = self.policy.log_probs_and_entropy(batch)
        evaluated = self.objective.evaluate(log_probs, batch.policy)
        self.weight_metrics.update(evaluated.weights, log_probs.detach(), batch.policy)
        self._update.update(evaluated.value, entropy, log_probs, batch.policy)
        self._observed += evaluated.observed.double().cpu()
        if batch.closes_update:
            self._log_update()
        return -loss_scale(self.trainer) * evaluated.value

    def _log_update(self) -> None:
        """Log the metrics of one optimizer step."""
        metrics = {**current_rollout_metrics(self.trainer), **self._update.compute(self.trainer)}
        shown: dict[str, Any] = {name: metrics.pop(name) for name in ("reward", "entropy") if name in metrics}
        self.log_dict(shown, prog_bar=True)
        self.log_dict({**metrics, **self.weight_metrics.compute(), **self._penalty_states()})
        self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        self.weight_metrics.reset()

    def _penalty_states(self) -> dict[str, Any]:
        """What the penalties have adapted to so far, and with which the gradient of this update is made."""
        states = enumerate(self.objective.state_dict()["penalties"])
        return {f"penalty_{number}/{name}": float(value) for number, state in states for name, value in state.items()}

    def optimizer_step(self, *arguments: Any, **options: Any) -> None:
        """Step, and let the penalties adapt to the update; neither happens where the gradient is not finite."""
        super().optimizer_step(*arguments, **options)
        observed, self._observed = self._observed, torch.zeros_like(self._observed)
        if len(observed) and not self._skipped_in_a_row:
            self.objective.adapt(summed_over_ranks(observed, self.trainer).tolist())

    def on_before_optimizer_step(self, optimizer: torch.optim.Optimizer) -> None:
        """Drop a gradient that is not finite, so that the optimiser leaves parameters and its state alone."""
        gradients = [parameter.grad for parameter in self.parameters() if parameter.grad is not None]
        norm = whole(torch.nn.utils.get_total_norm(gradients))
        finite = bool(torch.isfinite(norm))
        self._skipped_steps += not finite
        self._skipped_in_a_row = 0 if finite else self._skipped_in_a_row + 1
        self.log("grad_norm", norm)
        self.log("skipped_steps", float(self._skipped_steps))
        if self._skipped_in_a_row >= self.max_skipped_steps:
            raise FloatingPointError(
                f"the gradient was not finite in {self._skipped_in_a_row} optimiser steps in a row; lower "
                "`learning_rate`, or look at the rewards and log-probabilities of the last rollout."
            )
        if not finite:
            for parameter in self.parameters():
                parameter.grad = None

    def configure_optimizers(self) -> OptimizerLRScheduler:
        """AdamW, or the optimiser that was asked for, with a linear warm-up."""
        # Frozen ones, too: reading a checkpoint into shards, Lightning takes an optimiser's parameters for the model's.
        parameters = list(self.parameters())
        if not any(parameter.requires_grad for parameter in parameters):
            raise ValueError(
                f"`model_name` {self.policy.source!r} has frozen weights alone, as an adapter; merge it first."
            )
        if self.optimizer is not None:
            optimizer = self.optimizer(parameters)
        else:
            optimizer = torch.optim.AdamW(parameters, lr=self.learning_rate, weight_decay=self.weight_decay)
        for parameter in [one for one in optimizer.state if not one.requires_grad]:
            del optimizer.state[parameter]  # which some optimisers make at once
        warmup = torch.optim.lr_scheduler.LambdaLR(
            optimizer, lambda step: min((step + 1) / max(self.warmup_steps, 1), 1.0)
        )
        return {"optimizer": optimizer, "lr_scheduler": {"scheduler": warmup, "interval": "step"}}

    # Evaluation

    def on_validation_epoch_start(self) -> None:
        """Begin a new tally of held-out completions."""
        self._held_out = Tally()

    def validation_step(self, batch: Evaluation, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Count held-out completions of this rank."""
        self._held_out += batch.tally

    def on_validation_epoch_end(self) -> None:
        """Log the mean reward of held-out completions, each reward where there are several, and the length."""
        metrics = evaluation_metrics(self._held_out.over_ranks(self.trainer))
        self.log_dict({f"val/{name}": value for name, value in metrics.items()})

    # State

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the module counts, and each rank's global random state; leave out what `model_name` gives again.

        A strategy that reads checkpoints by itself, as one that shards does, wants all weights.
        """
        if self.policy.lora is not None and not self.trainer.strategy.restore_checkpoint_after_setup:
            trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
            checkpoint["state_dict"] = {name: w for name, w in checkpoint["state_dict"].items() if name in trained}
        checkpoint["policy_module"] = {
            "lora": self._adapter_form,
            "skipped_steps": self._skipped_steps,
            "skipped_in_a_row": self._skipped_in_a_row,
            "objective": self.objective.state_dict(),
            "rng": collected_on_first_rank(random_state()),
            "accumulate_grad_batches": self.trainer.accumulate_grad_batches,
        }

    def on_load_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Take it back; the random state when training begins, because set-up draws from it.

        Raises:
            ValueError: it was made with other adapters, or with none.
        """
        state = checkpoint["policy_module"]
        if state["lora"] != self._adapter_form:
            raise ValueError(
                f"`lora` is {self.policy.lora}, but the checkpoint was made with {state['lora']}; pass that."
            )
        self._skipped_steps = state["skipped_steps"]
        self._skipped_in_a_row = state["skipped_in_a_row"]
        self.objective.load_state_dict(state["objective"])
        # Of more ranks than there were, the further ones go on with the state that they have.
        self._random_state = dict(enumerate(state["rng"])).get(rank())
        loop = checkpoint["loops"]["fit_loop"]
        pieces = state["accumulate_grad_batches"], self.trainer.accumulate_grad_batches
        loop["epoch_loop.batch_progress"] = _recounted(loop["epoch_loop.batch_progress"], *pieces)

    @property
    def _adapter_form(self) -> dict[str, Any] | None:
        return None if self.policy.lora is None else self.policy.lora.form

    def on_train_start(self) -> None:
        """Restore the random state of a resumed run."""
        if self._random_state is not None:
            restore_random_state(self._random_state)
            self._random_state = None


def _recounted(progress: dict[str, Any], saved: int, now: int) -> dict[str, Any]:
    """Return Lightning's count of the epoch's micro-batches, from `saved` to `now` of them to an optimizer step."""
    current = progress["current"]
    ready = current["ready"] // saved * now
    # A checkpoint is written before the micro-batch at hand counts as completed.
    return {**progress, "current": {name: ready - current["ready"] + count for name, count in current.items()}}
