"""Softmax policies in the logarithm, and the steps of policy gradient methods from one sampled action.

Leading dimensions of logits, such as runs or states, are independent; the last one is the action.
"""

from __future__ import annotations

import torch
from torch import Tensor


def log_complement(logits: Tensor, action: int) -> Tensor:
    """Return the logarithm of the probability of all other actions, accurate also where it is tiny.

    Args:
        logits: Logits of the policy; shape `... action`.
        action: Number of the action.
    """
    others = torch.cat([logits[..., :action], logits[..., action + 1 :]], dim=-1)
    return others.logsumexp(dim=-1) - logits.logsumexp(dim=-1)


def baseline(logits: Tensor, values: Tensor, used: bool) -> Tensor:
    """Return the expected value of an action, or 0 without a baseline; shape `...`.

    Args:
        logits: Logits of the policy; shape `... action`.
        values: Value of each action; shape `... action`.
        used: Whether there is a baseline.
    """
    return (logits.softmax(dim=-1) * values).sum(dim=-1) if used else torch.zeros(logits.shape[:-1]).double()


def sample(logits: Tensor, generator: torch.Generator) -> Tensor:
    """Return an action of each policy; shape `...`.

    Args:
        logits: Logits of the policies; shape `... action`.
        generator: Source of random numbers.
    """
    cumulative = logits.softmax(dim=-1).cumsum(dim=-1)
    thresholds = torch.rand(logits.shape[:-1], generator=generator, dtype=logits.dtype).unsqueeze(-1)
    return (cumulative <= thresholds * cumulative[..., -1:]).sum(dim=-1).clamp(max=logits.shape[-1] - 1)


def policy_gradient_step(logits: Tensor, action: Tensor, advantage: Tensor, step_size: float) -> Tensor:
    r"""Return $\theta + \eta A (1_a - \pi)$, the step of the policy gradient from one action.

    Args:
        logits: Logits $\theta$; shape `... action`.
        action: Action that was sampled; shape `...`.
        advantage: Reward of that action minus the baseline; shape `...`.
        step_size: Step size $\eta$.
    """
    change = -logits.softmax(dim=-1)
    change.scatter_add_(-1, action.unsqueeze(-1), torch.ones_like(change[..., :1]))
    return logits + step_size * advantage.unsqueeze(-1) * change


def natural_step(logits: Tensor, action: Tensor, advantage: Tensor, step_size: float) -> Tensor:
    r"""Return $\theta + \eta A 1_a / \pi(a)$, the importance-sampled step of the natural policy gradient.

    Args:
        logits: Logits $\theta$; shape `... action`.
        action: Action that was sampled, of positive probability; shape `...`.
        advantage: Reward of that action minus the baseline; shape `...`.
        step_size: Step size $\eta$.
    """
    index = action.unsqueeze(-1)
    probability = logits.softmax(dim=-1).gather(-1, index)
    return logits.scatter_add(-1, index, step_size * advantage.unsqueeze(-1) / probability)
