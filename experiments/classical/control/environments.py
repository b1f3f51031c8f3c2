"""Vector environments of Gymnasium: copies of one task that are stepped together."""

from __future__ import annotations

from typing import NamedTuple

import numpy as np
import torch
from torch import Tensor

from aggregate_po.extras import install_command

try:
    import gymnasium
    from gymnasium.spaces import Box
    from gymnasium.wrappers.vector import RecordEpisodeStatistics, RescaleAction
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}; run {install_command('classical')}.", name=error.name) from error


class Transition(NamedTuple):
    """A step of each environment; the first dimension of each tensor is that of the environments.

    Args:
        states: states before the step.
        actions: actions.
        rewards: rewards.
        next_states: states after the step; those at the end of an episode if it ends.
        terminated: whether the task ended, so that nothing follows.
        ended: whether the episode ended, by the task or by its time limit.
        counts: whether it is a step of the task: Gymnasium spends the step after the end of an episode on the reset.
    """

    states: Tensor
    actions: Tensor
    rewards: Tensor
    next_states: Tensor
    terminated: Tensor
    ended: Tensor
    counts: Tensor


class Environments:
    """Copies of a task; continuous actions are scaled to lie between -1 and 1, beyond which they are clipped.

    Args:
        task: Name of the task in Gymnasium.
        number: Number of copies.
        seed: Seed of the start states.

    Attributes:
        states: current states; shape `environment state`.
        returns: returns of the episodes that ended, in the order in which they ended.
    """

    def __init__(self, task: str, number: int, seed: int) -> None:
        vector = RecordEpisodeStatistics(gymnasium.make_vec(task, num_envs=number, vectorization_mode="sync"))
        self.continuous = isinstance(vector.single_action_space, Box)
        self._vector = RescaleAction(vector, np.float32(-1), np.float32(1)) if self.continuous else vector
        self.states = torch.from_numpy(self._vector.reset(seed=seed)[0])
        self.returns: list[float] = []
        self._ended = torch.zeros(number, dtype=torch.bool)

    @property
    def state_size(self) -> int:
        """Number of coordinates of a state."""
        return self.states.shape[-1]

    @property
    def action_size(self) -> int:
        """Number of coordinates of a continuous action, or number of actions."""
        space = self._vector.single_action_space
        return int(space.shape[0] if self.continuous else space.n)

    def step(self, actions: Tensor) -> Transition:
        """Make a step in each environment; an episode that has ended is reset instead.

        Args:
            actions: actions, of the shape `environment action` if continuous and `environment` otherwise.
        """
        taken = actions.clamp(-1, 1) if self.continuous else actions
        found, rewards, terminated, truncated, infos = self._vector.step(taken.numpy())
        states, ends = torch.from_numpy(found), torch.from_numpy(terminated)
        ended = ends | torch.from_numpy(truncated)
        rewards = torch.from_numpy(rewards).float()
        step = Transition(self.states, actions, rewards, states, ends, ended, ~self._ended)
        self.states, self._ended = states, ended
        if "episode" in infos:
            self.returns += infos["episode"]["r"][infos["_episode"]].tolist()
        return step
