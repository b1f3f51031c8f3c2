"""Normalizers: the weight of each completion in the objective of an optimizer step."""

import math
from abc import ABC, abstractmethod
from dataclasses import dataclass

import torch
from typing_extensions import override

from aggregate_po.arguments import require_numbers
from aggregate_po.masked import divisor
from aggregate_po.shapes import PerCompletion
from aggregate_po.totals import StepTotals


class Normalizer(ABC):
    """Weight of each completion, from its length and the totals of the whole optimizer step.

    Subclass requirements:

    - Implement `__call__`. It must return finite, non-negative weights, one per completion.
    - Divide by the totals only. A count of the micro-batch would make the gradient depend on how the step is split into
      micro-batches and ranks. Use `divisor`, because a step can have no tokens, and weights can add up to
      less than one.

    `aggregate_po.testing.check_normalizer` checks these requirements.
    """

    @abstractmethod
    def __call__(self, lengths: PerCompletion, totals: StepTotals) -> PerCompletion:
        """Return non-negative weights; shape `batch`.

        Args:
            lengths: Response tokens of each completion, or the sum of their `mean_weights`; shape `batch`.
            totals: Counts over the whole optimizer step.
        """


@dataclass(frozen=True)
class SequenceMean(Normalizer):
    """Equal weight for every completion: `1 / completions`."""

    @override
    def __call__(self, lengths: PerCompletion, totals: StepTotals) -> PerCompletion:
        return torch.ones_like(lengths) / divisor(totals.completions)


@dataclass(frozen=True)
class TokenMean(Normalizer):
    """Equal weight for every token: `length / tokens`.

    Reference: DAPO, arXiv:2503.14476.
    """

    @override
    def __call__(self, lengths: PerCompletion, totals: StepTotals) -> PerCompletion:
        return lengths / divisor(totals.tokens)


@dataclass(frozen=True)
class LengthWeighted(Normalizer):
    """Weight in proportion to the length of a completion: `length / completions`.

    Reference: LUSPO, arXiv:2602.05261.
    """

    @override
    def __call__(self, lengths: PerCompletion, totals: StepTotals) -> PerCompletion:
        return lengths / divisor(totals.completions)


@dataclass(frozen=True)
class ConstantLength(Normalizer):
    """Sum over tokens divided by a constant: `length / (constant * completions)`.

    Args:
        length: Constant in tokens, usually the maximum completion length. There is no default, because the padded
            width of a batch is not a constant.

    Raises:
        ValueError: the constant is not positive.

    Reference: Dr. GRPO, arXiv:2503.20783.
    """

    length: float

    def __post_init__(self) -> None:
        require_numbers(length=self.length)
        if not 0 < self.length < math.inf:
            raise ValueError(f"`length` is {self.length}; pass the maximum completion length in tokens, more than 0.")

    @override
    def __call__(self, lengths: PerCompletion, totals: StepTotals) -> PerCompletion:
        return lengths / (self.length * divisor(totals.completions))
