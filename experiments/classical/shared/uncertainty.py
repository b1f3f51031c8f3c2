"""Sets of transition kernels around a nominal one, a set for each state and action, and their worst cases."""

from __future__ import annotations

from abc import ABC, abstractmethod
from dataclasses import dataclass, replace

import torch
from torch import Tensor

from experiments.classical.shared.mdp import MDP

_HALVINGS = 45
_SMALLEST = 30.0  # logarithm of the largest tilt over the smallest
_LARGEST_TILT = 1e4  # beyond it a tilted distribution has all its mass on the worst state


def divergence(kernel: Tensor, nominal: Tensor) -> Tensor:
    """Return the divergence of kernels from the nominal one in nats; shape `...`."""
    return torch.xlogy(kernel, kernel / nominal).sum(dim=-1)


class Uncertainty(ABC):
    """Set of kernels around a nominal one, all of whose probabilities are positive."""

    @abstractmethod
    def worst(self, nominal: Tensor, values: Tensor) -> Tensor:
        """Return the kernel of the set with the largest expected cost afterwards; shape `... next`.

        Args:
            nominal: Nominal kernel; shape `... next`.
            values: Cost of each next state; broadcasts against the kernel.
        """

    @abstractmethod
    def project(self, nominal: Tensor, kernel: Tensor) -> Tensor:
        """Return the kernel of the set that has the smallest divergence from a given one; shape `... next`.

        Args:
            nominal: Nominal kernel; shape `... next`.
            kernel: Kernel to project, up to a factor; shape `... next`.
        """


@dataclass(frozen=True)
class KLBall(Uncertainty):
    r"""Kernels with $\mathrm{KL}(p \| p_0) \le \kappa$.

    Args:
        radius: Radius $\kappa$ in nats, positive.
    """

    radius: float

    def worst(self, nominal: Tensor, values: Tensor) -> Tensor:
        centered = (values - values.amax(dim=-1, keepdim=True)).expand_as(nominal)
        scale = _LARGEST_TILT / (centered.amax(dim=-1) - centered.amin(dim=-1)).clamp(min=1e-300)
        return self._inside(nominal, centered * scale.unsqueeze(-1))

    def project(self, nominal: Tensor, kernel: Tensor) -> Tensor:
        return self._inside(nominal, kernel.log() - nominal.log())

    def _inside(self, nominal: Tensor, tilt: Tensor) -> Tensor:
        """Return the nominal kernel times the exponential of as much of the tilt as the ball has place for."""
        base = nominal.log()
        low, high = (torch.full_like(nominal[..., :1], end) for end in (-_SMALLEST, 0.0))  # logarithms of the share
        for _ in range(_HALVINGS):
            middle = (low + high) / 2
            inside = divergence((base + middle.exp() * tilt).softmax(dim=-1), nominal).unsqueeze(-1) <= self.radius
            low, high = torch.where(inside, middle, low), torch.where(inside, high, middle)
        whole = divergence((base + tilt).softmax(dim=-1), nominal).unsqueeze(-1) <= self.radius
        return (base + torch.where(whole, 1.0, low.exp()) * tilt).softmax(dim=-1)


@dataclass(frozen=True)
class Interval(Uncertainty):
    r"""Kernels with $|p - p_0| \le \delta$ in each probability.

    Args:
        radius: Radius $\delta$, positive.
    """

    radius: float

    def worst(self, nominal: Tensor, values: Tensor) -> Tensor:
        order = values.expand_as(nominal).argsort(dim=-1, descending=True)
        low, room = self._ends(nominal)
        room = (room - low).gather(-1, order)
        left = (1 - low.sum(dim=-1, keepdim=True)).expand_as(room)
        before = room.cumsum(dim=-1) - room
        added = torch.minimum(room, (left - before).clamp(min=0))  # to the worst state first
        return low + torch.zeros_like(low).scatter(-1, order, added)

    def project(self, nominal: Tensor, kernel: Tensor) -> Tensor:
        low, high = self._ends(nominal)
        small, large = (torch.full_like(nominal[..., :1], end) for end in (-60.0, 60.0))
        logs = kernel.clamp(min=1e-300).log()
        for _ in range(_HALVINGS):
            middle = (small + large) / 2
            mass = torch.minimum(torch.maximum((logs + middle).exp(), low), high).sum(dim=-1, keepdim=True)
            small, large = torch.where(mass < 1, middle, small), torch.where(mass < 1, large, middle)
        return torch.minimum(torch.maximum((logs + small).exp(), low), high)

    def _ends(self, nominal: Tensor) -> tuple[Tensor, Tensor]:
        return (nominal - self.radius).clamp(min=0), (nominal + self.radius).clamp(max=1)


def worst_values(
    nominal: MDP, uncertainty: Uncertainty, policy: Tensor, costs: Tensor, iterations: int = 5
) -> tuple[Tensor, Tensor]:
    """Return the values of the worst kernel and that kernel, by policy iteration of the one who chooses it.

    Args:
        nominal: Process with the nominal kernel.
        uncertainty: Set of the kernels.
        policy: Policy; shape `... state action`.
        costs: Costs; shape `state action`.
        iterations: Number of iterations.
    """
    process = nominal
    for _ in range(iterations):
        values = process.values(policy, costs)
        kernel = uncertainty.worst(nominal.transitions.expand(*policy.shape, -1), values[..., None, None, :])
        process = replace(nominal, transitions=kernel)
    return process.values(policy, costs), process.transitions


def kernel_step(
    nominal: MDP, uncertainty: Uncertainty, kernel: Tensor, policy: Tensor, costs: Tensor, step_size: float
) -> Tensor:
    """Return the kernel after a step of mirror ascent on the costs of the next states.

    Args:
        nominal: Process with the nominal kernel.
        uncertainty: Set of the kernels, to which the step is projected.
        kernel: Present kernel; shape `state action next`.
        policy: Policy; shape `state action`.
        costs: Costs; shape `state action`.
        step_size: Step size.
    """
    values = nominal.discount * replace(nominal, transitions=kernel).values(policy, costs)
    raised = kernel * (step_size * (values - values.mean())).exp()
    return uncertainty.project(nominal.transitions, raised / raised.sum(dim=-1, keepdim=True))
