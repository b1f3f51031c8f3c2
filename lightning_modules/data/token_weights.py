"""Weights of the tokens of this rank in every mean, from the completions of all ranks."""

from __future__ import annotations

import torch
from einops import rearrange
from lightning import Trainer
from torch.nn.functional import pad

from aggregate_po import PerToken, TokenWeighting
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
