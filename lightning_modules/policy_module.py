"""The Lightning module: a language model, an objective, and nothing about which objective it is."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from lightning import LightningModule
from lightning.pytorch.cli import OptimizerCallable
from lightning.pytorch.utilities.types import OptimizerLRScheduler
from torch import Tensor
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from aggregate_po import PerToken, PolicyObjective, masked_sum
from lightning_modules.batch import RolloutBatch
from lightning_modules.data.evaluation import Evaluation
from lightning_modules.data.resume import recounted
from lightning_modules.distributed import collected_on_first_rank, loss_scale, rank, summed_over_ranks
from lightning_modules.metrics import GradientWeightMetrics
from lightning_modules.model.layouts import SequenceLayout, SharedPrompts
from lightning_modules.model.log_probs import log_probs_and_entropy
from lightning_modules.model.lora import LoRA, without_adapters
from lightning_modules.model.sharding import is_sharded, shard, whole, whole_weights
from lightning_modules.model.tensor_parallel import divide
from lightning_modules.seeding import random_state, restore_random_state


class ModelSource(Protocol):
    """Makes a model that does not exist yet."""

    def prepare(self) -> str:
        """Folder that `from_pretrained` loads; later calls find what the first one made."""


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
        if isinstance(model_name, str) and _looks_like_a_folder(model_name) and not Path(model_name).is_dir():
            raise ValueError(
                f"`model_name` is {model_name!r}, which is not a folder; pass one that `from_pretrained` loads, or a "
                "hub id such as Qwen/Qwen2.5-0.5B."
            )
        if not learning_rate > 0:
            raise ValueError(f"`learning_rate` is {learning_rate}; pass a positive number.")
        for name, number, least in (
            ("warmup_steps", warmup_steps, 0),
            ("weight_decay", weight_decay, 0),
            ("max_skipped_steps", max_skipped_steps, 1),
        ):
            if number < least:
                raise ValueError(f"`{name}` is {number}; pass {least} or more.")
        self.model_name = model_name
        self.objective = objective
        self.learning_rate = learning_rate
        self.warmup_steps = warmup_steps
        self.weight_decay = weight_decay
        self.optimizer = optimizer
        self.max_skipped_steps = max_skipped_steps
        self.layout = layout
        self.lora = lora
        self.attn_implementation = attn_implementation
        self.strict_loading = lora is None  # a checkpoint of adapters has no other weights
        self.model: PreTrainedModel = None  # type: ignore[assignment]  # loaded by `configure_model`
        self.tokenizer: PreTrainedTokenizerBase = None  # type: ignore[assignment]
        self.weight_metrics = GradientWeightMetrics()
        self._needs_reference = objective.needs_reference
        # In a tuple, so that it is no submodule: it is neither trained nor saved.
        self._reference: tuple[PreTrainedModel, ...] = ()
        # Tokens, loss, entropy and divergence from the reference, summed over the micro-batches of an update.
        self._update_sums = torch.zeros(4, dtype=torch.double)
        # What the penalties observe, summed likewise.
        self._observed = torch.zeros(len(objective.penalties), dtype=torch.double)
        self._skipped_steps = 0
        self._skipped_in_a_row = 0
        self._random_state: dict[str, Any] | None = None

    # Loading

    def prepare_data(self) -> None:
        """Make the model where it does not exist yet; one process per node does this."""
        if not isinstance(self.model_name, str):
            self.model_name.prepare()

    def configure_model(self) -> None:
        """Load tokenizer and weights, and the reference where one is needed; sharded where the strategy says so.

        Raises:
            ValueError: the strategy asks for tensor parallelism, which the model or adapters do not allow.
        """
        if self.model is not None:
            return
        parts = 1 if self.device_mesh is None else self.device_mesh["tensor_parallel"].size()
        if parts > 1 and self.lora is not None:
            raise ValueError(
                f"`lora` is {self.lora}, but `tensor_parallel_size` is {parts}; pass tensor_parallel_size=1."
            )
        path = self.model_name if isinstance(self.model_name, str) else self.model_name.prepare()
        self.tokenizer = AutoTokenizer.from_pretrained(path)
        self.model = self._loaded(path)
        if self.lora is not None:
            self.lora.adapt(self.model)
        elif self._needs_reference:
            self._reference = (self._loaded(path).requires_grad_(False),)
        if self.device_mesh is not None:
            gathered = torch.bfloat16 if self.trainer.precision == "bf16-mixed" else None
            for model in (self.model, *self._reference):
                if parts > 1:
                    divide(model, self.device_mesh["tensor_parallel"])
                shard(model, self.device_mesh, gathered)

    def _loaded(self, path: str) -> PreTrainedModel:
        attention = self.attn_implementation
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation=attention)

    @property
    def needs_reference(self) -> bool:
        """Whether the first policy is kept: in a frozen copy, or as the model without its adapters."""
        return self._needs_reference

    def keep_reference(self) -> None:
        """Keep one although the objective reads none; to be called before the model is loaded."""
        self._needs_reference = True

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion.

        Raises:
            ValueError: neither the tokenizer nor the model names one.
        """
        configured = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ids = configured if isinstance(configured, list) else [configured]
        found = {token for token in [*ids, self.tokenizer.eos_token_id] if token is not None}
        if not found:
            raise ValueError(
                f"`model_name` {self.model_name!r} has no end-of-sequence token; set `eos_token` of its tokenizer."
            )
        return tuple(sorted(found))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write the policy and its tokenizer as a folder that `from_pretrained` loads; see `LoRA` for adapters.

        Every rank must call it, since the weights may be sharded; the first one writes.
        """
        if self.lora is not None:
            self.lora.save(self.model, folder)
        else:
            weights = whole_weights(self.model) if is_sharded(self.model) else None
            if rank() == 0:
                self.model.save_pretrained(folder, state_dict=weights)
        if rank() == 0:
            self.tokenizer.save_pretrained(folder)

    # Log-probabilities

    def log_probs(self, batch: RolloutBatch) -> PerToken:
        """Log-probabilities of the completions under the policy, temperature applied; shape `batch time`; nats."""
        log_probs, _ = log_probs_and_entropy(self.model, batch, self.layout)
        return log_probs

    @torch.no_grad()
    def current_log_probs(self, batch: RolloutBatch) -> PerToken:
        """The same outside any graph, in the precision of training."""
        with self.trainer.precision_plugin.forward_context():
            return self.log_probs(batch)

    @torch.no_grad()
    def reference_log_probs(self, batch: RolloutBatch) -> PerToken:
        """The same under the reference.

        Raises:
            RuntimeError: no reference is kept.
        """
        if self.lora is not None and self._needs_reference:
            with without_adapters(self.model):
                return self.current_log_probs(batch)
        if not self._reference:
            raise RuntimeError("the policy keeps no reference; call `keep_reference()` before the model is loaded.")
        reference = self._reference[0]
        cast(torch.nn.Module, reference).to(self.device, self.model.dtype)
        with self.trainer.precision_plugin.forward_context():
            log_probs, _ = log_probs_and_entropy(reference, batch, self.layout)
        return log_probs

    # Training

    def training_step(self, batch: RolloutBatch, batch_idx: int) -> Tensor:
        """Negative objective of one micro-batch, scaled so that the gradients of an update's micro-batches add up."""
        log_probs, entropy = log_probs_and_entropy(self.model, batch, self.layout)
        objective = self.objective(log_probs, batch.policy)
        weights = self.objective.gradient_weights(log_probs.detach(), batch.policy)
        self.weight_metrics.update(weights, log_probs.detach(), batch.policy)
        self._count(objective.detach(), entropy, log_probs.detach(), batch)
        if batch.closes_update:
            self._log_update(batch)
            self._adapt()
        return -loss_scale(self.trainer) * objective

    def _count(self, objective: Tensor, entropy: PerToken, log_probs: PerToken, batch: RolloutBatch) -> None:
        mask = batch.policy.response_mask
        sums = [mask.sum(), -objective, masked_sum(entropy, mask).sum(), torch.zeros_like(objective)]
        if batch.policy.ref_log_probs is not None:
            log_ratio = log_probs - batch.policy.ref_log_probs
            sums[-1] = masked_sum(torch.expm1(-log_ratio) + log_ratio, mask).sum()
        self._update_sums += torch.stack([value.detach().double().cpu() for value in sums])
        if self.objective.penalties:
            self._observed += self.objective.observed(log_probs, batch.policy).double().cpu()

    def _log_update(self, batch: RolloutBatch) -> None:
        """Log the figures of one optimiser step; NaN where no token was trained."""
        sums = summed_over_ranks(self._update_sums, self.trainer).tolist()
        self._update_sums = torch.zeros_like(self._update_sums)
        tokens, loss, entropy, divergence = sums
        per_token = 1 / tokens if tokens else math.nan
        figures = {**batch.metrics, "policy_loss": loss, "entropy": entropy * per_token}
        if batch.policy.ref_log_probs is not None:
            figures["kl"] = divergence * per_token
        shown: dict[str, Any] = {name: figures.pop(name) for name in ("reward", "entropy") if name in figures}
        self.log_dict(shown, prog_bar=True)
        self.log_dict({**figures, **self.weight_metrics.compute()})
        self.log("learning_rate", self.trainer.optimizers[0].param_groups[0]["lr"])
        self.weight_metrics.reset()

    def _adapt(self) -> None:
        """Let the penalties adapt to the update whose gradients are now known, and log what has a state."""
        if not self.objective.penalties:
            return
        self.objective.adapt(summed_over_ranks(self._observed, self.trainer).tolist())
        self._observed = torch.zeros_like(self._observed)
        for number, state in enumerate(self.objective.state_dict()["penalties"]):
            self.log_dict({f"penalty_{number}/{name}": float(value) for name, value in state.items()})

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
                f"`model_name` {self.model_name!r} has frozen weights alone, as an adapter; merge it first."
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

    def validation_step(self, batch: Evaluation, batch_idx: int, dataloader_idx: int = 0) -> None:
        """Log the mean reward of held-out completions, each reward where there are several, and the length."""
        figures = {f"val/{name}": values.mean() for name, values in batch.figures.items()}
        self.log_dict(figures, batch_size=len(batch.rewards), on_epoch=True, add_dataloader_idx=False, sync_dist=True)

    # State

    def on_save_checkpoint(self, checkpoint: dict[str, Any]) -> None:
        """Add what the module counts, and each rank's global random state; leave out what `model_name` gives again.

        A strategy that reads checkpoints by itself, as one that shards does, wants all weights.
        """
        if self.lora is not None and not self.trainer.strategy.restore_checkpoint_after_setup:
            trained = {name for name, parameter in self.named_parameters() if parameter.requires_grad}
            checkpoint["state_dict"] = {name: w for name, w in checkpoint["state_dict"].items() if name in trained}
        checkpoint["policy_module"] = {
            "lora": None if self.lora is None else self.lora.form,
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
        if state["lora"] != (None if self.lora is None else self.lora.form):
            raise ValueError(f"`lora` is {self.lora}, but the checkpoint was made with {state['lora']}; pass that.")
        self._skipped_steps = state["skipped_steps"]
        self._skipped_in_a_row = state["skipped_in_a_row"]
        self.objective.load_state_dict(state["objective"])
        # Of more ranks than there were, the further ones go on with the state that they have.
        self._random_state = dict(enumerate(state["rng"])).get(rank())
        loop = checkpoint["loops"]["fit_loop"]
        pieces = state["accumulate_grad_batches"], self.trainer.accumulate_grad_batches
        loop["epoch_loop.batch_progress"] = recounted(loop["epoch_loop.batch_progress"], *pieces)

    def on_train_start(self) -> None:
        """Restore the random state of a resumed run."""
        if self._random_state is not None:
            restore_random_state(self._random_state)
            self._random_state = None


def _looks_like_a_folder(model_name: str) -> bool:
    """Hub ids are `name` or `owner/name`."""
    return model_name.startswith(("/", ".", "~")) or model_name.count("/") > 1
