"""Statistics of the flow-matching experiment: curves at equal proxy or rollout, and means of denoising steps."""

from __future__ import annotations

import itertools
import math
from collections import defaultdict
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from statistics import NormalDist

from experiments.estimate import LEVEL, Estimate
from experiments.flow.design import VARIANTS
from experiments.tables import read_rows

_WIDTH = NormalDist().inv_cdf((1 + LEVEL) / 2)  # of half an interval, in standard errors

Sums = Mapping[str, float]


@dataclass(frozen=True)
class Evaluation:
    """Proxy and gold metric after a rollout, means over the held-out samples.

    Args:
        rollout: number of rollouts so far.
        proxy: proxy reward.
        gold: gold metric; nats.
    """

    rollout: int
    proxy: float
    gold: float


Curve = Sequence[Evaluation]
Curves = dict[str, dict[int, Curve]]  # by objective and seed
Steps = dict[str, dict[int, dict[int, Sums]]]  # by objective, seed and step


def load_curves(results: Path) -> Curves:
    """Return the evaluations of the runs that are complete; of a run that was repeated, the last ones."""
    found: dict[str, dict[int, dict[int, Evaluation]]] = {}
    for row in _rows(results, "evaluations"):
        point = Evaluation(int(row["rollout"]), float(row["proxy"]), float(row["gold"]))
        found.setdefault(row["objective"], {}).setdefault(int(row["seed"]), {})[point.rollout] = point
    return {
        name: {seed: [points[key] for key in sorted(points)] for seed, points in sorted(found[name].items())}
        for name in in_order(found)
    }


def load_steps(results: Path) -> Steps:
    """Return the sums of each denoising step of the runs that are complete; of a repeated run, the last ones."""
    found: Steps = {}
    for row in _rows(results, "steps"):
        sums = {name: float(value) for name, value in row.items() if name not in ("objective", "seed", "step")}
        found.setdefault(row["objective"], {}).setdefault(int(row["seed"]), {})[int(row["step"])] = sums
    return {name: dict(sorted(found[name].items())) for name in in_order(found)}


def load_samples(results: Path, objective: str) -> dict[int, list[tuple[int, float, float]]]:
    """Return the samples of an objective as condition and coordinates, by the rollout after which they were taken."""
    found: dict[int, dict[int, tuple[int, float, float]]] = {}
    for row in _rows(results, "samples"):
        if row["objective"] == objective:
            point = int(row["condition"]), float(row["x"]), float(row["y"])
            found.setdefault(int(row["rollout"]), {})[int(row["number"])] = point
    return {rollout: list(points.values()) for rollout, points in sorted(found.items())}


def _rows(results: Path, name: str) -> list[dict[str, str]]:
    complete = {(row["objective"], row["seed"]) for row in read_rows(results / "runs.csv")}
    return [row for row in read_rows(results / f"{name}.csv") if (row["objective"], row["seed"]) in complete]


def in_order(names: Iterable[str]) -> list[str]:
    """Return the names of objectives in the order of the design, and then the reader's own."""
    design, present = [each.name for each in VARIANTS], set(names)
    return [*(name for name in design if name in present), *sorted(present - set(design))]


# Curves


def gold_at_proxy(curve: Curve, proxy: float) -> float | None:
    """Return the gold metric where a curve first reaches a proxy, linear between evaluations; None if it does not."""
    for before, after in itertools.pairwise(curve):
        if before.proxy <= proxy <= after.proxy:
            share = (proxy - before.proxy) / (after.proxy - before.proxy) if after.proxy > before.proxy else 0.0
            return before.gold + share * (after.gold - before.gold)
    return None


def at_rollout(curve: Curve, rollout: int) -> Evaluation | None:
    """Return the evaluation after a rollout, None without one."""
    return next((point for point in curve if point.rollout == rollout), None)


def over_seeds(curves: Mapping[int, Curve], value: Callable[[Curve], float | None]) -> Estimate | None:
    """Return the mean of a value of each curve over the seeds, None unless all seeds have it."""
    values = [value(curve) for curve in curves.values()]
    known = [each for each in values if each is not None]
    return Estimate.of(known) if known and len(known) == len(values) else None


def paired_difference(
    first: Mapping[int, Curve], second: Mapping[int, Curve], value: Callable[[Curve], float | None]
) -> Estimate | None:
    """Return the mean difference of a value between two objectives, paired by seed; None without it for all pairs."""
    pairs = [(value(first[seed]), value(second[seed])) for seed in first if seed in second]
    known = [one - other for one, other in pairs if one is not None and other is not None]
    return Estimate.of(known) if known and len(known) == len(pairs) else None


# Denoising steps


@dataclass(frozen=True)
class StepMean:
    """Mean over trajectories of a term whose expectation is known, with the half of its interval.

    Args:
        mean: mean.
        half: half of the 95 % interval.
    """

    mean: float
    half: float

    def contains(self, value: float) -> bool:
        """Return whether a value is in the interval."""
        return abs(value - self.mean) <= self.half


def pooled(parts: Sequence[Sums]) -> Sums:
    """Return the sums over several runs."""
    total: dict[str, float] = defaultdict(float)
    for part in parts:
        for name, value in part.items():
            total[name] += value
    return total


def mean_log_ratio(sums: Sums) -> StepMean:
    r"""Return the mean log ratio, whose expectation is $-D$, with the interval of the noise around it."""
    return StepMean(sums["log_ratio"] / sums["later"], _WIDTH * math.sqrt(sums["centered_squares"]) / sums["later"])


def mean_normalized(sums: Sums) -> StepMean:
    """Return the mean log ratio after `RatioNorm`, whose expectation is 0."""
    return StepMean(sums["normalized"] / sums["later"], _WIDTH * math.sqrt(sums["normalized_squares"]) / sums["later"])


def clip_share(sums: Sums, side: str) -> float:
    """Return the share of steps whose gradient is clipped to zero, of those of one sign of the advantage.

    Args:
        sums: sums of a step, or of several.
        side: "high" for positive advantages, "low" for negative ones.
    """
    positive = sums["positive"]
    return sums[f"clipped_{side}"] / max(positive if side == "high" else sums["later"] - positive, 1)


def mean_gradient(sums: Sums) -> float:
    """Return the mean size of the gradient of the velocity."""
    return sums["gradient"] / sums["trained"]


def gradient_spread(steps: Mapping[int, Sums]) -> float:
    """Return the largest mean size of the gradient over the smallest one, among the steps of a run."""
    sizes = [mean_gradient(sums) for sums in steps.values() if sums["trained"]]
    return max(sizes) / min(sizes)


def upper_clip_bound(dimensions: int, clip: float) -> float:
    r"""Return the largest probability that the log ratio of a step exceeds the upper clip.

    The log ratio is normal with mean $-D$ and variance $2 D / d$, for $d$ latent dimensions. The probability is largest
    where $D$ is the clip, and is $\Phi(-\sqrt{2 \epsilon d})$ there.
    """
    return NormalDist().cdf(-math.sqrt(2 * clip * dimensions))
