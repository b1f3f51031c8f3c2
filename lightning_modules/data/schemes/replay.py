"""Replay of groups with signal in place of groups without."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from typing import Any

import torch
from typing_extensions import override

from lightning_modules.data.groups import Groups, GroupSampler
from lightning_modules.data.schemes.base import SamplingScheme, Stage
from lightning_modules.data.schemes.stored import restored, stored
from lightning_modules.data.schemes.totals import total
from lightning_modules.tally import Tally
from lightning_modules.validation import require_at_least

Stored = Mapping[str, Any]  # a group as `stored` returns it


@dataclass(eq=False)
class Replay(SamplingScheme):
    """Puts recent groups with signal in the place of groups without, so that no completion is sampled for nothing.

    A buffer has the latest groups of all ranks whose rewards are not all equal. The newest ones come first; each is
    replayed at most once, and only within `max_age` optimizer steps of its policy. Where the buffer has too few, groups
    without signal remain.

    Replayed groups are off-policy. With `data.old_log_probs: sampler` they keep the log-probabilities of the policy
    that sampled them, so that their ratios say how far the policy has moved, and the clip acts on them. With `trainer`
    these are computed from the policy before the update, and ratios begin with 1; what the policy has moved before is
    then a mismatch of sampler and trainer, which `data.correction` corrects.

    The scheme logs `replay/groups`, the number of replayed groups over all ranks, `replay/age`, the mean number of
    optimizer steps since they were sampled, `replay/buffer`, the number of groups left in the buffer, `replay/reward`,
    the mean reward of all sampled completions, and `replay/without_signal`, the fraction of sampled groups without
    signal. `rollout/staleness` is that of the oldest group.

    Args:
        capacity: Maximum number of groups in the buffer.
        max_age: Maximum number of optimizer steps between the policy that sampled a group and the one that its rollout
            begins to train. With `data.overlap` fresh groups are a rollout old themselves, so allow more.

    Raises:
        ValueError: an argument is out of its range.
    """

    capacity: int = 64
    max_age: int = 8

    def __post_init__(self) -> None:
        require_at_least(1, capacity=self.capacity, max_age=self.max_age)
        self._buffer: list[Stored] = []  # the oldest first, the same on every rank

    @property
    @override
    def gives_old_groups(self) -> bool:
        return True

    @override
    def groups(self, count: int, below: Stage, rollout: GroupSampler) -> Groups:
        fresh = below(count)
        signal = fresh.have_signal
        missing = (~signal).nonzero().squeeze(-1)
        taken = self._taken(len(missing), fresh.group_size, rollout)
        mine = taken[rollout.rank]
        order = torch.arange(len(fresh))
        order[missing[: len(mine)]] = torch.arange(len(fresh), len(fresh) + len(mine))
        everyones = [state for states in taken for state in states]
        kind = type(fresh.completions)
        filled = Groups.joined([fresh, *(restored(state, rollout.example_of, kind) for state in mine)]).select(order)
        self._remember(fresh, signal, rollout)
        return replace(filled, metrics={**fresh.metrics, **self._metrics(fresh, everyones, rollout)})

    def _taken(self, missing: int, size: int, rollout: GroupSampler) -> list[list[Stored]]:
        """Take groups of earlier rollouts from the buffer for each rank, the newest first; drop those that are too old.

        Those of this rollout, which an earlier call has remembered, are in it already.
        """
        earlier = {id(state) for state in rollout.memory_of(self).setdefault("earlier", list(self._buffer))}
        oldest = rollout.trained_step - self.max_age
        self._buffer = [state for state in self._buffer if state["policy_step"] >= oldest]
        usable = [state for state in reversed(self._buffer) if id(state) in earlier and len(state["texts"]) == size]
        everyones = rollout.gathered(torch.tensor([[missing]])).flatten().tolist()
        # In turn, so that no rank gets them all.
        places = sorted((number, rank) for rank, count in enumerate(everyones) for number in range(count))
        taken: list[list[Stored]] = [[] for _ in everyones]
        for (_, rank), state in zip(places, usable, strict=False):
            taken[rank].append(state)
        used = {id(state) for states in taken for state in states}
        self._buffer = [state for state in self._buffer if id(state) not in used]
        return taken

    def _remember(self, fresh: Groups, signal: torch.Tensor, rollout: GroupSampler) -> None:
        mine = [stored(fresh, number) for number in signal.nonzero().squeeze(-1).tolist()]
        self._buffer += [state for states in rollout.gathered_values(mine) for state in states]
        self._buffer = self._buffer[-self.capacity :]

    def _metrics(self, fresh: Groups, replayed: list[Stored], rollout: GroupSampler) -> dict[str, float]:
        counted = Tally.of(
            groups=torch.tensor(len(fresh)),
            without=(~fresh.have_signal).sum(),
            scored=fresh.scored.sum(),
            reward=torch.where(fresh.scored, fresh.rewards.double(), 0).sum(),
        )
        ages: list[int] = rollout.memory_of(self).setdefault("ages", [])
        ages += [rollout.trained_step - state["policy_step"] for state in replayed]
        sums = total(self, counted, rollout).sums
        return {
            "replay/groups": len(ages),
            "replay/age": sum(ages) / max(len(ages), 1),
            "replay/buffer": len(self._buffer),
            "replay/reward": sums["reward"] / max(sums["scored"], 1),
            "replay/without_signal": sums["without"] / sums["groups"],
        }

    @override
    def state_dict(self) -> dict[str, Any]:
        return {"groups": [dict(state) for state in self._buffer]}

    @override
    def load_state_dict(self, state: Mapping[str, Any]) -> None:
        self._buffer = list(state["groups"])
