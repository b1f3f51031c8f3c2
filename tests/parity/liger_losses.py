"""Liger's losses as functions of a `PolicyBatch`."""

from liger_kernel.chunked_loss.grpo_loss import LigerFusedLinearGRPOFunction


def liger_loss(log_probs, batch, step_mask=None, **settings):
    """Loss of one chunk of a batch.

    Args:
        step_mask: response mask of all chunks, if there are several.
        settings: arguments of `ppo_loss_fn`; its KL penalty is off unless they say otherwise.
    """
    loss, _ = LigerFusedLinearGRPOFunction.ppo_loss_fn(
        per_token_logps=log_probs,
        attention_mask=batch.response_mask,
        advantages=batch.advantages,
        full_attention_mask=batch.response_mask if step_mask is None else step_mask,
        old_per_token_logps=batch.old_log_probs,
        ref_per_token_logps=batch.ref_log_probs,
        num_items_in_batch=batch.totals.tokens,
        **{"beta": 0.0, **settings},
    )
    return loss
