"""Metrics of a rollout: rewards, lengths, and the mismatch between sampler and trainer."""

from __future__ import annotations

import math
import statistics

import torch
from einops import rearrange
from lightning import Trainer
from torch import Tensor

from aggregate_po import CorrectionWeights, PerCompletion, PerToken
from aggregate_po.advantages.rounding import equal_up_to_rounding
from aggregate_po.advantages.scored import filled, with_company
from aggregate_po.corrections import log_mismatch
from lightning_modules.data.groups import Groups
from lightning_modules.data.verdicts import failed_by_cause
from lightning_modules.distributed import gathered_values
from lightning_modules.rewards import WeightedRewards
from lightning_modules.tally import Tally

_VERDICTS = "verdicts of "


def rollout_metrics(
    groups: Groups, rewards: PerCompletion, functions: WeightedRewards, mismatch: Tally, trainer: Trainer
) -> dict[str, float]:
    """Return the metrics of a rollout over all ranks, by name.

    Args:
        groups: groups of this rank.
        rewards: total reward of each completion, the KL penalty included; shape `batch`.
        functions: the single rewards.
        mismatch: mismatch between sampler and trainer, counted on this rank.
        trainer: trainer, for collectives over ranks and the current step.

    Raises:
        RuntimeError: no completion has a reward.
    """
    oldest = Tally(minima={"policy_step": groups.policy_step})
    tally = (completion_tally(groups, rewards, functions) + oldest).over_ranks(trainer)
    _require_verdicts(tally, groups)
    return {
        **completion_metrics(tally),
        "reward_std": _deviation(torch.cat(gathered_values(rewards[groups.scored].double(), trainer))),
        **mismatch_metrics(mismatch.over_ranks(trainer)),
        **groups.metrics,
        "rollout/staleness": trainer.global_step - tally.minima["policy_step"],
    }


def _require_verdicts(tally: Tally, groups: Groups) -> None:
    if not tally.sums["scored"]:
        raise RuntimeError(
            f"the verdicts on all {tally.sums['completions']:.0f} completions of the rollout failed "
            f"({failed_by_cause(groups.metrics)}), so there is nothing to learn from; see the warnings above, and "
            "correct the reward before you resume."
        )


def completion_tally(groups: Groups, rewards: PerCompletion, functions: WeightedRewards) -> Tally:
    """Return the sums over the completions of this rank that `completion_metrics` needs.

    Args:
        groups: groups of this rank.
        rewards: total reward of each completion, the KL penalty included; shape `batch`.
        functions: the single rewards.
    """
    scored, size = groups.scored, groups.group_size
    counted = torch.where(scored, rewards.double(), 0)
    by_group = rearrange(filled(rewards.double(), scored, size), "(prompt group) -> prompt group", group=size)
    compared = rearrange(with_company(scored, size), "(prompt group) -> prompt group", group=size)
    present = compared.any(dim=-1)
    single = zip(functions.names, *_single_sums(groups, functions), strict=True)
    return Tally.of(
        completions=torch.tensor(rewards.numel()),
        scored=scored.sum(),
        reward=counted.sum(),
        groups=torch.tensor(len(by_group)),
        compared_groups=present.sum(),
        group_std=_deviations(by_group, compared)[present].sum(),
        equal_groups=(equal_up_to_rounding(by_group, rewards.dtype) | ~present).sum(),
        tokens=groups.completions.mask.sum(),
        truncated=(~groups.completions.finished).sum(),
        **{key: value for name, *sums in single for key, value in zip(_keys(name), sums, strict=True)},
    )


def _deviations(by_group: Tensor, counted: Tensor) -> Tensor:
    """Return the unbiased standard deviation of the counted values of each group; shape `prompt`."""
    deviations = torch.where(counted, by_group - by_group.mean(dim=-1, keepdim=True), 0)
    largest = deviations.abs().amax(dim=-1)  # its square could overflow
    shares = deviations / torch.where(largest > 0, largest, 1).unsqueeze(-1)
    return largest * (shares.square().sum(dim=-1) / (counted.sum(dim=-1) - 1).clamp(min=1)).sqrt()


def _deviation(rewards: PerCompletion) -> float:
    """Return the standard deviation of the rewards, correctly rounded: the same on any number of ranks, in any order.

    From sums of squares it would have no digits left where rewards differ little, and none where these overflow.
    """
    values = rewards.tolist()
    return statistics.pstdev(values) if all(map(math.isfinite, values)) else math.nan


def _keys(name: str) -> tuple[str, str]:
    return f"rewards/{name}", f"{_VERDICTS}{name}"


def _single_sums(groups: Groups, functions: WeightedRewards) -> tuple[Tensor, Tensor]:
    """Return the sum and the number of the values of each reward; shape `component`.

    They are of the completions that have a reward, without failed verdicts of a reward that is only measured.
    """
    failed = torch.tensor([[cause is not None for cause in row] for row in groups.causes])
    measured = torch.tensor(functions.weights) == 0
    counted = groups.scored.unsqueeze(-1) & ~(failed & measured)
    return torch.where(counted, groups.components.double(), 0).sum(dim=0), counted.sum(dim=0)


def completion_metrics(tally: Tally) -> dict[str, float]:
    """Return metrics by name, of one completion with a reward or more; `reward_group_std` is the mean over groups.

    Rewards are those of the completions that have one.
    """
    sums = tally.sums
    completions, scored = sums["completions"], sums["scored"]
    verdicts = {name.removeprefix(_VERDICTS): count for name, count in sums.items() if name.startswith(_VERDICTS)}
    return {
        "reward": sums["reward"] / scored,
        "reward_group_std": sums["group_std"] / max(sums["compared_groups"], 1),
        "frac_reward_zero_std": sums["equal_groups"] / sums["groups"],
        "completions/mean_length": sums["tokens"] / completions,
        "completions/clipped_ratio": sums["truncated"] / completions,
        "num_tokens": sums["tokens"],
        **{f"rewards/{name}/mean": sums[f"rewards/{name}"] / count for name, count in verdicts.items() if count},
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
