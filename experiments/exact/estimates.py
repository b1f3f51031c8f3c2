"""Mean and variance of the gradient that an objective estimates from a group of completions, without sampling error."""

from __future__ import annotations

import itertools
import math
from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import torch
from einops import einsum, rearrange, repeat
from torch import Tensor

from aggregate_po import AdvantageEstimator, PolicyBatch, PolicyObjective, StepTotals
from aggregate_po.advantages import GroupedRewards
from experiments.exact.policies import Sequences

MOST_GROUPS = 1_000_000  # beyond, groups are sampled
_AT_ONCE = 8192


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

    @property
    def policy_gradient(self) -> Tensor:
        """Gradient of the expected reward of the trained policy; shape `parameter`."""
        return self.sequences.policy_gradient(self.logits, self.rewards)


@dataclass(frozen=True)
class Moments:
    """Mean and variance of a gradient estimate.

    Args:
        mean: Mean of the estimate; shape `parameter`.
        variance: Sum of the variances of its entries.
        groups: Number of groups that were evaluated.
        exact: Whether these are all groups; otherwise a sample.
    """

    mean: Tensor
    variance: float
    groups: int
    exact: bool

    def cosine(self, gradient: Tensor) -> float:
        """Return the cosine of the angle between the mean and a gradient."""
        return float(torch.nn.functional.cosine_similarity(self.mean, gradient, dim=0))

    def scale(self, gradient: Tensor) -> float:
        """Return the factor that brings the mean nearest to a gradient."""
        return float(self.mean @ gradient / self.mean.square().sum())

    def bias(self, gradient: Tensor) -> float:
        """Return the distance of the scaled mean from a gradient, relative to the gradient.

        It does not depend on the scale of the objective, which the learning rate makes up for.
        """
        return float((self.scale(gradient) * self.mean - gradient).norm() / gradient.norm())

    def noise(self, gradient: Tensor) -> float:
        """Return the standard deviation of the scaled estimate, relative to the gradient."""
        return abs(self.scale(gradient)) * math.sqrt(self.variance) / float(gradient.norm())

    def mean_squared_error(self, gradient: Tensor) -> float:
        """Return the mean squared distance of the scaled estimate from a gradient, relative to the gradient."""
        return self.bias(gradient) ** 2 + self.noise(gradient) ** 2


def expected_gradient(problem: Problem, objective: PolicyObjective, advantages: Tensor) -> Tensor:
    """Return the mean gradient of single completions whose advantages are given, whatever their group.

    Args:
        problem: Policies and rewards.
        objective: Objective to differentiate.
        advantages: Advantage of each sequence, shape `sequence`, or of each token, shape `sequence time`.

    Returns:
        Mean of the gradient over completions of the behavior policy; shape `parameter`.
    """
    sequences = problem.sequences
    totals = StepTotals(1, int(sequences.mask.sum(dim=-1).max()))
    weights = _weights(problem, objective, torch.arange(len(sequences)), advantages, totals)
    of_each = einsum(weights, sequences.scores(problem.logits), "sequence time, sequence time p -> sequence p")
    return sequences.probabilities(problem.old_logits) @ of_each


def moments(
    problem: Problem,
    objective: PolicyObjective,
    estimator: AdvantageEstimator,
    group_size: int,
    most_groups: int = MOST_GROUPS,
    seed: int = 0,
) -> Moments:
    """Return mean and variance of the gradient of an optimizer step on one group of completions.

    Groups are enumerated as multisets of sequences with their probabilities, and sampled if there are too many.

    Args:
        problem: Policies and rewards.
        objective: Objective to differentiate.
        estimator: Advantages from the rewards of the group.
        group_size: Completions per group.
        most_groups: Number of groups up to which they are enumerated, and that is sampled beyond.
        seed: Seed of the sample.
    """
    count = math.comb(len(problem.sequences) + group_size - 1, group_size)
    enumerated = count <= most_groups
    groups = _all_groups if enumerated else _sampled_groups
    first = torch.zeros(math.prod(problem.logits.shape), dtype=problem.logits.dtype)
    second = 0.0
    for rows, weights in groups(problem, group_size, count if enumerated else most_groups, seed):
        gradients = group_gradients(problem, objective, estimator, rows)
        first += weights @ gradients
        second += float(weights @ gradients.square().sum(dim=-1))
    return Moments(
        first, max(second - float(first.square().sum()), 0.0), count if enumerated else most_groups, enumerated
    )


def group_gradients(
    problem: Problem, objective: PolicyObjective, estimator: AdvantageEstimator, rows: Tensor
) -> Tensor:
    """Return the gradient of an optimizer step on each of some groups; shape `group parameter`.

    Args:
        problem: Policies and rewards.
        objective: Objective to differentiate.
        estimator: Advantages from the rewards of a group.
        rows: Sequences of each group; shape `group completion`.
    """
    count, size = rows.shape
    flat = rearrange(rows, "group completion -> (group completion)")
    lengths = problem.sequences.mask.sum(dim=-1)[flat]
    advantages = estimator(GroupedRewards(problem.rewards[flat], size, lengths))
    weights = torch.zeros(len(flat), problem.sequences.mask.shape[1], dtype=problem.logits.dtype)
    # A step is one group, and its totals depend on its tokens; groups with the same totals go together.
    tokens = rearrange(lengths, "(group completion) -> group completion", group=count).sum(dim=-1)
    for total in tokens.unique().tolist():
        chosen = repeat(tokens == total, "group -> (group completion)", completion=size)
        totals = StepTotals(size, total)
        weights[chosen] = _weights(problem, objective, flat[chosen], advantages[chosen], totals, size)
    # Add up the weights of each sequence first: there are fewer sequences than completions.
    of_sequences = weights.new_zeros(count, len(problem.sequences), weights.shape[1])
    at = repeat(rows, "group completion -> group completion time", time=weights.shape[1])
    of_sequences.scatter_add_(
        1, at, rearrange(weights, "(group completion) time -> group completion time", group=count)
    )
    scores = problem.sequences.scores(problem.logits)
    return einsum(of_sequences, scores, "group sequence time, sequence time p -> group p")


def _weights(
    problem: Problem,
    objective: PolicyObjective,
    rows: Tensor,
    advantages: Tensor,
    totals: StepTotals,
    group_size: int = 1,
) -> Tensor:
    """Return the gradient weight of each token of some completions, each in a step of its group alone."""
    sequences = problem.sequences
    batch = PolicyBatch(
        sequences.log_probs(problem.old_logits)[rows],
        sequences.mask[rows],
        advantages,
        totals,
        groups=torch.arange(len(rows)) // group_size,
    )
    return objective.gradient_weights(sequences.log_probs(problem.logits)[rows], batch).total


def _all_groups(problem: Problem, size: int, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield all multisets of sequences, in parts, with their probabilities."""
    log_probabilities = problem.sequences.probabilities(problem.old_logits).log()
    every = itertools.chain.from_iterable(itertools.combinations_with_replacement(range(len(problem.sequences)), size))
    for start in range(0, count, _AT_ONCE):
        part = min(_AT_ONCE, count - start)
        rows = torch.from_numpy(np.fromiter(every, dtype=np.int64, count=part * size)).view(part, size)
        # Permutations of a sorted multiset: the factorial of the size over those of its repetitions.
        place = torch.ones(part, dtype=torch.long)
        repeated = torch.zeros(part, dtype=problem.logits.dtype)
        for column in range(1, size):
            place = torch.where(rows[:, column] == rows[:, column - 1], place + 1, 1)
            repeated += place.to(repeated).log()
        yield rows, (math.lgamma(size + 1) - repeated + log_probabilities[rows].sum(dim=-1)).exp()


def _sampled_groups(problem: Problem, size: int, count: int, seed: int) -> Iterator[tuple[Tensor, Tensor]]:
    """Yield sampled groups, in parts, with equal weights."""
    generator = torch.Generator().manual_seed(seed)
    probabilities = problem.sequences.probabilities(problem.old_logits)
    for start in range(0, count, _AT_ONCE):
        part = min(_AT_ONCE, count - start)
        rows = torch.multinomial(probabilities, part * size, replacement=True, generator=generator).view(part, size)
        yield rows, torch.full((part,), 1 / count, dtype=problem.logits.dtype)
