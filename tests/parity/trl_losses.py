"""TRL's losses as functions of a `PolicyBatch`: what `_compute_loss` of its trainers makes of the numbers."""

from collections import defaultdict
from dataclasses import fields
from types import SimpleNamespace

import torch
from trl import GRPOConfig, GRPOTrainer

DEFAULTS = {field.name: field.default for field in fields(GRPOConfig)}


def trl_run(log_probs, batch, trainer=GRPOTrainer, accumulation=1, inputs=(), **settings):
    """Loss of one micro-batch and the metrics that TRL logs with it.

    Args:
        trainer: the class whose `_compute_loss` is called.
        accumulation: micro-batches of an optimizer step.
        inputs: more tensors that the trainer would find in its batch.
        settings: fields of `GRPOConfig`, with its defaults; `epsilon_low` is its `epsilon`.
    """
    stub = _stub(trainer, log_probs, accumulation, settings)
    mask = batch.response_mask.long()
    prompts = torch.zeros(len(mask), 0, dtype=torch.long)
    tensors = {
        "prompt_ids": prompts,
        "prompt_mask": prompts,
        "completion_ids": torch.zeros_like(mask),
        "completion_mask": mask,
        "advantages": batch.advantages,
        "old_per_token_logps": batch.old_log_probs,
        "ref_per_token_logps": batch.ref_log_probs,
        "num_items_in_batch": torch.as_tensor(batch.totals.tokens),
    }
    loss = trainer._compute_loss(stub, stub.model, {**tensors, **dict(inputs)})
    return loss, {name: values[-1] for name, values in stub._metrics["train"].items()}


def trl_loss(log_probs, batch, **settings):
    """Loss of one micro-batch; see `trl_run`."""
    return trl_run(log_probs, batch, **settings)[0]


def _stub(trainer, log_probs, accumulation, settings):
    """Stand-in for a trainer, with all that `_compute_loss` reads; the correction of vLLM is off by default."""
    config = {**DEFAULTS, "epsilon_low": 0.2, "epsilon_high": 0.2, "steps_per_generation": accumulation, **settings}
    entropies = torch.zeros_like(log_probs)
    return SimpleNamespace(
        **config,
        args=SimpleNamespace(**config),
        model=SimpleNamespace(training=True),
        current_gradient_accumulation_steps=accumulation,
        accelerator=SimpleNamespace(num_processes=1, reduce=lambda x, reduction: x, gather=lambda x: x),
        aux_loss_enabled=False,
        _entropy_bonus_enabled=False,
        _metrics={"train": defaultdict(list)},
        _get_per_token_logps_and_entropies=lambda *args, **kwargs: (log_probs, entropies, None),
        get_off_policy_mask=trainer.get_off_policy_mask,
        get_gamma_weights=trainer.get_gamma_weights,
    )
