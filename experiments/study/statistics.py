"""Statistics of the study: edges of stability, tuned learning rates, and paired differences with intervals."""

from __future__ import annotations

import itertools
from collections import defaultdict
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from experiments.estimate import Estimate
from experiments.study.design import LEARNING_RATES
from experiments.tables import read_rows

_NOT_MEASURED = ("task", "objective", "updates", "seed", "start", "highest_rate")


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
        highest_rate: largest learning rate of the ladder that the run is of.
    """

    task: str
    objective: str
    updates: int
    learning_rate: float
    seed: int
    measures: Mapping[str, float]
    start: str = ""
    highest_rate: float = LEARNING_RATES[-1]

    @property
    def origin(self) -> tuple[int, str]:
        """Seed and start, which the runs of a pair have in common."""
        return self.seed, self.start

    @property
    def collapsed(self) -> bool:
        """Whether the run collapsed."""
        return bool(self.measures["collapsed"])


def load(path: Path, task: str) -> list[Run]:
    """Return the runs of a task; of a run that was made twice, the last one.

    Raises:
        ValueError: the file does not say how far the ladders go.
    """
    runs = {}
    for row in read_rows(path):
        if row["task"] == task:
            key = (row["task"], row["objective"], int(row["updates"]), float(row["learning_rate"]), int(row["seed"]))
            if "highest_rate" not in row:
                raise ValueError(f"{path} has no column `highest_rate`; make the runs again, in another folder.")
            measures = {name: float(value) for name, value in row.items() if value and name not in _NOT_MEASURED}
            start = row.get("start", "")
            runs[*key, start] = Run(*key, measures, start, float(row["highest_rate"]))
    return list(runs.values())


def whole_ladders(runs: Sequence[Run]) -> dict[tuple[str, int, tuple[int, str]], list[Run]]:
    """Return the ladders by objective, updates and origin, without those that an interruption left unfinished."""
    found: dict[tuple[str, int, tuple[int, str]], list[Run]] = defaultdict(list)
    for run in sorted(runs, key=lambda run: run.learning_rate):
        found[run.objective, run.updates, run.origin].append(run)
    return {key: ladder for key, ladder in found.items() if _is_whole(ladder)}


def _is_whole(ladder: Sequence[Run]) -> bool:
    ended = [run.collapsed for run in ladder[-2:]] == [True, True]
    return ended or ladder[-1].learning_rate == max(run.highest_rate for run in ladder)


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

    A learning rate is no candidate if a seed has no run there, since two smaller ones collapsed, or none that was
    trained to its end and evaluated. None without candidates.
    """
    own = [
        ladder for (name, number, _), ladder in whole_ladders(runs).items() if (name, number) == (objective, updates)
    ]
    rewards: dict[float, list[float]] = defaultdict(list)
    for run in itertools.chain.from_iterable(own):
        if "sampled" in run.measures:
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
    differences = paired_differences(runs, first, second, updates, measure)
    means = [sum(values.values()) / len(values) for values in differences.values()]
    return Estimate.of(means) if means else None


def paired_differences(
    runs: Sequence[Run], first: str, second: str, updates: int, measure: str
) -> dict[tuple[int, str], dict[float, float]]:
    """Return the differences that `paired_difference` averages: by seed and start, and by learning rate."""
    by_setting = {(run.objective, run.learning_rate, run.origin): run for run in runs if run.updates == updates}

    def pair(rate: float, origin: tuple[int, str]) -> list[Run]:
        found = (by_setting.get((name, rate, origin)) for name in (first, second))
        return [run for run in found if run is not None]

    settings = {(rate, origin) for _, rate, origin in by_setting if len(pair(rate, origin)) == 2}
    rates = sorted({rate for rate, _ in settings})
    shared = sorted(origin for rate, origin in settings if rate == rates[0])
    differences: dict[tuple[int, str], dict[float, float]] = defaultdict(dict)
    for rate in rates:
        values = {
            origin: [run.measures[measure] for run in pair(rate, origin) if _counts(run, measure)] for origin in shared
        }
        if all(len(both) == 2 for both in values.values()):
            for origin, (one, other) in values.items():
                differences[origin][rate] = one - other
    return dict(differences)


def _counts(run: Run, measure: str) -> bool:
    return not run.collapsed and measure in run.measures
