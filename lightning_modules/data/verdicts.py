"""Failed verdicts of a rollout, counted by reward and cause."""

from __future__ import annotations

from collections import Counter
from collections.abc import Mapping, Sequence
from typing import get_args

from lightning_modules.rewards import Cause, WeightedRewards
from lightning_modules.tally import Tally

_FAILED = "/failed/"


def verdict_tally(causes: Sequence[Sequence[Cause | None]], functions: WeightedRewards) -> Tally:
    """Return the counts that `verdict_metrics` needs; causes are counted of each reward whose verdicts may fail.

    Args:
        causes: cause of each failed verdict, None where there is a reward; `causes[completion][component]`.
        functions: the single rewards.
    """
    counts = Counter((number, cause) for row in causes for number, cause in enumerate(row))
    by_cause = {
        f"rewards/{name}{_FAILED}{cause}": counts[number, cause]
        for number, name in enumerate(functions.names)
        if functions.may_fail[number]
        for cause in get_args(Cause)
    }
    return Tally({"completions": len(causes), "failed": sum(any(row) for row in causes), **by_cause})


def verdict_metrics(tally: Tally) -> dict[str, float]:
    """Return the fraction of completions on which a verdict failed, and the failed verdicts by reward and cause."""
    counts = dict(tally.sums)
    completions, failed = counts.pop("completions"), counts.pop("failed")
    return {"completions/failed_ratio": failed / max(completions, 1), **counts}


def failed_by_cause(metrics: Mapping[str, float]) -> str:
    """Return the metrics of causes that are not 0, as the words of a message."""
    return ", ".join(f"{name}: {count:.0f}" for name, count in metrics.items() if _FAILED in name and count)
