"""Metrics of a rollout: rewards, lengths, and the mismatch between sampler and trainer."""

from __future__ import annotations

import math
from collections.abc import Sequence

import torch
from einops import rearrange
from lightning import Trainer
from torch import Tensor

from aggregate_po import CorrectionWeights, PerCompletion, PerToken
from aggregate_po.advantages.base import equal_up_to_rounding
from aggregate_po.corrections import log_mismatch
from lightning_modules.data.groups import Groups
from lightning_modules.tally import Tally


def rollout_metrics(
    groups: Groups, rewards: PerCompletion, reward_names: Sequence[str], mismatch: Tally, trainer: Trainer
) -> dict[str, float]:
    """Return the metrics of a rollout over all ranks, by name.

    Args:
        groups: groups of this rank.
        rewards: total reward of each completion, the KL penalty included; shape `batch`.
        reward_names: names of the single rewards.
        mismatch: mismatch between sampler and trainer, counted on this rank.
        trainer: trainer, for collectives over ranks and the current step.
    """
    return {
        **completion_metrics(completion_tally(groups, rewards, reward_names).over_ranks(trainer)),
        **mismatch_metrics(mismatch.over_ranks(trainer)),
        **groups.metrics,
        "rollout/staleness": trainer.global_step - groups.policy_step,
    }


def completion_tally(groups: Groups, rewards: PerCompletion, reward_names: Sequence[str]) -> Tally:
    """Return the sums over the completions of this rank that `completion_metrics` needs.

    Args:
        groups: groups of this rank.
        rewards: total reward of each completion, the KL penalty included; shape `batch`.
        reward_names: names of the single rewards.
    """
    by_group = rearrange(rewards.double(), "(prompt group) -> prompt group", group=groups.group_size)
    single = zip(reward_names, groups.components.double().sum(dim=0), strict=True)
    return Tally.of(
        completions=torch.tensor(rewards.numel()),
        reward=rewards.double().sum(),
        squared_reward=rewards.double().square().sum(),
        groups=torch.tensor(len(by_group)),
        group_std=by_group.std(dim=-1).sum(),
        equal_groups=equal_up_to_rounding(by_group, rewards.dtype).sum(),
        tokens=groups.completions.mask.sum(),
        truncated=(~groups.completions.finished).sum(),
        **{f"rewards/{name}": total for name, total in single},
    )


def completion_metrics(tally: Tally) -> dict[str, float]:
    """Return metrics by name; `reward_std` is over all completions, `reward_group_std` the mean over groups."""
    sums = tally.sums
    completions, groups = sums["completions"], sums["groups"]
    mean = sums["reward"] / completions
    return {
        "reward": mean,
        "reward_group_std": sums["group_std"] / groups,
        "reward_std": math.sqrt(max(sums["squared_reward"] / completions - mean * mean, 0.0)),
        "frac_reward_zero_std": sums["equal_groups"] / groups,
        "completions/mean_length": sums["tokens"] / completions,
        "completions/clipped_ratio": sums["truncated"] / completions,
        "num_tokens": sums["tokens"],
        **{f"{name}/mean": total / completions for name, total in sums.items() if name.startswith("rewards/")},
    }


def mismatch_tally(
    old_log_probs: PerToken, rollout_log_probs: PerToken, response_mask: PerToken, weights: CorrectionWeights
) -> Tally:
    """Return the sums over the tokens of this rank that `mismatch_metrics` needs.

    Args:
        old_log_probs: log-probabilities computed by the trainer; shape `batch time`; nats.
        rollout_log_probs: log-probabilities of the sampler, not finite if missing; shape `batch time`; nats.
        response_mask: True on trained tokens; shape `batch time`.
        weights: correction weights.
    """
    known = response_mask & torch.isfinite(rollout_log_probs)
    log_weight = log_mismatch(old_log_probs, rollout_log_probs, response_mask).double()
    differences = log_weight.abs()[known]
    applied = _applied(weights, log_weight, response_mask)
    sums = Tally.of(
        known=known.sum(),
        missing=(response_mask & ~known).sum(),
        absolute_difference=differences.sum(),
        difference=log_weight[known].sum(),
        weights=torch.tensor(len(applied)),
        weight=applied.sum(),
        squared_weight=applied.square().sum(),
    )
    maxima = {"difference": _largest(differences), "weight": _largest(applied)}
    return sums + Tally(minima={"weight": float(applied.amin()) if len(applied) else math.inf}, maxima=maxima)


def mismatch_metrics(tally: Tally) -> dict[str, float]:
    """Return metrics of the differences (trainer minus sampler, in nats) and of the correction weights, by name.

    The result is empty if the sampler is the behavior policy.
    """
    if not tally.sums:
        return {}
    sums = tally.sums
    tokens, weights = max(sums["known"], 1), max(sums["weights"], 1)
    squares = sums["squared_weight"]
    return {
        "sampling/sampling_logp_difference/mean": sums["absolute_difference"] / tokens,
        "sampling/sampling_logp_difference/max": tally.maxima["difference"],
        "sampling/kl": -sums["difference"] / tokens,
        "sampling/missing_log_probs": sums["missing"],
        "sampling/importance_sampling_ratio/min": tally.minima["weight"],
        "sampling/importance_sampling_ratio/mean": sums["weight"] / weights,
        "sampling/importance_sampling_ratio/max": tally.maxima["weight"],
        "sampling/ess_fraction": sums["weight"] ** 2 / (weights * squares) if squares else 0.0,
    }


def _largest(values: Tensor) -> float:
    return float(values.amax()) if len(values) else 0.0


def _applied(weights: CorrectionWeights, log_weight: PerToken, response_mask: PerToken) -> Tensor:
    """Return the weight of each completion, or of each token if the correction has weights or a mask of tokens.

    Without a correction, it is the untruncated weight that each token would have.
    """
    log_sequence = weights.log_sequence
    if weights.log_token is None and weights.kept is None:
        if log_sequence is None:
            return log_weight[response_mask].exp()
        return log_sequence[response_mask.any(dim=-1)].double().exp()
    log_token = torch.zeros_like(log_weight) if weights.log_token is None else weights.log_token.double()
    if log_sequence is not None:
        log_token = log_token + log_sequence.double().unsqueeze(-1)
    kept = torch.ones_like(response_mask) if weights.kept is None else weights.kept
    return torch.where(kept, log_token.exp(), 0)[response_mask]
