"""The one forward pass that every objective is reached through."""

from __future__ import annotations

import torch
from einops import rearrange
from transformers import DynamicCache, PreTrainedModel

from aggregate_po import PerToken
from aggregate_po.bounds import working_precision
from lightning_modules.rollout_batch import RolloutBatch


def log_probs_and_entropy(model: PreTrainedModel, batch: RolloutBatch) -> tuple[PerToken, PerToken]:
    """Log-probabilities of the completions' tokens, and the entropy of each distribution, outside the graph.

    A prompt is read once, and its keys and values serve all its completions, in the backward pass too.
    """
    cache = DynamicCache(config=model.config)
    prompt_mask = batch.prompt_mask
    prompt = model(
        input_ids=batch.prompt_ids,
        attention_mask=prompt_mask.long(),
        position_ids=(prompt_mask.cumsum(dim=-1) - 1).clamp(min=0),
        past_key_values=cache,
        use_cache=True,
        logits_to_keep=1,
    )
    # A token is predicted one place before it: the first by the prompt, the last one predicts nothing.
    logits = prompt.logits[batch.prompt_of]
    if batch.completion_ids.shape[1] > 1:
        cache.batch_select_indices(batch.prompt_of)
        mask = torch.cat([prompt_mask[batch.prompt_of], batch.completion_mask[:, :-1]], dim=1)
        completion = model(
            input_ids=batch.completion_ids[:, :-1],
            attention_mask=mask.long(),
            position_ids=mask.cumsum(dim=-1)[:, prompt_mask.shape[1] :] - 1,
            past_key_values=cache,
            use_cache=True,
        )
        logits = torch.cat([logits, completion.logits], dim=1)
    logits = working_precision(logits) / batch.temperature
    normalizer = torch.logsumexp(logits, dim=-1)
    chosen = logits.gather(-1, rearrange(batch.completion_ids, "batch time -> batch time 1"))
    with torch.no_grad():
        expected = (torch.exp(logits - normalizer.unsqueeze(-1)) * logits).sum(dim=-1)
    return rearrange(chosen, "batch time 1 -> batch time") - normalizer, normalizer.detach() - expected
