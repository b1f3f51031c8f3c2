"""verl's advantage estimators as functions of our `GroupedRewards`."""

import numpy as np
import torch
from verl.trainer.config import AlgoConfig
from verl.trainer.ppo.core_algos import get_adv_estimator_fn

PROMPT_TOKENS = 2


def verl_advantages(name, step, config=None, **arguments):
    """Advantages per token, 0 on padding; shape `batch time`.

    Args:
        name: name of the registered estimator.
        step: the rewards; each belongs to the last token of its completion.
        config: fields of `AlgoConfig`, with its defaults.
        arguments: more arguments of the estimator.
    """
    rewards = step.rewards
    mask = response_mask(step)
    token_rewards = torch.zeros(mask.shape, dtype=rewards.dtype)
    token_rewards[torch.arange(len(rewards)), mask.sum(dim=-1) - 1] = rewards
    advantages, _ = get_adv_estimator_fn(name)(
        token_level_rewards=token_rewards,
        response_mask=mask,
        index=np.arange(len(rewards)) // step.group_size,
        config=AlgoConfig(**(config or {})),
        **arguments,
    )
    return advantages


def verl_gdpo(step, weights=None):
    """GDPO, which takes its rewards one by one and from numpy, in single precision."""
    keys = [f"reward {index}" for index in range(step.components.shape[-1])]
    mask = response_mask(step)
    prompts = torch.ones(len(mask), PROMPT_TOKENS, dtype=torch.long)
    return verl_advantages(
        "gdpo",
        step,
        config={"gdpo_reward_keys": keys, "gdpo_reward_weights": weights},
        non_tensor_batch=dict(zip(keys, step.components.T.numpy(), strict=True)),
        batch={"prompts": prompts, "attention_mask": torch.cat([prompts, mask], dim=-1)},
    )


def response_mask(step):
    """Mask of completions without holes, as integers, which is what verl's trainer passes; shape `batch time`."""
    return (torch.arange(int(step.lengths.max())) < step.lengths.unsqueeze(-1)).long()
