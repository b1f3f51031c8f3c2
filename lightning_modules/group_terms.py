"""Terms of a group objective for the micro-batches of an optimizer step, known before its first backward pass."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace

import torch
from lightning import Trainer

from aggregate_po import CompletionValues, GroupTerms, PolicyBatch, PolicyObjective
from lightning_modules.distributed import data_parallel_rank, gathered_values
from lightning_modules.micro_batch import MicroBatch, rest_of_update
from lightning_modules.model.trained import PolicyPass
from lightning_modules.seeding import random_state_kept


class UpdateGroups:
    """Gives each micro-batch the group terms of its completions, computed from the log values of the whole step.

    The first micro-batch of a step collects them: its own from the pass with gradient, and those of the others from a
    pass each without, over all ranks. The random state is as if these passes had not been, so that dropout is the same
    in both passes of a micro-batch.

    One is made for each `fit`, which begins with the first micro-batch of a step.

    Args:
        objective: objective that is trained; nothing is done unless it has a group objective.

    Attributes:
        metrics: metrics of the current step by name, the same on all ranks; see `docs/metrics.md`.
    """

    def __init__(self, objective: PolicyObjective) -> None:
        self._objective = objective
        self._left: list[GroupTerms] = []  # of the micro-batches of the step that are still to come
        self.metrics: dict[str, float] = {}

    def with_terms(
        self,
        passed: PolicyPass,
        batch: MicroBatch,
        pass_of: Callable[[MicroBatch], PolicyPass],
        trainer: Trainer,
    ) -> PolicyBatch:
        """Return the inputs of the objective with their group terms; every rank must call it.

        Args:
            passed: forward pass over the micro-batch.
            batch: the micro-batch.
            pass_of: returns that over another micro-batch, without gradient.
            trainer: trainer, for the other micro-batches of the step and for collectives over ranks.

        Raises:
            ValueError: the batches have no groups, or the other micro-batches of the step are not known.
        """
        if self._objective.group_objective is None:
            return passed.inputs
        if not self._left:
            self._left = self._collected(passed, batch, pass_of, trainer)
        values, advantages = (term.to(passed.log_probs.device) for term in self._left.pop(0))
        return replace(passed.inputs, group_values=values, group_advantages=advantages)

    def _collected(
        self,
        passed: PolicyPass,
        batch: MicroBatch,
        pass_of: Callable[[MicroBatch], PolicyPass],
        trainer: Trainer,
    ) -> list[GroupTerms]:
        """Return the terms of this micro-batch and of the others of the step."""
        values = [self._objective.completion_values(passed.log_probs.detach(), passed.inputs)]
        with random_state_kept():
            for other in rest_of_update(batch, trainer):
                found = pass_of(other.to(passed.log_probs.device))
                values.append(self._objective.completion_values(found.log_probs, found.inputs))
        tables = [completions.table.cpu() for completions in values]
        ranks = gathered_values(torch.cat(tables), trainer)
        completions = CompletionValues.of(ranks)
        terms = self._objective.group_terms(completions)
        self.metrics = {"group_objective/without_gradient": _without_gradient(completions, terms)}
        start = sum(len(table) for table in ranks[: data_parallel_rank(trainer)])
        sizes = [len(table) for table in tables]
        own = (term[start : start + sum(sizes)].split(sizes) for term in terms)
        return [GroupTerms(*parts) for parts in zip(*own, strict=True)]


def _without_gradient(completions: CompletionValues, terms: GroupTerms) -> float:
    """Return the fraction of groups in which no completion has a gradient; NaN without groups."""
    rows = completions.weights > 0
    groups = completions.groups[rows].unique()
    trained = completions.groups[rows & (terms.advantages != 0)].unique()
    return 1 - len(trained) / len(groups) if len(groups) else float("nan")
