"""Figures of how far the sampler is from the policy as the trainer computes it."""

from __future__ import annotations

from typing import Annotated

import torch
from torch import Tensor

from aggregate_po import CorrectionWeights, PerToken
from aggregate_po.corrections import log_mismatch

MismatchFigures = Annotated[Tensor, "figure"]


def mismatch_figures(
    old_log_probs: PerToken, rollout_log_probs: PerToken, response_mask: PerToken, weights: CorrectionWeights
) -> MismatchFigures:
    """What one rank knows: sums and extremes of its tokens' differences, and of the weights that they are given."""
    known = response_mask & torch.isfinite(rollout_log_probs)
    log_weight = log_mismatch(old_log_probs, rollout_log_probs, response_mask).double()
    differences = log_weight.abs()[known]
    applied = _applied(weights, log_weight, response_mask)
    return torch.stack(
        [
            known.sum().double(),
            (response_mask & ~known).sum().double(),
            differences.sum(),
            differences.amax() if len(differences) else differences.sum(),
            log_weight[known].sum(),
            torch.tensor(len(applied), dtype=torch.double),
            applied.sum(),
            applied.square().sum(),
            applied.amin() if len(applied) else torch.tensor(torch.inf, dtype=torch.double),
            applied.amax() if len(applied) else applied.sum(),
        ]
    )


def named(ranks: Annotated[Tensor, "rank figure"]) -> dict[str, float]:
    """The figures of all ranks by name: `log_probs` of the trainer less those of the sampler, in nats, and weights."""
    known, missing, total, _, signed, count, weights, squares, _, _ = ranks.sum(dim=0).tolist()
    largest, smallest_weight, largest_weight = ranks[:, 3].max(), ranks[:, 8].min(), ranks[:, 9].max()
    tokens, items = max(known, 1), max(count, 1)
    return {
        "sampling/sampling_logp_difference/mean": total / tokens,
        "sampling/sampling_logp_difference/max": float(largest),
        "sampling/kl": -signed / tokens,
        "sampling/missing_log_probs": missing,
        "sampling/importance_sampling_ratio/min": float(smallest_weight),
        "sampling/importance_sampling_ratio/mean": weights / items,
        "sampling/importance_sampling_ratio/max": float(largest_weight),
        "sampling/ess_fraction": weights**2 / (items * squares) if squares else 0.0,
    }


def _applied(weights: CorrectionWeights, log_weight: PerToken, response_mask: PerToken) -> Tensor:
    """Weight of each completion, or of each token; without a correction the one that each token would have."""
    if weights.log_sequence is not None:
        return weights.log_sequence[response_mask.any(dim=-1)].double().exp()
    log_token = log_weight if weights.log_token is None else weights.log_token.double()
    kept = torch.ones_like(response_mask) if weights.kept is None else weights.kept
    return torch.where(kept, log_token.exp(), 0)[response_mask]
