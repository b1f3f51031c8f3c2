"""Tables of the flow-matching experiment in Markdown, from its results.

python -m experiments.flow.report
python -m experiments.flow.report --results runs/flow
"""

from __future__ import annotations

import argparse
from collections.abc import Callable, Sequence
from functools import partial
from pathlib import Path

from experiments.estimate import Estimate, estimate_cell
from experiments.flow.design import CLIP
from experiments.flow.run import FOLDER
from experiments.flow.statistics import (
    Curve,
    Curves,
    StepMean,
    Steps,
    at_rollout,
    clip_share,
    gold_at_proxy,
    gradient_spread,
    in_order,
    load_curves,
    load_steps,
    mean_log_ratio,
    mean_normalized,
    over_seeds,
    paired_difference,
    pooled,
    upper_clip_bound,
)
from experiments.tables import Table, markdown

BASELINE = "flow_grpo"
PROXIES = (-1.5, -1.0, -0.5)
ROLLOUTS = (10, 20, 40, 80)
DIMENSIONS = (2, 64, 1024, 16_384, 65_536)
_SIDES = {"high": "positive", "low": "negative"}


def ratio_table(steps: Steps) -> Table:
    """Yield how many intervals of the mean log ratio of a seed and step hold its expectation, and the last step."""
    yield [
        "objective",
        "intervals with -D",
        "intervals with 0",
        "last step: mean log ratio",
        "last step: -D",
        "last step: after RatioNorm",
    ]
    for name, seeds in steps.items():
        parts = [sums for own in seeds.values() for sums in own.values() if sums["later"]]
        log_ratios = [(mean_log_ratio(sums), sums["divergence"] / sums["later"]) for sums in parts]
        last = pooled([own[max(own)] for own in seeds.values()])
        if not last["later"]:
            continue
        yield [
            f"`{name}`",
            _of(sum(mean.contains(-divergence) for mean, divergence in log_ratios), len(parts)),
            _of(sum(mean.contains(0.0) for mean, _ in log_ratios), len(parts)),
            _shown(mean_log_ratio(last)),
            f"{-last['divergence'] / last['later']:.2g}",
            _shown(mean_normalized(last)),
        ]


def clip_table(steps: Steps) -> Table:
    """Yield the share of steps that are clipped, by the sign of the advantage, as means over seeds."""
    yield ["objective", *(f"advantage {sign}" for sign in _SIDES.values()), "difference"]
    for name, seeds in steps.items():
        sums = [pooled(list(own.values())) for own in seeds.values()]
        high, low = ([clip_share(each, side) for each in sums] for side in _SIDES)
        differences = [one - other for one, other in zip(high, low, strict=True)]
        yield [f"`{name}`", *(estimate_cell(Estimate.of(values)) for values in (high, low, differences))]


def gradient_table(steps: Steps) -> Table:
    """Yield the spread of the gradient over the steps."""
    yield ["objective", "largest over smallest"]
    for name, seeds in steps.items():
        yield [f"`{name}`", estimate_cell(Estimate.of([gradient_spread(own) for own in seeds.values()]))]


def proxy_table(curves: Curves) -> Table:
    """Yield the gold metric at equal proxy: of the baseline, and the paired differences from it."""
    values = {f"proxy {proxy:g}": partial(gold_at_proxy, proxy=proxy) for proxy in PROXIES}
    yield from _differences(curves, values)


def rollout_table(curves: Curves, measure: str) -> Table:
    """Yield proxy or gold metric at equal rollouts: of the baseline, and the paired differences from it."""
    values = {f"{rollout} rollouts": partial(_at, rollout=rollout, measure=measure) for rollout in ROLLOUTS}
    yield from _differences(curves, values)


def _at(curve: Curve, rollout: int, measure: str) -> float | None:
    point = at_rollout(curve, rollout)
    return None if point is None else getattr(point, measure)


def _differences(curves: Curves, values: dict[str, Callable[[Curve], float | None]]) -> Table:
    yield ["objective", *values]
    if BASELINE not in curves:
        return
    baseline = curves[BASELINE]
    yield [f"`{BASELINE}`", *(estimate_cell(over_seeds(baseline, value)) for value in values.values())]
    for name in in_order(curves):
        if name != BASELINE:
            found = [paired_difference(curves[name], baseline, value) for value in values.values()]
            yield [f"`{name}` - `{BASELINE}`", *map(estimate_cell, found)]


def dimension_table() -> Table:
    """Yield the largest probability that the upper clip of Flow-GRPO acts, by the number of latent dimensions."""
    yield ["latent dimensions", "probability that the upper clip acts, at most"]
    for dimensions in DIMENSIONS:
        yield [f"{dimensions:,}", f"{upper_clip_bound(dimensions, CLIP):.2g}"]


def _of(count: int, total: int) -> str:
    return f"{count} of {total}"


def _shown(found: StepMean) -> str:
    return f"{found.mean:.2g} ({found.mean - found.half:.2g} to {found.mean + found.half:.2g})"


def tables(results: Path) -> dict[str, str]:
    """Return the tables in Markdown, by name; none without results."""
    steps, curves = load_steps(results), load_curves(results)
    if not steps:
        return {}
    made = {
        "ratios": ratio_table(steps),
        "clips": clip_table(steps),
        "upper clip": dimension_table(),
        "spread": gradient_table(steps),
        "gold at equal proxy": proxy_table(curves),
        **{f"{measure} at equal rollouts": rollout_table(curves, measure) for measure in ("proxy", "gold")},
    }
    return {name: markdown(table) for name, table in made.items()}


def nothing(results: Path) -> str:
    """Return what is wrong with a folder that has nothing to show."""
    return f"`--results` is {str(results)!r}, which has no results; pass the `--output` of `experiments.flow.run`."


def main(arguments: Sequence[str] | None = None) -> None:
    """Print the tables."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--results", type=Path, default=FOLDER, help="Folder of the results.")
    options = parser.parse_args(arguments)
    found = tables(options.results)
    if not found:
        parser.error(nothing(options.results))
    for name, text in found.items():
        print(f"{name}\n\n{text}\n")


if __name__ == "__main__":
    main()
