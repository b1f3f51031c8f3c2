"""Mean and variance of the gradient that an objective estimates from a group of completions, without sampling error.

An objective that is a sum over completions is enumerated by *kinds*. Completions of the same reward and length are of
one kind, and the kinds in a group determine all advantages and totals. Given the kinds, the completions are
independent, so their means and variances add up. With two rewards and one length there are only as many multisets of
kinds as completions in a group, and one more. An objective that compares the completions of a group is enumerated by
multisets of sequences.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import torch
from einops import einsum, rearrange, repeat
from torch import Tensor

from aggregate_po import AdvantageEstimator, PolicyBatch, PolicyObjective, StepTotals
from aggregate_po.advantages import GroupedRewards
from experiments.exact.multisets import AT_ONCE, all_multisets, number_of_multisets, sampled_groups
from experiments.exact.problems import Problem

MOST_GROUPS = 1_000_000  # beyond, groups are sampled
_NUMBERS_AT_ONCE = 2**22


@dataclass(frozen=True)
class Moments:
    """Mean and variance of a gradient estimate.

    Args:
        mean: Mean of the estimate; shape `parameter`.
        variance: Sum of the variances of its entries.
        groups: Number of multisets, of kinds or of sequences, or of sampled groups.
        exact: Whether nothing was sampled.
    """

    mean: Tensor
    variance: float
    groups: int
    exact: bool

    @classmethod
    def of(cls, mean: Tensor, second: float, groups: int, exact: bool) -> Moments:
        """Return the moments from the mean of the estimate and that of its squared length."""
        return cls(mean, max(second - float(mean.square().sum()), 0.0), groups, exact)

    def cosine(self, gradient: Tensor) -> float:
        """Return the cosine of the angle between the mean and a gradient."""
        return float(torch.nn.functional.cosine_similarity(self.mean, gradient, dim=0))

    def scale(self, gradient: Tensor) -> float:
        """Return the factor that brings the mean nearest to a gradient, 0 for a mean of 0."""
        square = float(self.mean.square().sum())
        return float(self.mean @ gradient) / square if square > 0 else 0.0

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

    def signal_to_noise(self, gradient: Tensor) -> float:
        """Return the part of the mean along a gradient over the standard deviation of the estimate.

        Where the estimate does not vary, it is 0 for a mean of 0, as where a clip stops every completion, and otherwise
        infinite.
        """
        along = self.cosine(gradient) * float(self.mean.norm())
        return (
            along / math.sqrt(self.variance) if self.variance > 0 else math.copysign(math.inf, along) if along else 0.0
        )


def expected_gradient(problem: Problem, objective: PolicyObjective, advantages: Tensor) -> Tensor:
    """Return the mean gradient of single completions whose advantages are given, whatever their group.

    Args:
        problem: Policies and rewards.
        objective: Objective to differentiate.
        advantages: Advantage of each sequence, shape `sequence`, or of each token, shape `sequence time`.

    Returns:
        Mean of the gradient over completions of the behavior policy; shape `parameter`.
    """
    totals = StepTotals(1, int(problem.lengths.max()), progress=0.0)
    weights = problem.weights(objective, torch.arange(len(problem.sequences)), advantages, totals)
    shares = rearrange(problem.behavior, "sequence -> 1 sequence 1")
    return problem.sequences.gradient(problem.logits, shares * weights)[0]


def moments(
    problem: Problem,
    objective: PolicyObjective,
    estimator: AdvantageEstimator,
    group_size: int,
    most_groups: int = MOST_GROUPS,
    seed: int = 0,
) -> Moments:
    """Return mean and variance of the gradient of an optimizer step on one group of completions.

    Groups are enumerated by the kinds of their completions where the objective is a sum over completions, otherwise as
    multisets of sequences, and sampled if there are too many.

    Args:
        problem: Policies and rewards.
        objective: Objective to differentiate.
        estimator: Advantages from the rewards of the group, whatever the order of the completions.
        group_size: Completions per group.
        most_groups: Number of groups up to which they are enumerated, and that is sampled beyond.
        seed: Seed of the sample.
    """
    count = number_of_multisets(len(problem.sequences), group_size)
    if objective.group_objective is None:
        of_kinds = number_of_multisets(len(_kinds(problem)[0]), group_size)
        # Each multiset of kinds needs the gradient of each sequence, each multiset of sequences those of one group.
        if of_kinds * len(problem.sequences) <= group_size * min(count, most_groups):
            return moments_by_kind(problem, objective, estimator, group_size)
    if count <= most_groups:
        return moments_of_groups(problem, objective, estimator, all_multisets(problem.behavior, group_size), True)
    groups = sampled_groups(problem.behavior, group_size, most_groups, seed)
    return moments_of_groups(problem, objective, estimator, groups, False)


def moments_of_groups(
    problem: Problem,
    objective: PolicyObjective,
    estimator: AdvantageEstimator,
    groups: Iterable[tuple[Tensor, Tensor]],
    exact: bool,
) -> Moments:
    """Return the moments over given groups.

    Args:
        problem: Policies and rewards.
        objective: Objective to differentiate.
        estimator: Advantages from the rewards of a group.
        groups: Sequences of each group, shape `group completion`, with the weights of the groups, in parts.
        exact: Whether these are all groups.
    """
    first = torch.zeros(math.prod(problem.logits.shape), dtype=problem.logits.dtype)
    second, count = 0.0, 0
    for rows, weights in groups:
        gradients = group_gradients(problem, objective, estimator, rows)
        first += weights @ gradients
        second += float(weights @ gradients.square().sum(dim=-1))
        count += len(rows)
    return Moments.of(first, second, count, exact)


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
    rewards, lengths = problem.rewards[rows], problem.lengths[rows]
    advantages = estimator(GroupedRewards(rewards.flatten(), size, lengths.flatten()))
    weights = torch.zeros(len(flat), problem.sequences.mask.shape[1], dtype=problem.logits.dtype)
    every, of_group = _totals(objective, rewards, lengths)
    for number, totals in enumerate(every):
        chosen = repeat(of_group == number, "group -> (group completion)", completion=size)
        weights[chosen] = problem.weights(objective, flat[chosen], advantages[chosen], totals, size)
    # Add up the weights of each sequence first: there are fewer sequences than completions.
    of_sequences = weights.new_zeros(count, len(problem.sequences), weights.shape[1])
    at = repeat(rows, "group completion -> group completion time", time=weights.shape[1])
    of_sequences.scatter_add_(
        1, at, rearrange(weights, "(group completion) time -> group completion time", group=count)
    )
    return problem.sequences.gradient(problem.logits, of_sequences)


def moments_by_kind(
    problem: Problem, objective: PolicyObjective, estimator: AdvantageEstimator, group_size: int
) -> Moments:
    """Return the moments of an objective that is a sum over completions, enumerated by their kinds.

    Args:
        problem: Policies and rewards.
        objective: Objective to differentiate; it may not compare the completions of a group.
        estimator: Advantages from the rewards of a group, whatever the order of the completions.
        group_size: Completions per group.
    """
    kinds, kind_of = _kinds(problem)
    share = problem.behavior.new_zeros(len(kinds)).index_add_(0, kind_of, problem.behavior)
    first = share.new_zeros(math.prod(problem.logits.shape))
    second, count = 0.0, 0
    at_once = max(1, min(AT_ONCE, _NUMBERS_AT_ONCE // problem.sequences.mask.numel()))
    for rows, probabilities in all_multisets(share, group_size, at_once):
        numbers = share.new_zeros(len(rows), len(kinds)).scatter_add_(1, rows, share.new_ones(rows.shape))
        rewards, lengths = kinds[rows].unbind(dim=-1)
        advantages = estimator(GroupedRewards(rewards.flatten(), group_size, lengths.flatten().long()))
        every, of_group = _totals(objective, rewards, lengths)
        of_kind = torch.zeros_like(numbers).scatter_(1, rows, advantages.view(rows.shape))
        mean, variance = share.new_zeros(len(rows), len(first)), share.new_zeros(len(rows))
        for kind in range(len(kinds)):
            there = numbers[:, kind].nonzero().squeeze(-1)
            sequences = (kind_of == kind).nonzero().squeeze(-1)
            own = _within(problem, objective, sequences, of_kind[there, kind], every, of_group[there])
            mean[there] += numbers[there, kind, None] * own[0]
            variance[there] += numbers[there, kind] * own[1]
        first += probabilities @ mean
        second += float(probabilities @ (mean.square().sum(dim=-1) + variance))
        count += len(rows)
    return Moments.of(first, second, count, True)


def _kinds(problem: Problem) -> tuple[Tensor, Tensor]:
    """Return reward and length of each kind, shape `kind 2`, and the kind of each sequence."""
    both = torch.stack([problem.rewards, problem.lengths.to(problem.rewards)], dim=-1)
    return both.unique(dim=0, return_inverse=True)


def _totals(objective: PolicyObjective, rewards: Tensor, lengths: Tensor) -> tuple[list[StepTotals], Tensor]:
    """Return the different totals of groups that are steps by themselves, and the number of those of each group.

    Groups with the same totals are evaluated together, so rewards are among them only if the objective follows them.

    Args:
        objective: Objective that reads the totals.
        rewards: Reward of each completion; shape `group completion`.
        lengths: Number of tokens of each completion; shape `group completion`.
    """
    columns = [lengths.sum(dim=-1).to(rewards)]
    if _follows_rewards(objective):
        columns += [rewards.mean(dim=-1), rewards.std(dim=-1, correction=0)]
    different, number = torch.stack(columns, dim=-1).unique(dim=0, return_inverse=True)
    size = rewards.shape[1]
    return [StepTotals(size, int(tokens), 0.0, *more) for tokens, *more in different.tolist()], number


def _follows_rewards(objective: PolicyObjective) -> bool:
    """Whether a part of an objective requires the rewards of the step, found by leaving them out."""
    one = torch.ones(1, 1, dtype=torch.float64)
    try:
        objective.gradient_weights(-one, PolicyBatch(-one, one, one[0], StepTotals(1, 1, 0.0), groups=torch.zeros(1)))
    except ValueError as error:
        return "`totals.reward_" in str(error)
    return False


def _within(
    problem: Problem,
    objective: PolicyObjective,
    sequences: Tensor,
    advantages: Tensor,
    every: list[StepTotals],
    of_group: Tensor,
) -> tuple[Tensor, Tensor]:
    """Return mean and variance of the gradient of a completion, given that it is one of some sequences.

    Args:
        problem: Policies and rewards.
        objective: Objective to differentiate.
        sequences: Numbers of the sequences.
        advantages: Advantage of the completion in each of some groups; shape `group`.
        every: Different totals of the groups.
        of_group: Number of the totals of each of these groups; shape `group`.
    """
    share = rearrange(problem.behavior[sequences] / problem.behavior[sequences].sum(), "sequence -> sequence 1")
    weights = share.new_zeros(len(advantages), len(sequences), problem.sequences.mask.shape[1])
    for number in of_group.unique().tolist():
        chosen = of_group == number
        rows = repeat(sequences, "sequence -> (group sequence)", group=int(chosen.sum()))
        repeated = repeat(advantages[chosen], "group -> (group sequence)", sequence=len(sequences))
        flat = problem.weights(objective, rows, repeated, every[number])
        weights[chosen] = rearrange(flat, "(group sequence) time -> group sequence time", sequence=len(sequences))
    mean = problem.sequences.gradient(problem.logits, share * weights, sequences)
    # The gradients of different tokens of a sequence are orthogonal: each has parameters of its own.
    lengths = share * problem.sequences.squared_scores(problem.logits)[sequences]
    squared = einsum(weights.square(), lengths, "group sequence time, sequence time -> group")
    return mean, squared - mean.square().sum(dim=-1)
