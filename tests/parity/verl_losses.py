"""verl's registered losses as functions of a `PolicyBatch`."""

from verl.trainer.ppo.core_algos import agg_loss, get_policy_loss_fn, kl_penalty
from verl.workers.config import ActorConfig, PolicyLossConfig


def verl_run(log_probs, batch, name, mode="token-mean", options=None, length=None, **config):
    """Loss of one micro-batch and the metrics that verl logs with it.

    Args:
        name: name of the registered loss.
        mode: `loss_agg_mode`.
        options: fields of `PolicyLossConfig`.
        length: the constant of `seq-mean-token-sum-norm`; the padded width when None.
        config: fields of `ActorConfig`, with its defaults.
    """
    return get_policy_loss_fn(name)(
        old_log_prob=batch.old_log_probs,
        log_prob=log_probs,
        advantages=per_token(batch.advantages, log_probs),
        response_mask=batch.response_mask,
        loss_agg_mode=mode,
        config=ActorConfig(
            strategy="fsdp",
            rollout_n=1,
            ppo_micro_batch_size_per_gpu=1,
            policy_loss=PolicyLossConfig(**(options or {})),
            global_batch_info=_step(batch, length),
            **config,
        ),
    )


def verl_loss(log_probs, batch, name, **settings):
    """Loss of one micro-batch; see `verl_run`."""
    return verl_run(log_probs, batch, name, **settings)[0]


def verl_kl_loss(log_probs, batch, estimator, mode="token-mean"):
    """The KL penalty as verl adds it to a loss."""
    costs = kl_penalty(log_probs, batch.ref_log_probs, estimator)
    return agg_loss(costs, batch.response_mask, mode, **_step(batch, length=None))


def per_token(advantages, log_probs):
    """Advantages as verl has them: one for each token, whatever the estimator."""
    return advantages if advantages.ndim == 2 else advantages.unsqueeze(-1).expand_as(log_probs)


def _step(batch, length):
    """Counts over the optimizer step, which verl's trainer hands to every micro-batch."""
    return {
        "dp_size": 1,
        "batch_num_tokens": batch.totals.tokens,
        "global_batch_size": batch.totals.completions,
        "loss_scale_factor": length,
    }
