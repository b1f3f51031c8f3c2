"""Random groups of completions: values for group objectives, and rewards for advantage estimators."""

import torch
from hypothesis import strategies as st
from hypothesis.strategies import DrawFn, SearchStrategy
from torch import Tensor

from aggregate_po.advantages import GroupedRewards
from aggregate_po.group_objectives import GroupValues
from aggregate_po.testing.strategies import advantages, generators, log_ratios, masks, sizes

_SWITCH = st.booleans()


@st.composite
def group_values(draw: DrawFn, limit: float = 80.0) -> GroupValues:
    """Generate contexts of a group objective: groups of different sizes, float64."""
    groups, members = draw(sizes(4)), draw(sizes(8))
    generator = draw(generators())
    log_values = draw(log_ratios(groups, members, limit))
    mask = draw(masks(groups, members, empty_rows=False))
    weights = torch.where(mask, 1 + draw(_SWITCH) * torch.rand(groups, members, generator=generator).double(), 0)
    old = -50 * torch.rand(groups, members, generator=generator, dtype=torch.float64)
    given = draw(advantages(groups * members)).reshape(groups, members)
    log_values, old, given = (torch.where(mask, values, 0) for values in (log_values, old, given))
    return GroupValues(log_values, old, given, weights / weights.sum(dim=-1, keepdim=True), mask)


@st.composite
def grouped_rewards(
    draw: DrawFn, numbers: SearchStrategy[float], dtype: torch.dtype = torch.float32, limit: int = 5
) -> GroupedRewards:
    """Generate rollouts of up to `limit` prompts, with tied rewards, zero lengths and two reward components."""
    prompts, group_size = draw(sizes(limit)), draw(sizes(8))
    generator = draw(generators())
    palette = torch.tensor(draw(st.lists(numbers, min_size=1, max_size=5)), dtype=dtype)
    rewards = palette[torch.randint(len(palette), (prompts * group_size,), generator=generator)]
    lengths = torch.randint(draw(st.integers(0, 1)), 40, rewards.shape, generator=generator)
    return two_reward_rollout(rewards, group_size, lengths, draw(st.integers(0, 2**63 - 1)))


def two_reward_rollout(rewards: Tensor, group_size: int, lengths: Tensor, seed: int = 0) -> GroupedRewards:
    """Return a rollout with two components, the first for every other completion, and with rewards of its steps."""
    first = torch.arange(len(rewards)) % 2 == 0
    # Half of the reward at weight 2, so that the weighted sum has no rounding error.
    components = torch.stack([torch.where(first, rewards, 0), torch.where(first, 0, rewards / 2)], dim=-1)
    # Shares of the reward that differ from step to step, without rounding error.
    shares = torch.tensor([0.25, 0.5, 0.0, 0.125], dtype=rewards.dtype).repeat(10)[: int(lengths.max())]
    return GroupedRewards(
        rewards,
        group_size,
        lengths,
        components,
        component_weights=(1.0, 2.0),
        seed=seed,
        step_rewards=rewards.unsqueeze(-1) * shares,
    )
