"""Plots of the flow-matching experiment, from its results: samples, gold against proxy, and denoising steps.

python -m experiments.flow.plots
python -m experiments.flow.plots --results runs/flow --output runs/flow
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from matplotlib.axes import Axes

from experiments.estimate import Estimate
from experiments.figures.style import COLORS, Value, legend_below, look, panels, plot_parser, save, write_table
from experiments.flow.report import BASELINE, nothing
from experiments.flow.run import FOLDER
from experiments.flow.statistics import (
    Curves,
    StepMean,
    Steps,
    Sums,
    clip_share,
    gold_at_proxy,
    load_curves,
    load_samples,
    load_steps,
    mean_gradient,
    mean_log_ratio,
    mean_normalized,
    over_seeds,
    pooled,
)
from lightning_modules.flow.mixture import mode_centers

GUARD = "grpo_guard"
_Table = list[dict[str, Value]]
_SHOWN = 100  # samples, so that the picture stays small
_PROXIES = [-1.9 + number / 10 for number in range(18)]


def plot_samples(results: Path, curves: Curves, folder: Path, formats: Sequence[str]) -> None:
    """Plot samples of the ODE before training, and at about equal proxy and at the end for the baseline and Guard."""
    pictures = []
    for name in [name for name in (BASELINE, GUARD) if name in curves] or list(curves)[:2]:
        stages = list(load_samples(results, name).items())
        seen = [stages[len(stages) // 2], stages[-1]]
        pictures += [(name, *stage) for stage in (seen if pictures else [stages[0], *seen])]
    canvas, axes = panels(1, len(pictures), 2.7 * len(pictures), 3.4)
    rows: _Table = []
    axes[0].set_ylabel("second coordinate")
    for panel, (name, rollout, points) in zip(axes, pictures, strict=True):
        evaluation = next(each for each in curves[name][min(curves[name])] if each.rollout == rollout)
        _scatter(panel, points[:_SHOWN])
        title = f"{name}, {rollout} rollouts" if rollout else "before training"
        panel.set_title(f"{title}\nproxy {evaluation.proxy:.2f}, gold {evaluation.gold:.2f}", fontsize=9)
        rows += [
            {"objective": name, "rollout": rollout, "condition": condition, "x": x, "y": y}
            for condition, x, y in points[:_SHOWN]
        ]
    legend_below(canvas, axes[0], columns=3)
    save(canvas, folder, "flow_samples", formats)
    write_table(rows, folder, "flow_samples")


def _scatter(panel: Axes, points: Sequence[tuple[int, float, float]]) -> None:
    for condition, label in enumerate(("upper half", "lower half")):
        own = [(x, y) for half, x, y in points if half == condition]
        across, up = [x for x, _ in own], [y for _, y in own]
        panel.plot(across, up, linestyle="", marker="o", markersize=2, color=COLORS[condition], label=label)
    centers = mode_centers().flatten(end_dim=1).tolist()
    across, up = [x for x, _ in centers], [y for _, y in centers]
    panel.plot(across, up, linestyle="", marker="x", markersize=7, color="#000000", label="modes")
    panel.plot(*centers[0], linestyle="", marker="o", markersize=14, markerfacecolor="none", color="#000000")
    panel.set_xlim(-2.8, 2.8)
    panel.set_ylim(-2.8, 2.8)
    panel.set_aspect("equal")
    panel.set_xlabel("first coordinate")


def plot_curves(curves: Curves, folder: Path, formats: Sequence[str]) -> None:
    """Plot gold against proxy, and both against the rollout, as means over seeds with their intervals."""
    canvas, axes = panels(1, 3, 12, 4.2)
    rows: _Table = []
    for number, (name, seeds) in enumerate(curves.items()):
        at_proxy = {proxy: over_seeds(seeds, lambda curve, at=proxy: gold_at_proxy(curve, at)) for proxy in _PROXIES}
        evaluations = list(zip(*seeds.values(), strict=False))
        lines = {
            "gold at proxy": {proxy: found for proxy, found in at_proxy.items() if found},
            "proxy": {at[0].rollout: Estimate.of([each.proxy for each in at]) for at in evaluations},
            "gold": {at[0].rollout: Estimate.of([each.gold for each in at]) for at in evaluations},
        }
        for panel, (measure, line) in zip(axes, lines.items(), strict=True):
            _band(panel, line, name, number)
            rows += [
                {
                    "objective": name,
                    "measure": measure,
                    "at": at,
                    "mean": found.mean,
                    "low": float("nan") if found.low is None else found.low,
                    "high": float("nan") if found.high is None else found.high,
                }
                for at, found in line.items()
            ]
    for panel, (across, up) in zip(
        axes,
        (("proxy reward", "gold metric (nats)"), ("rollout", "proxy reward"), ("rollout", "gold metric (nats)")),
        strict=True,
    ):
        panel.set_xlabel(across)
        panel.set_ylabel(up)
    legend_below(canvas, axes[1], columns=7)
    save(canvas, folder, "flow_curves", formats)
    write_table(rows, folder, "flow_curves")


def _band(panel: Axes, line: dict[float, Estimate], label: str, number: int) -> None:
    across, color = list(line), look(number)["color"]
    panel.plot(across, [found.mean for found in line.values()], label=label, color=color)
    lows = [found.low for found in line.values() if found.low is not None]
    highs = [found.high for found in line.values() if found.high is not None]
    if len(lows) == len(across):
        panel.fill_between(across, lows, highs, color=color, alpha=0.12, linewidth=0)


def plot_steps(steps: Steps, folder: Path, formats: Sequence[str]) -> None:
    """Plot mean log ratio, clip share and gradient of each denoising step, pooled over seeds."""
    names = [name for name in (BASELINE, GUARD) if name in steps] or list(steps)[:2]
    canvas, (without, normalized, clips, gradients) = panels(2, 2, 10, 7)
    rows: _Table = []
    for number, name in enumerate(names):
        found = _by_step(steps, name)
        color = look(number)["color"]
        log_ratios = [mean_log_ratio(sums) for sums in found.values()]
        divergences = [-sums["divergence"] / sums["later"] for sums in found.values()]
        after = [mean_normalized(sums) for sums in found.values()]
        numbers = [step + 0.12 * number for step in found]
        _bars(without, numbers, log_ratios, f"{name}: mean", color)
        without.plot(numbers, divergences, color=color, linestyle="--", label=rf"{name}: $-D_t$")
        _bars(normalized, numbers, after, name, color)
        shares = {side: [clip_share(sums, side) for sums in found.values()] for side in ("high", "low")}
        for side, line, sign in (("high", "-", "> 0"), ("low", "--", "< 0")):
            clips.plot(list(found), shares[side], color=color, linestyle=line, label=f"{name}, A {sign}")
        rows += [
            {
                "objective": name,
                "step": step,
                "log_ratio": log_ratio.mean,
                "log_ratio_half": log_ratio.half,
                "minus_divergence": divergence,
                "normalized": mean.mean,
                "normalized_half": mean.half,
                "clipped_high": high,
                "clipped_low": low,
            }
            for step, log_ratio, divergence, mean, high, low in zip(
                found, log_ratios, divergences, after, shares["high"], shares["low"], strict=True
            )
        ]
    sized = [name for name in (BASELINE, GUARD, "ratio_norm") if name in steps] or names
    for number, name in enumerate(sized):
        sizes = [mean_gradient(sums) for sums in _by_step(steps, name).values()]
        middle = sum(sizes) / len(sizes)
        style = look(number)
        gradients.plot(list(_by_step(steps, name)), [size / middle for size in sizes], label=name, **style)
    without.set_yscale("symlog", linthresh=1e-5)
    normalized.axhline(0, color="#000000", linestyle="--", linewidth=1)
    gradients.set_yscale("log")
    for panel, label in (
        (without, "log ratio (nats)"),
        (normalized, "log ratio after RatioNorm"),
        (clips, "share of steps clipped"),
        (gradients, "gradient of the velocity (mean 1)"),
    ):
        panel.set_xlabel("denoising step, from noise to sample")
        panel.set_ylabel(label)
        panel.legend(fontsize=8, loc="lower left" if panel is without else "best")
    save(canvas, folder, "flow_steps", formats)
    write_table(rows, folder, "flow_steps")


def _by_step(steps: Steps, name: str) -> dict[int, Sums]:
    """Return the sums over the seeds of each step that was trained."""
    numbers = sorted({step for own in steps[name].values() for step in own})
    found = {step: pooled([own[step] for own in steps[name].values()]) for step in numbers}
    return {step: sums for step, sums in found.items() if sums["later"] and sums["trained"]}


def _bars(panel: Axes, across: Sequence[float], means: Sequence[StepMean], label: str, color: str) -> None:
    halves = [each.half for each in means]
    panel.errorbar(across, [each.mean for each in means], halves, fmt="o", color=color, label=label, capsize=2)


def main(arguments: Sequence[str] | None = None) -> None:
    """Write the plots."""
    parser = plot_parser(__doc__)
    parser.add_argument("--results", type=Path, default=FOLDER, help="Folder of the results.")
    options = parser.parse_args(arguments)
    target = options.output, options.formats.split(",")
    curves, steps = load_curves(options.results), load_steps(options.results)
    if not steps:
        parser.error(nothing(options.results))
    plot_samples(options.results, curves, *target)
    plot_curves(curves, *target)
    plot_steps(steps, *target)


if __name__ == "__main__":
    main()
