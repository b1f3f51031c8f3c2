"""Statistics of the study: edges of stability, tuned learning rates, and paired differences with intervals."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.estimate import Estimate
from experiments.tables import read_rows

_NAMES = ("task", "objective", "start")


@dataclass(frozen=True)
class Run:
    """A training run with its measures.

    Args:
        task: name of the task.
        objective: name of the objective.
        updates: updates per rollout.
        learning_rate: learning rate.
        seed: seed of prompts and sampling.
        measures: measures by name; what was not measured is missing.
        start: digest of the weights that training began from; empty where it was not noted.
    """

    task: str
    objective: str
    updates: int
    learning_rate: float
    seed: int
    measures: Mapping[str, float]
    start: str = ""

    @property
    def origin(self) -> tuple[int, str]:
        """Seed and start, which the runs of a pair have in common."""
        return self.seed, self.start

    @property
    def collapsed(self) -> bool:
        """Whether the run collapsed."""
        return bool(self.measures["collapsed"])


def load(path: Path, task: str) -> list[Run]:
    """Return the runs of a task; of a run that was made twice, the last one."""
    runs = {}
    for row in read_rows(path):
        if row["task"] == task:
            key = (row["task"], row["objective"], int(row["updates"]), float(row["learning_rate"]), int(row["seed"]))
            names = [name for name, value in row.items() if value and name not in (*_NAMES, "updates", "seed")]
            start = row.get("start", "")
            runs[*key, start] = Run(*key, {name: float(row[name]) for name in names}, start)
    return list(runs.values())


def whole_ladders(runs: Sequence[Run]) -> dict[tuple[str, int, tuple[int, str]], list[Run]]:
    """Return the ladders by objective, updates and origin, without those that an interruption left unfinished."""
    found: dict[tuple[str, int, tuple[int, str]], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.learning_rate):
        found[run.objective, run.updates, run.origin].append(run)
    highest = max((run.learning_rate for run in runs), default=0.0)
    return {key: ladder for key, ladder in found.items() if _is_whole(ladder, highest)}


def _is_whole(ladder: Sequence[Run], highest: float) -> bool:
    return [run.collapsed for run in ladder[-2:]] == [True, True] or ladder[-1].learning_rate == highest


def edge(ladder: Sequence[Run]) -> float:
    """Return the largest learning rate below which, and at which, no run of a ladder collapsed; 0 if there is none."""
    stable = list(itertools.takewhile(lambda run: not run.collapsed, ladder))
    return stable[-1].learning_rate if stable else 0.0


def edges(runs: Sequence[Run]) -> dict[tuple[str, int], list[float]]:
    """Return the sorted edges over seeds, by objective and updates per rollout."""
    found: dict[tuple[str, int], list[float]] = defaultdict(list)
    for (objective, updates, _), ladder in whole_ladders(runs).items():
        found[objective, updates].append(edge(ladder))
    return {key: sorted(values) for key, values in found.items()}


def tuned_learning_rate(runs: Sequence[Run], objective: str, updates: int) -> float | None:
    """Return the learning rate with the best mean reward over all rollouts, averaged over the seeds of whole ladders.

    A learning rate at which some seed has no run, since two smaller ones collapsed, is no candidate. None without runs.
    """
    own = [
        ladder for (name, number, _), ladder in whole_ladders(runs).items() if (name, number) == (objective, updates)
    ]
    rewards: dict[float, list[float]] = defaultdict(list)
    for run in itertools.chain.from_iterable(own):
        rewards[run.learning_rate].append(run.measures["reward_area"])
    means = {rate: sum(values) for rate, values in rewards.items() if len(values) == len(own)}
    return max(means, key=lambda rate: means[rate]) if means else None


def over_seeds(
    runs: Sequence[Run], objective: str, updates: int, learning_rate: float, measure: str
) -> Estimate | None:
    """Return the mean of a measure over the seeds of one setting, None without runs."""
    setting = objective, updates, learning_rate
    own = [run for run in runs if (run.objective, run.updates, run.learning_rate) == setting]
    values = [run.measures[measure] for run in own if measure in run.measures]
    return Estimate.of(values) if values else None


def paired_difference(runs: Sequence[Run], first: str, second: str, updates: int, measure: str) -> Estimate | None:
    """Return the mean difference of a measure between two objectives, paired by learning rate, seed and start.

    Learning rates count at which both were run with the same seeds, and neither collapsed with any. Differences are
    averaged over the learning rates of a seed first, and a seed without one of them does not count. None without pairs.
    """
    by_setting = {(run.objective, run.learning_rate, run.origin): run for run in runs if run.updates == updates}
    origins = {run.origin for run in by_setting.values() if (first, run.learning_rate, run.origin) in by_setting}
    rates = sorted({run.learning_rate for run in by_setting.values()})
    shared = {own for own in origins if all((name, rates[0], own) in by_setting for name in (first, second))}
    differences: dict[tuple[int, str], list[float]] = defaultdict(list)
    for rate in rates:
        pairs = {own: [by_setting.get((name, rate, own)) for name in (first, second)] for own in shared}
        values = {
            own: [run.measures[measure] for run in pair if run and not run.collapsed and measure in run.measures]
            for own, pair in pairs.items()
        }
        if all(len(pair) == 2 for pair in values.values()):
            for own, (one, other) in values.items():
                differences[own].append(one - other)
    return Estimate.of([sum(values) / len(values) for values in differences.values()]) if differences else None
