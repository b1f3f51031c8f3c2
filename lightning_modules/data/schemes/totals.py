"""Sums over all calls of a scheme within a rollout, of which a scheme around it may make several."""

from __future__ import annotations

from lightning_modules.data.groups import GroupSampler
from lightning_modules.tally import Tally


def total(scheme: object, tally: Tally, rollout: GroupSampler) -> Tally:
    """Add a tally over all ranks to those of the scheme's earlier calls within the rollout, and return the sum."""
    memory = rollout.memory_of(scheme)
    memory["total"] = memory.get("total", Tally()) + rollout.over_ranks(tally)
    return memory["total"]
