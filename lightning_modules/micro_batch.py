"""Micro-batches of completions of any kind: what the model reads, and a `PolicyBatch` for the objective."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import fields, is_dataclass, replace
from typing import Any, ClassVar, Self, cast, get_type_hints

import torch
from lightning import Trainer
from torch import Tensor
from torch.nn.functional import pad
from typing_extensions import override

from aggregate_po import PerCompletion, PerToken, PolicyBatch


class ModelInputs(ABC):
    """Completions with their prompts, as the input of a model's forward pass.

    It is not a dataclass: under some precisions Lightning rebuilds dataclasses field by field to convert their tensors,
    and it rejects frozen ones such as `PolicyBatch`, a field of a `MicroBatch`.

    Subclass requirements:

    - The arguments of `__init__` are the attributes, under the same names.
    - Implement `select`. It ends with `self._selected(rows, time)`, the fields that a `MicroBatch` adds.
    - Implement `prompt_lengths`, by which micro-batches are packed, and `micro_batch`.

    Attributes:
        prompt_of: index of each completion's prompt; shape `batch`.
        completion_mask: True on completion tokens, trained or not; shape `batch time`.
    """

    prompt_of: Tensor
    completion_mask: PerToken

    @property
    @abstractmethod
    def prompt_lengths(self) -> Tensor:
        """Number of tokens of each prompt; shape `prompt`."""

    @property
    def pass_lengths(self) -> Tensor:
        """Number of tokens of each completion in a forward pass, by which micro-batches are packed; shape `batch`."""
        return self.completion_mask.sum(dim=-1)

    @abstractmethod
    def select(self, rows: Tensor) -> Self:
        """Return the selected completions with their prompts, trimmed to the longest of each."""

    @abstractmethod
    def micro_batch(self, **fields: Any) -> MicroBatch:
        """Return the micro-batch of these completions; the fields are those that `MicroBatch` adds."""

    def replace(self, **changes: Any) -> Self:
        """Return a copy with some fields changed."""
        return type(self)(**{**vars(self), **changes})

    def to(self, *args: Any, **kwargs: Any) -> Self:
        """Return a copy whose tensors are moved as by `Tensor.to`."""
        return self.replace(**{name: _moved(value, *args, **kwargs) for name, value in vars(self).items()})

    def _selected(self, rows: Tensor, time: int) -> dict[str, Any]:
        """Return the fields of a subclass for the selected completions, trimmed to `time` tokens."""
        return {}


class MicroBatch(ModelInputs):
    """Completions of one forward and backward pass: inputs of the model, and a `PolicyBatch` for the objective.

    Subclass requirements: derive from a class of inputs too, this class first, and implement `_prompts_in`.

    Attributes:
        policy: inputs of the objective.
        closes_update: whether this is the last micro-batch of an optimizer step.
        samples: number of each completion in its group, from 0; with `policy.groups`, the number of the group in its
            rollout over all ranks, it tells which completion of the rollout a row is; None if unknown; shape `batch`.
        rewards: reward of each completion, NaN without one; None if unknown; shape `batch`.
    """

    policy: PolicyBatch
    closes_update: bool
    samples: PerCompletion | None
    rewards: PerCompletion | None

    _padded_left: ClassVar[frozenset[str]] = frozenset()  # tables that are padded on the left

    @override
    def _selected(self, rows: Tensor, time: int) -> dict[str, Any]:
        known = {"samples": self.samples, "rewards": self.rewards}
        return {
            "policy": self.policy.select(rows, time),
            **{name: values[rows] for name, values in known.items() if values is not None},
        }

    def state_dict(self) -> dict[str, Any]:
        """Return the fields as tensors, numbers and dictionaries, for a checkpoint.

        Raises:
            TypeError: a field has another type, which a checkpoint would have to pickle.
        """
        return {name: _plain(name, value) for name, value in vars(self).items()}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> Self:
        """Return the batch whose `state_dict` is given."""
        return cls(**{**state, "policy": saved_policy(state)})

    @classmethod
    def concatenated(cls, states: Sequence[dict[str, Any]]) -> Self:
        """Return one batch with the completions of several, given as `state_dict` returned them.

        Fields that are not tensors are those of the first one.
        """
        starts = torch.tensor([0, *map(cls._prompts_in, states[:-1])]).cumsum(dim=0)
        prompt_of = [state["prompt_of"] + start for state, start in zip(states, starts, strict=True)]
        joined = {name: cls._joined(name, [state[name] for state in states]) for name in states[0]}
        return cls.from_state_dict({**joined, "prompt_of": torch.cat(prompt_of)})

    @classmethod
    @abstractmethod
    def _prompts_in(cls, state: dict[str, Any]) -> int:
        """Return the number of prompts of a state."""

    @classmethod
    def _joined(cls, name: str, values: list[Any]) -> Any:
        """Concatenate the values of a field, tables padded to the same width."""
        first = values[0]
        if isinstance(first, dict):
            return {key: cls._joined(key, [value[key] for value in values]) for key in first}
        if not isinstance(first, Tensor) or first.ndim == 0:
            return first
        if first.ndim == 2:
            width = max(value.shape[1] for value in values)
            missing = [width - value.shape[1] for value in values]
            left = name in cls._padded_left
            values = [pad(value, (size, 0) if left else (0, size)) for value, size in zip(values, missing, strict=True)]
        return torch.cat(values)


def _moved(value: Any, *args: Any, **kwargs: Any) -> Any:
    if isinstance(value, Mapping):
        return {name: _moved(item, *args, **kwargs) for name, item in value.items()}
    return value.to(*args, **kwargs) if isinstance(value, (Tensor, PolicyBatch)) else value


def _plain(name: str, value: Any) -> Any:
    """Convert dataclasses to dictionaries, recursively; return tensors and numbers unchanged."""
    if is_dataclass(value):
        return {part.name: _plain(f"{name}.{part.name}", getattr(value, part.name)) for part in fields(value)}
    if isinstance(value, dict):
        return {key: _plain(f"{name}.{key}", item) for key, item in value.items()}
    if value is None or isinstance(value, (Tensor, bool, int, float, str)):
        return value
    raise TypeError(
        f"`{name}` is {value!r}, which a checkpoint cannot hold; make it a tensor, a number or a dataclass."
    )


def saved_policy(state: Mapping[str, Any]) -> PolicyBatch:
    """Return the inputs of the objective in the `state_dict` of a micro-batch."""
    return cast(PolicyBatch, _rebuilt(PolicyBatch, state["policy"]))


def _rebuilt(kind: type[Any], state: Mapping[str, Any]) -> Any:
    """Rebuild a dataclass from the dictionary that `_plain` returned."""
    hints = get_type_hints(kind)
    nested = {name: hints[name] for name in state if is_dataclass(hints[name])}
    return kind(**{**state, **{name: _rebuilt(inner, state[name]) for name, inner in nested.items()}})


def inert(batch: MicroBatch) -> MicroBatch:
    """Return the batch with an empty response mask: the forward pass runs, and the gradient is zero."""
    policy = replace(batch.policy, response_mask=torch.zeros_like(batch.policy.response_mask))
    return batch.replace(policy=policy)


def current_rollout_metrics(trainer: Trainer) -> Mapping[str, float]:
    """Return the metrics of the current rollout by name; empty if the data loader has no `metrics`."""
    return getattr(trainer.train_dataloader, "metrics", {})


def rest_of_update(batch: MicroBatch, trainer: Trainer) -> Sequence[MicroBatch]:
    """Return the micro-batches that follow in the optimizer step of a batch, which is the current one.

    Raises:
        ValueError: the data loader has no `rest_of_update`, as `RolloutLoader` has.
    """
    if batch.closes_update:
        return []
    rest: Sequence[MicroBatch] | None = getattr(trainer.train_dataloader, "rest_of_update", None)
    if rest is None:
        raise ValueError(
            f"`accumulate_grad_batches` is {trainer.accumulate_grad_batches}, but the data loader "
            f"{type(trainer.train_dataloader).__name__} has no `rest_of_update`, which the group objective needs; use "
            "RolloutLoader, or one micro-batch per optimizer step."
        )
    return rest
