"""Normalisers: how much each completion counts in the objective of an optimiser step."""

from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregate_po.batch import PerCompletion, StepTotals


class Normalizer(ABC):
    """Weight of each completion, from its length and the totals of the whole optimiser step.

    Subclass requirements:

    - Implement `__call__`. It must return finite, non-negative weights, one per completion.
    - Divide by the totals only. A count of the micro-batch would make the gradient depend on how the step is split into
      micro-batches and ranks. Use `at_least_one`, because a step can have no tokens.

    `aggregate_po.testing.check_normalizer` checks these requirements.
    """

    @abstractmethod
    def __call__(self, lengths: PerCompletion, totals: StepTotals) -> PerCompletion:
        """Non-negative weights; shape `batch`; `lengths` in tokens."""


@dataclass(frozen=True)
class SequenceMean(Normalizer):
    """Every completion counts the same: `1 / completions`."""

    def __call__(self, lengths: PerCompletion, totals: StepTotals) -> PerCompletion:
        """See `Normalizer`."""
        return torch.ones_like(lengths) / at_least_one(totals.completions)


@dataclass(frozen=True)
class TokenMean(Normalizer):
    """Every token counts the same: `length / tokens`.

    Reference: DAPO, arXiv:2503.14476.
    """

    def __call__(self, lengths: PerCompletion, totals: StepTotals) -> PerCompletion:
        """See `Normalizer`."""
        return lengths / at_least_one(totals.tokens)


@dataclass(frozen=True)
class LengthWeighted(Normalizer):
    """Every completion counts by its length: `length / completions`.

    Reference: LUSPO, arXiv:2602.05261.
    """

    def __call__(self, lengths: PerCompletion, totals: StepTotals) -> PerCompletion:
        """See `Normalizer`."""
        return lengths / at_least_one(totals.completions)


@dataclass(frozen=True)
class ConstantLength(Normalizer):
    """Token sums over a constant: `length / (constant * completions)`.

    Args:
        length: the constant, in tokens; usually the longest completion that sampling allows. It has no default,
            since the padded width of a batch is never one.

    Raises:
        ValueError: the constant is not positive.

    Reference: Dr. GRPO, arXiv:2503.20783.
    """

    length: float

    def __post_init__(self) -> None:
        if not self.length > 0:
            raise ValueError(f"`length` is {self.length}; pass the maximum completion length in tokens, more than 0.")

    def __call__(self, lengths: PerCompletion, totals: StepTotals) -> PerCompletion:
        """See `Normalizer`."""
        return lengths / (self.length * at_least_one(totals.completions))


def at_least_one(count: float | Tensor) -> float | Tensor:
    """A count of the totals as a divisor, 1 where it is 0: a step without any token has nothing to divide."""
    return count.clamp(min=1) if isinstance(count, Tensor) else max(count, 1)
