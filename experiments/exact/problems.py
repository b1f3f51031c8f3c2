"""Problems of an objective: a policy to improve, the policy that samples, and the rewards."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from functools import cached_property

import torch
from torch import Tensor

from aggregate_po import PolicyBatch, PolicyObjective, StepTotals
from experiments.exact.policies import Sequences

SUCCESSES = 0.3  # fraction of the sequences with reward 1
_BISECTIONS = 40


@dataclass(frozen=True)
class Problem:
    """A policy to improve, the policy that samples, and the rewards.

    Args:
        sequences: All sequences.
        rewards: Reward of each sequence; shape `sequence`.
        logits: Logits of the trained policy; shape `prefix symbol`.
        old_logits: Logits of the behavior policy; shape `prefix symbol`.
    """

    sequences: Sequences
    rewards: Tensor
    logits: Tensor
    old_logits: Tensor

    @cached_property
    def policy_gradient(self) -> Tensor:
        """Gradient of the expected reward of the trained policy; shape `parameter`."""
        return self.sequences.policy_gradient(self.logits, self.rewards)

    @cached_property
    def lengths(self) -> Tensor:
        """Number of tokens of each sequence; shape `sequence`."""
        return self.sequences.mask.sum(dim=-1)

    @cached_property
    def behavior(self) -> Tensor:
        """Probability of each sequence under the behavior policy; shape `sequence`."""
        return self.sequences.probabilities(self.old_logits)

    @property
    def distance(self) -> float:
        """Root mean square of the log ratios of the tokens that the behavior policy samples; nats."""
        squares = (self.sequences.log_probs(self.logits) - self.sequences.log_probs(self.old_logits)).square()
        return math.sqrt(self.behavior @ squares.sum(dim=-1) / (self.behavior @ self.lengths.double()))

    def weights(
        self,
        objective: PolicyObjective,
        rows: Tensor,
        advantages: Tensor,
        totals: StepTotals,
        group_size: int = 1,
    ) -> Tensor:
        """Return the gradient weight of each token of some completions; shape `completion time`.

        Args:
            objective: Objective to differentiate.
            rows: Number of the sequence of each completion; shape `completion`.
            advantages: Advantage of each completion, shape `completion`, or of each token, shape `completion time`.
            totals: Totals of the step of each completion.
            group_size: Number of successive completions that form a group.
        """
        batch = PolicyBatch(
            self.sequences.log_probs(self.old_logits)[rows],
            self.sequences.mask[rows],
            advantages,
            totals,
            groups=torch.arange(len(rows)) // group_size,
        )
        return objective.gradient_weights(self.sequences.log_probs(self.logits)[rows], batch).total


def random_problem(sequences: Sequences, distance: float, seed: int, along_gradient: bool = False) -> Problem:
    """Return a random problem whose trained policy is so far from the behavior policy.

    Args:
        sequences: All sequences.
        distance: Root mean square of the log ratios of the tokens that the behavior policy samples; nats.
        seed: Seed of behavior policy, direction and rewards; the same for all distances.
        along_gradient: Move along the policy gradient of the behavior policy, as training does, in place of a random
            direction.

    Raises:
        ValueError: the distance is negative or not finite, so that no policy has it, or so large that the policy
            gradient is 0 to rounding.
    """
    if not 0 <= distance < math.inf:
        raise ValueError(f"`distance` is {distance}; pass a finite number from 0 on.")
    generator = torch.Generator().manual_seed(seed)

    def normal(*shape: int) -> Tensor:
        return torch.randn(*shape, generator=generator, dtype=torch.float64)

    old, direction = normal(*sequences.shape), normal(*sequences.shape)
    rewards = (torch.rand(len(sequences), generator=generator) < SUCCESSES).double()
    # With equal rewards there would be no gradient at all.
    rewards[0], rewards[-1] = 0.0, 1.0
    if along_gradient:
        direction = sequences.policy_gradient(old, rewards).view(old.shape)
    problem = _moved(Problem(sequences, rewards, old, old), direction / direction.norm(), distance)
    if not problem.policy_gradient.norm() > 0:
        raise ValueError(f"`distance` is {distance}, where the policy gradient is 0 to rounding; pass a smaller one.")
    return problem


def _moved(problem: Problem, direction: Tensor, distance: float) -> Problem:
    """Return the problem with the trained policy at this distance along a direction, found by bisection."""

    def at(step: float) -> Problem:
        return replace(problem, logits=problem.old_logits + step * direction)

    if distance == 0:
        return problem
    low, high = 0.0, 1.0
    while at(high).distance < distance:
        low, high = high, 2 * high
    for _ in range(_BISECTIONS):
        middle = (low + high) / 2
        low, high = (middle, high) if at(middle).distance < distance else (low, middle)
    return at(high)
