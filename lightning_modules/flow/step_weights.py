"""Weights of the denoising steps in every mean."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass

from torch import Tensor
from typing_extensions import override


class StepWeights(ABC):
    """Weights of the steps of a trajectory, which `PolicyBatch.mean_weights` passes to the objective.

    Subclass requirements: implement `__call__`.
    """

    @abstractmethod
    def __call__(self, times: Tensor) -> Tensor:
        """Return weights from 0 to a million, one for each step; shape `time`.

        Args:
            times: decreasing times from noise to sample; shape `time+1`.
        """


@dataclass(frozen=True)
class InverseStepSize(StepWeights):
    r"""Weights each step by $1 / \Delta t$, which evens out the gradient of steps of different size.

    Example:
        >>> import torch
        >>> InverseStepSize()(torch.tensor([1.0, 0.75, 0.25, 0.0]))
        tensor([4., 2., 4.])

    Reference: GRPO-Guard, arXiv:2510.22319.
    """

    @override
    def __call__(self, times: Tensor) -> Tensor:
        return 1 / -times.diff()
