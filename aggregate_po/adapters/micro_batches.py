"""Losses of one micro-batch at a time: what an objective may need there, and tensors in the form of a `PolicyBatch`."""

from __future__ import annotations

import torch
from torch import Tensor

from aggregate_po.batch import PerCompletion, PerToken, PolicyBatch
from aggregate_po.objective import PolicyObjective
from aggregate_po.totals import StepTotals


def require_objective(objective: object) -> PolicyObjective:
    """Return an objective, and raise a `TypeError` for anything else."""
    if not isinstance(objective, PolicyObjective):
        raise TypeError(f"`objective` is {objective!r}; pass a PolicyObjective, or the name of one.")
    return objective


def require_of_one_micro_batch(objective: PolicyObjective, trainer: str) -> None:
    """Check that an objective needs no more than the tokens of a micro-batch and the totals of its step.

    Args:
        objective: Objective, whose penalties may read a reference.
        trainer: Name of the trainer, for the messages.

    Raises:
        ValueError: A penalty adapts, the objective compares whole groups, a rule follows the training, or a part reads
            more of a token than its log-probabilities.
    """
    if any(penalty.state_dict() for penalty in objective.penalties):
        raise ValueError(
            f"`objective` is {objective!r}, whose penalty adapts after each optimizer step, of which {trainer} tells a "
            "loss nothing; pass a penalty with a constant coefficient."
        )
    if objective.group_objective is not None:
        raise ValueError(
            f"`objective` is {objective!r}, whose group objective compares whole groups, which {trainer} splits; train "
            "it with PolicyModule."
        )
    zeros = torch.zeros(1, 2)
    totals = StepTotals(completions=1, tokens=2)
    require_passed(objective, PolicyBatch(zeros, torch.ones(1, 2), torch.ones(1), totals, ref_log_probs=zeros), trainer)


def require_passed(objective: PolicyObjective, batch: PolicyBatch, trainer: str) -> None:
    """Check that an objective reads nothing that a trainer does not pass to a loss.

    Args:
        objective: Objective.
        batch: A batch as the trainer has them.
        trainer: Name of the trainer, for the message.

    Raises:
        ValueError: the objective cannot be evaluated on the batch.
    """
    try:
        objective(batch.old_log_probs, batch)
    except ValueError as error:
        missing, _, _ = str(error).partition(";")  # what follows is for those who make batches themselves
        raise ValueError(
            f"`objective` is {objective!r}, which needs what {trainer} does not pass to a loss: {missing}. Choose an "
            "objective without it, or train this one with lightning_modules."
        ) from error


def folded(advantages: PerToken, mask: PerToken) -> Tensor:
    """Return one advantage per completion where all its tokens have the same, else advantages per token.

    Args:
        advantages: advantages per token, arbitrary on padding, or per completion; shape `batch time` or `batch`.
        mask: True on trained tokens; shape `batch time`.
    """
    if advantages.ndim == 1:
        return advantages
    of_first = first(advantages, mask)
    same = torch.where(mask, advantages == of_first.unsqueeze(1), True).all()
    return torch.where(mask.any(dim=1), of_first, 0) if same else advantages


def first(values: PerToken, mask: PerToken) -> PerCompletion:
    """Return the value at the first trained token of each completion."""
    return values.gather(1, mask.int().argmax(dim=1, keepdim=True)).squeeze(1)
