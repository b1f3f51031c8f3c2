"""Running average of a number for each prompt of the data set."""

from __future__ import annotations

from collections.abc import Iterator, Mapping
from typing import Any

import torch
from einops import reduce
from torch import Tensor

from lightning_modules.data.groups import Groups, GroupSampler

_OTHER = -1  # index of prompts that are none of the data set


class PromptHistory:
    """Exponential averages by index of the prompt, the same on all ranks; its state is saved in checkpoints.

    Args:
        momentum: weight of the past, from 0 to below 1; the first number of a prompt is taken as it is.
    """

    def __init__(self, momentum: float) -> None:
        self._momentum = momentum
        self._averages: dict[int, float] = {}

    def __len__(self) -> int:
        return len(self._averages)

    def __iter__(self) -> Iterator[float]:
        return iter(self._averages.values())

    def average(self, index: int) -> float | None:
        """Return the average of a prompt, or None if it has no number yet."""
        return self._averages.get(index)

    @property
    def mean(self) -> float:
        """Mean of the averages of all prompts that have one; 0 if none has."""
        return sum(self) / max(len(self), 1)

    def add(self, groups: Groups, values: Tensor, rollout: GroupSampler) -> None:
        """Add a number for each group of each rank; every rank must call it, with the same number of groups.

        Args:
            groups: groups of this rank; those without any reward are left out, and those whose prompt is none of the
                data set.
            values: a number for each group, NaN where there is none; shape `prompt`.
            rollout: group sampler of the rollout, which gathers the numbers of all ranks.
        """
        indices = torch.tensor([_OTHER if prompt.index is None else prompt.index for prompt in groups.prompts])
        scored = reduce(groups.scored.long(), "(prompt group) -> prompt", "max", group=groups.group_size)
        indices = torch.where(scored.bool() & ~values.isnan(), indices, _OTHER)
        table = rollout.gathered(torch.stack([indices.double(), values.double()], dim=-1))
        for index, value in table.tolist():
            if index != _OTHER:
                past = self._averages.get(int(index), value)
                self._averages[int(index)] = self._momentum * past + (1 - self._momentum) * value

    def state_dict(self) -> dict[str, Any]:
        """Return indices and averages."""
        indices, averages = list(self._averages), list(self._averages.values())
        return {"indices": torch.tensor(indices), "averages": torch.tensor(averages, dtype=torch.double)}

    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        """Restore indices and averages."""
        self._averages = dict(zip(state["indices"].tolist(), state["averages"].tolist(), strict=True))
