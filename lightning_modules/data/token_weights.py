"""Weights of the tokens of this rank in every mean, from the completions of all ranks."""

from __future__ import annotations

from typing import cast

import torch
from einops import rearrange
from lightning import Trainer
from torch import Tensor
from torch.nn.functional import pad

from aggregate_po import PerToken, PolicyObjective, TokenWeighting
from aggregate_po.shapes import require_shape
from lightning_modules.data.groups import Groups
from lightning_modules.distributed import data_parallel_rank, data_parallel_size, gathered_over_ranks


def token_weights(
    weighting: TokenWeighting | None, groups: Groups, entropies: PerToken | None, trainer: Trainer
) -> tuple[PerToken | None, dict[str, float]]:
    """Return the weights of the tokens of this rank, and `tokens/trained_ratio`; None and no metric without weighting.

    Args:
        weighting: rule for the weights; it receives the tokens of all ranks in prompt order, for any number of ranks.
        groups: groups of this rank; every rank has the same number.
        entropies: entropies of the tokens of this rank under the behavior policy, if known; shape `batch time`; nats.
        trainer: trainer, for collectives over ranks.

    Raises:
        ValueError: the weighting returned a wrong shape.
    """
    if weighting is None:
        return None, {}
    sizes = {"rank": data_parallel_size(trainer), "group": groups.group_size}
    mask = groups.response_mask
    columns = [mask.float(), *([] if entropies is None else [entropies.float()])]
    width = int(gathered_over_ranks(torch.tensor([[mask.shape[1]]]), trainer).max())
    table = pad(torch.stack(columns), (0, width - mask.shape[1]))
    gathered = gathered_over_ranks(rearrange(table, "column batch time -> batch time column"), trainer)
    pattern = "(rank prompt group) time column -> column (prompt rank group) time"
    present, *known = rearrange(gathered, pattern, **sizes)
    everywhere = present.bool()
    weights = weighting(everywhere, known[0] if known and weighting.needs_entropies else None)
    require_shape(weighting, "__call__", weights, "`batch time`", everywhere.shape)
    kept = int(((weights > 0) & everywhere).sum()) / max(int(everywhere.sum()), 1)
    by_rank = rearrange(weights, "(prompt rank group) time -> rank (prompt group) time", **sizes)
    return by_rank[data_parallel_rank(trainer), :, : mask.shape[1]], {"tokens/trained_ratio": kept}


def require_weights_taken(weighting: TokenWeighting | None, trainer: Trainer) -> None:
    """Check that the parts of the objective are defined for the weights, before anything is sampled.

    Raises:
        ValueError: a part counts every token once, and the weights are not boolean.
    """
    objective = cast(PolicyObjective, trainer.lightning_module.objective)
    if weighting is None or objective.takes_mean_weights:
        return
    example: Tensor = weighting(torch.ones(1, 2, dtype=torch.bool), torch.tensor([[0.0, 1.0]]))
    if example.dtype != torch.bool:
        raise ValueError(
            f"`token_weights` is {weighting!r}, but a part of the objective counts every token once: {objective!r}; "
            "pass a rule whose weights are boolean, such as TopEntropy, or another objective."
        )
