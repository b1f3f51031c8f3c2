"""Rest of a rollout in a checkpoint, and the reason to drop it on a resume with another objective."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import Any

import torch

from aggregate_po import PolicyBatch, PolicyObjective
from lightning_modules.micro_batch import saved_policy


def reason_to_drop(
    remaining: Sequence[Mapping[str, Any]], objective: PolicyObjective, has_every_completion: bool
) -> str | None:
    """Return why another objective cannot be trained on the rest of a rollout; None if it can.

    Args:
        remaining: states of the micro-batches that are left.
        objective: new objective.
        has_every_completion: whether completions of advantage 0 are in the micro-batches.
    """
    if objective.trains_every_completion and not has_every_completion:
        return "the new objective trains on completions of advantage 0, too, which it lacks"
    if not all(_is_defined_for(objective, saved_policy(state)) for state in remaining):
        return "the new objective is not defined for what it holds"
    return None


def _is_defined_for(objective: PolicyObjective, batch: PolicyBatch) -> bool:
    """Whether an objective has all that it reads in a micro-batch, and a definition for it."""
    # Those of denoising steps come from the forward pass, and no other objective reads any.
    steps = torch.zeros_like(batch.old_log_probs)
    passed = replace(batch, divergence=steps, scale=torch.ones_like(steps), ref_divergence=steps)
    try:
        objective(passed.old_log_probs, passed)
    except ValueError:
        return False
    return True
