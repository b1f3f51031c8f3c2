"""TRL's entropy bonus, over the vocabulary and with a coefficient that may adapt, for a whole optimizer step."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from aggregate_po.batch import PerToken, PolicyBatch
from aggregate_po.masked import masked_sum


def entropy_bonus(trainer: Any, entropies: PerToken, batch: PolicyBatch) -> Tensor | float:
    """Return what a micro-batch adds to the value: its share of the mean entropy of the step, times the coefficient.

    Args:
        trainer: Trainer with the options `entropy_coef` and `use_adaptive_entropy`.
        entropies: Entropies of the distributions over the vocabulary, with gradient; shape `batch time`; nats.
        batch: The micro-batch.
    """
    if not getattr(trainer, "_entropy_bonus_enabled", False):  # TRL has had the bonus since 1.9
        return 0.0
    idle = trainer.use_adaptive_entropy and trainer._last_world_entropy > trainer.args.entropy_target
    coefficient = 0.0 if idle else trainer.entropy_coef
    return coefficient * masked_sum(entropies, batch.response_mask).sum() / max(batch.totals.tokens, 1)


def adapt_entropy_bonus(trainer: Any, entropy: float) -> None:
    """Log the coefficient at the end of an optimizer step, after it has moved by the rule of TRL if it adapts.

    TRL keeps its value in checkpoints.

    Args:
        trainer: Trainer with the options of the bonus.
        entropy: Mean entropy over the tokens of the step, in nats.
    """
    if not getattr(trainer, "_entropy_bonus_enabled", False):
        return
    options = trainer.args
    if trainer.use_adaptive_entropy:
        below = entropy <= options.entropy_target
        moved = trainer.entropy_coef + options.entropy_coef_delta * (1 if below else -1)
        bounded = min(moved, options.entropy_coef_max) if below else max(moved, options.entropy_coef_min)
        trainer.entropy_coef, trainer._last_world_entropy = bounded, entropy
    trainer._metrics["train"]["entropy_coef"].append(trainer.entropy_coef)
