"""Advantages of single denoising steps, from a reward at every step."""

from __future__ import annotations

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor
from typing_extensions import override

from aggregate_po.advantages.base import AdvantageEstimator, GroupedRewards
from aggregate_po.advantages.statistics import ratio
from aggregate_po.arguments import require_non_negative, require_numbers, require_whole
from aggregate_po.batch import PerToken
from aggregate_po.masked import divisor, masked_max, masked_mean, masked_sum
from aggregate_po.scans import linear_recurrence


@dataclass(frozen=True)
class StepValues(AdvantageEstimator):
    r"""Discounted rewards of the steps from each step on, compared within the group step by step (eq. 67).

    With the value $Q_t = \sum_{j \ge t} \gamma^{j-t} R_j$ and its share $\omega_t = Q_t / \bar Q$ of the mean $\bar Q$
    over the trajectory, $A_t = (v_t - \mu_t) / (\sigma_t + \delta) + k v_t$ for $v_t = \omega_t Q_t$.
    Mean $\mu_t$ and unbiased standard deviation $\sigma_t$ are over the group. The absolute term $k v_t$ keeps a signal
    where all trajectories of a group are equal. It is added in the first steps only.

    A trajectory whose rewards are all 0 has $v_t = 0$, the limit of small rewards. Steps beyond the length of a
    completion have advantage 0.

    Args:
        discount: Discount factor $\gamma$ of the reward of the next step; this library's choice.
        absolute: Weight $k$ of the absolute term; 0 for none; this library's choice.
        absolute_steps: Number of steps, from the first, with the absolute term. The paper has it in 5 of 10.
        delta: Constant added to the standard deviation, against division by 0; that of the code of Flow-GRPO.

    Raises:
        ValueError: `discount` is not between 0 and 1, `absolute_steps` is not whole, or a number is negative; when
            called, if `step_rewards` are missing, or one is negative.

    Example:
        >>> steps = torch.tensor([[1.0, 1.0], [3.0, 1.0]])
        >>> rollout = GroupedRewards(steps.sum(dim=-1), group_size=2, step_rewards=steps)
        >>> StepValues(discount=1.0, absolute=0.0)(rollout)  # values 2, 1 and 4, 1 become 8/3, 2/3 and 32/5, 2/5
        tensor([[-0.7071,  0.7067],
                [ 0.7071, -0.7067]])

    Reference: VGPO, arXiv:2512.12387. Its equations for the advantage could not be read; the one above is a
    reconstruction from its description.
    """

    discount: float = 0.9
    absolute: float = 0.1
    absolute_steps: int = 5
    delta: float = 1e-4

    def __post_init__(self) -> None:
        require_numbers(discount=self.discount)
        if not 0 <= self.discount <= 1:
            raise ValueError(f"`discount` is {self.discount}; pass a number from 0 to 1, 1 for none.")
        require_non_negative(absolute=self.absolute, delta=self.delta)
        require_whole(0, absolute_steps=self.absolute_steps)

    @property
    @override
    def needs_step_rewards(self) -> bool:
        return True

    @override
    def __call__(self, rollout: GroupedRewards) -> PerToken:
        rewards = rollout.required("step_rewards", self)
        present = _present(rollout, rewards)
        weighted = self._weighted_values(torch.where(present, rewards, 0), present)
        values, counted = (
            rearrange(tensor, "(prompt group) time -> prompt time group", group=rollout.group_size)
            for tensor in (weighted, present)
        )
        relative = rearrange(self._normalized(values, counted), "prompt time group -> (prompt group) time")
        early = torch.arange(present.shape[-1], device=present.device) < self.absolute_steps
        return rollout.rounded(torch.where(present, relative + self.absolute * early * weighted, 0))

    def _normalized(self, values: Tensor, present: Tensor) -> Tensor:
        """Return the deviations from the mean of the values present, over their standard deviation; 0 where equal."""
        deviations = values - rearrange(masked_max(values, present), "prompt time -> prompt time 1")
        deviations = deviations - masked_mean(deviations, present).unsqueeze(-1)
        variance = masked_sum(deviations.square(), present) / divisor(present.sum(dim=-1) - 1)
        return ratio(deviations, variance.sqrt().unsqueeze(-1) + self.delta)

    def _weighted_values(self, rewards: PerToken, present: PerToken) -> PerToken:
        """Return the value of each step times its share, in float64; shape `batch time`."""
        if (rewards < 0).any():
            raise ValueError(
                f"`step_rewards` has {rewards.min().item()}, but {type(self).__name__} weights a step by its share of "
                "the values of the trajectory, which needs rewards of 0 or more; add a constant to all of them."
            )
        decay = torch.full_like(rewards, self.discount, dtype=torch.float64)
        values = linear_recurrence(decay, rewards.double().flip(-1)).flip(-1)
        return ratio(values.square(), masked_mean(values, present).unsqueeze(-1))


def _present(rollout: GroupedRewards, rewards: PerToken) -> PerToken:
    """Return True on the steps of completions that have a reward; shape `batch time`."""
    present = torch.ones_like(rewards, dtype=torch.bool)
    if rollout.lengths is not None:
        time = torch.arange(rewards.shape[-1], device=rewards.device)
        present = time < rearrange(rollout.lengths, "batch -> batch 1")
    return present if rollout.scored is None else present & rearrange(rollout.scored, "batch -> batch 1")
