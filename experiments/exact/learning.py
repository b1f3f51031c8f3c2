"""Learning without sampling error: a policy that follows the mean of its gradient estimate."""

from __future__ import annotations

import torch
from torch import Tensor

from aggregate_po import AdvantageEstimator, PolicyObjective
from experiments.exact.estimates import moments
from experiments.exact.policies import Sequences
from experiments.exact.problems import Problem


def learning_curve(
    sequences: Sequences,
    rewards: Tensor,
    objective: PolicyObjective,
    estimator: AdvantageEstimator,
    group_size: int,
    rollouts: int,
    updates_per_rollout: int,
    learning_rate: float,
) -> list[float]:
    """Return the expected reward before the first rollout and after each, from the uniform policy on.

    Every update is a step of gradient ascent along the mean of the estimate over all groups of the behavior policy,
    which is the policy at the start of the rollout.

    Args:
        sequences: All sequences.
        rewards: Reward of each sequence; shape `sequence`.
        objective: Objective to follow.
        estimator: Advantages from the rewards of a group.
        group_size: Completions per group.
        rollouts: Number of rollouts.
        updates_per_rollout: Updates on each rollout.
        learning_rate: Size of a step.
    """
    logits = torch.zeros(sequences.shape, dtype=torch.float64)
    curve = [float(sequences.expected_reward(logits, rewards))]
    for _ in range(rollouts):
        old_logits = logits
        for _ in range(updates_per_rollout):
            problem = Problem(sequences, rewards, logits, old_logits)
            mean = moments(problem, objective, estimator, group_size).mean
            logits = logits + learning_rate * mean.view(logits.shape)
        curve.append(float(sequences.expected_reward(logits, rewards)))
    return curve
