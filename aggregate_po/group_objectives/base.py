"""Interface of group objectives, their context, and the terms that a micro-batch needs of them."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass, fields, replace
from typing import Annotated, NamedTuple

import torch
from torch import Tensor

from aggregate_po.shapes import PerCompletion, require_shape

PerGroup = Annotated[Tensor, "group"]
PerMember = Annotated[Tensor, "group member"]

_MAX_LOG_PROB = 1e30  # sums of larger log-probabilities could overflow


@dataclass(frozen=True)
class CompletionValues:
    """Values that a group objective reads of the completions of a step; detached, float64; shapes `batch`.

    Args:
        log_values: log value of each completion, after the mean and the sequence transform.
        old_log_probs: log-probability of each completion under the behavior policy; nats.
        advantages: advantage of each completion.
        weights: weight of each completion, from the normalizer; 0 for completions that belong to no group.
        groups: number of each completion's group; any integers.
    """

    log_values: PerCompletion
    old_log_probs: PerCompletion
    advantages: PerCompletion
    weights: PerCompletion
    groups: PerCompletion

    @property
    def table(self) -> Tensor:
        """The values as the columns of one tensor, to be gathered over ranks; shape `batch column`; float64.

        The last column has the bits of the numbers of the groups, not the numbers, which float64 would round.
        """
        *values, groups = (getattr(self, field.name) for field in fields(self))
        bits = groups.double() if groups.is_floating_point() else groups.long().view(torch.double)
        return torch.stack([*(column.double() for column in values), bits], dim=-1)

    @classmethod
    def of(cls, tables: Sequence[Tensor]) -> CompletionValues:
        """Return the values of several `table`, such as those of all micro-batches and ranks, one after the other."""
        *values, bits = torch.cat(list(tables)).unbind(dim=-1)
        return cls(*(*values, bits.view(torch.long)))


@dataclass(frozen=True)
class GroupValues:
    """Context of a group objective; detached; float64; shapes `group member`.

    Groups may have different sizes, in any order of their members. Reduce them under the mask with the functions of
    `aggregate_po.masked`.

    Args:
        log_values: log value of each completion, after the mean and the sequence transform.
        old_log_probs: log-probability of each completion under the behavior policy; nats.
        advantages: advantage of each completion.
        shares: weight of each completion, as a fraction of the weight of its group.
        mask: True on completions, False on padding; each group has at least one completion.
    """

    log_values: PerMember
    old_log_probs: PerMember
    advantages: PerMember
    shares: PerMember
    mask: PerMember


class GroupTerms(NamedTuple):
    """Value and gradient of a group objective at the current policy, by completion; detached; shapes `batch`.

    Attributes:
        values: value of the completion's group.
        advantages: derivative of that value with respect to the log value of the completion, divided by the share of
            the completion in the weight of its group.
    """

    values: PerCompletion
    advantages: PerCompletion


class GroupObjective(ABC):
    """Value of each group from the log values of all its completions, to be maximized (eq. 56).

    Subclass requirements:

    - Implement `__call__`. It must be differentiable with respect to `groups.log_values` and finite, and the value of
      a group must not depend on other groups, on padding, or on the order of the completions.
    - May override `derivatives` with a closed form, which must equal the derivative.

    `aggregate_po.testing.check_group_objective` checks these requirements.
    """

    @abstractmethod
    def __call__(self, groups: GroupValues) -> PerGroup:
        """Return the value of each group; shape `group`."""

    def derivatives(self, groups: GroupValues) -> PerMember:
        """Return the derivative of each group's value with respect to its log values, by autograd unless overridden.

        Returns:
            Derivatives of shape `group member`; arbitrary on padding.
        """
        with torch.inference_mode(False), torch.enable_grad():
            copied = GroupValues(**{name: value.detach().clone() for name, value in vars(groups).items()})
            values = self(replace(copied, log_values=copied.log_values.requires_grad_()))
            if not values.requires_grad:
                return torch.zeros_like(copied.log_values)
            (derivatives,) = torch.autograd.grad(values.sum(), copied.log_values, materialize_grads=True)
        return derivatives


@torch.no_grad()
def group_terms(objective: GroupObjective, completions: CompletionValues) -> GroupTerms:
    """Return the terms of all completions of whole groups; 0 for completions that belong to no group.

    Args:
        objective: group objective.
        completions: values of the completions of whole groups, such as those of a whole optimizer step.

    Raises:
        ValueError: the group objective returned a wrong shape.
    """
    terms = GroupTerms(*(torch.zeros_like(completions.log_values) for _ in GroupTerms._fields))
    rows = (completions.weights > 0).nonzero().squeeze(-1)
    if not len(rows):
        return terms
    _, group = completions.groups[rows].unique(return_inverse=True)
    place = group, _positions(group)
    context = _grid(completions, rows, place)
    values, derivatives = objective(context), objective.derivatives(context)
    require_shape(objective, "__call__", values, "`group`", context.mask.shape[:1])
    require_shape(objective, "derivatives", derivatives, "`group member`", context.mask.shape)
    terms.values[rows] = values[group]
    terms.advantages[rows] = derivatives[place] / context.shares[place]
    return terms


def _positions(group: Tensor) -> Tensor:
    """Return the position of each completion within its group, in their order."""
    order = group.argsort(stable=True)
    counts = group.bincount()
    starts = (counts.cumsum(dim=0) - counts)[group[order]]
    return torch.empty_like(group).index_copy(0, order, torch.arange(len(group), device=group.device) - starts)


def _grid(completions: CompletionValues, rows: Tensor, place: tuple[Tensor, Tensor]) -> GroupValues:
    """Arrange some completions as `group member`, where each has its place."""
    group, position = place
    shape = int(group.max()) + 1, int(position.max()) + 1

    def arranged(values: Tensor) -> PerMember:
        grid = values.new_zeros(shape)
        grid[place] = values[rows]
        return grid

    weights = arranged(completions.weights)
    return GroupValues(
        log_values=arranged(completions.log_values),
        old_log_probs=arranged(completions.old_log_probs.clamp(-_MAX_LOG_PROB, _MAX_LOG_PROB)),
        advantages=arranged(completions.advantages),
        shares=weights / weights.sum(dim=-1, keepdim=True),
        mask=weights > 0,
    )
