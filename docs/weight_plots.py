"""Small pictures of gradient weights: one token moves, and the objective says what it and its neighbors receive."""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from aggregate_po import PolicyBatch, PolicyObjective, StepTotals

TOKENS = 3
BOUND = 0.4  # where a recipe has no default
BEHAVIOR_PROBABILITY = 0.5
RANGES = (1e-5, 5e-4, 0.002, 0.01, 1.0, 2.0)  # half-widths of the axis of log ratios
SIGNS = {"up": 1.0, "down": -1.0}  # class of the curve in site.css: advantage

_POINTS = 121

# The look of a file of its own; in the table it is that of site.css.
_STYLE = """
svg { background: white; }
path { fill: none; stroke-width: 2.5; }
text { font: 15px sans-serif; }
.title { font-size: 20px; font-weight: bold; }
.axis { stroke: #888; stroke-width: 1; }
.up { stroke: #0072b2; }
.down { stroke: #d55e00; }
.other { stroke-dasharray: 7 5; stroke-width: 2; }
"""
_LEGEND = {
    "own up": "this token, advantage 1",
    "own down": "this token, advantage \N{MINUS SIGN}1",
    "other up": "another token, advantage 1",
    "other down": "another token, advantage \N{MINUS SIGN}1",
}


@dataclass(frozen=True)
class Frame:
    """Size of a picture, and the edges of the plot in it; user units of SVG."""

    width: float
    height: float
    left: float
    right: float
    top: float
    bottom: float
    label_height: float


SMALL = Frame(176, 100, 30, 172, 6, 86, label_height=7)
LARGE = Frame(900, 520, 80, 640, 60, 430, label_height=15)


def weights(objective: PolicyObjective, log_ratio: Tensor, advantage: float) -> Tensor:
    """Gradient weights of a completion, times its length, when its first token has the given log ratios.

    The other tokens have the ratio 1. The completion is alone in its optimiser step.

    Returns:
        Shape `batch time`, one row for each log ratio.
    """
    old = torch.full((len(log_ratio), TOKENS), math.log(BEHAVIOR_PROBABILITY), dtype=torch.float64)
    log_probs = old.clone()
    log_probs[:, 0] += log_ratio
    totals = StepTotals(completions=1, tokens=TOKENS, progress=0.0, reward_mean=0.5, reward_std=0.5)
    # The divergence that noise of size one goes with, to second order.
    steps = {"divergence": (log_probs - old).square() / 2, "scale": torch.ones_like(old)}
    batch = PolicyBatch(old, torch.ones_like(old), torch.full_like(old[:, 0], advantage), totals, **steps)
    if objective.group_objective is not None:
        return _weights_in_a_pair(objective, log_probs, batch)
    return TOKENS * objective.gradient_weights(log_probs, batch).total


def _weights_in_a_pair(objective: PolicyObjective, log_probs: Tensor, batch: PolicyBatch) -> Tensor:
    """Gradient weights, times the length, of completions that each have another one of the other sign as their group.

    The other one has the ratio 1, and the two are alone in their optimizer step.
    """
    pairs = PolicyBatch(
        batch.old_log_probs.repeat(2, 1),
        batch.response_mask.repeat(2, 1),
        torch.cat([batch.advantages, -batch.advantages]),
        StepTotals(completions=2, tokens=2 * TOKENS, progress=0.0),
        groups=torch.arange(len(log_probs)).repeat(2),
    )
    total = objective.gradient_weights(torch.cat([log_probs, batch.old_log_probs]), pairs).total
    return TOKENS * total[: len(log_probs)]


def visible_range(objective: PolicyObjective) -> float:
    """Half-width of the narrowest range in whose inner nine tenths are the places where curves begin to be flat.

    A clip, a cap or a mask makes a curve flat from some log ratio on. Where nothing does, it is 1.
    """
    distance = torch.logspace(-6, math.log10(0.9 * RANGES[-1]), 240, dtype=torch.float64)
    outermost = 0.0
    for advantage in SIGNS.values():
        for side in (distance, -distance):
            flat = weights(objective, side, advantage).diff(dim=0).abs() < 1e-9
            changes = (flat[1:] != flat[:-1]).any(dim=-1)
            if changes.any():
                outermost = max(outermost, distance[1:-1][changes].max().item())
    wide_enough = [half for half in RANGES if 0 < outermost <= 0.9 * half]
    return min(wide_enough, default=1.0 if outermost == 0 else RANGES[-1])


def curves(objective: PolicyObjective, half_width: float) -> tuple[Tensor, dict[str, Tensor]]:
    """Log ratios of the first token, and by sign of the advantage the weights of it and of another token."""
    log_ratio = torch.linspace(-half_width, half_width, _POINTS, dtype=torch.float64)
    return log_ratio, {name: weights(objective, log_ratio, sign)[:, :2] for name, sign in SIGNS.items()}


def plot(objective: PolicyObjective, name: str) -> str:
    """Return the curves as SVG on one line, for a cell of a table; colors and widths are those in site.css."""
    half_width = visible_range(objective)
    label = f"{name}: gradient weight of a token against its log ratio, from {-half_width:g} to {half_width:g}"
    opening = f'<svg class="weight-plot" viewBox="0 0 {SMALL.width} {SMALL.height}" role="img" aria-label="{label}">'
    return "".join([opening, *_drawn(objective, half_width, SMALL), "</svg>"])


def figure(objective: PolicyObjective, name: str) -> str:
    """Return the same curves as a file of its own, with a title, labels at the axes, and a legend."""
    frame = LARGE
    opening = (
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {frame.width} {frame.height}" width="{frame.width}" '
        f'height="{frame.height}"><style>{_STYLE}</style>'
    )
    middle = (frame.top + frame.bottom) / 2
    labels = [
        f'<text class="title" x="{frame.left}" y="35">{name}</text>',
        _text((frame.left + frame.right) / 2, frame.height - 25, "log ratio x of this token", "middle"),
        f'<g transform="translate(22 {middle}) rotate(-90)">{_text(0, 0, "gradient weight times n", "middle")}</g>',
    ]
    for number, (kind, meaning) in enumerate(_LEGEND.items()):
        height = frame.top + 20 + 28 * number
        labels.append(f'<path class="{kind}" d="M{frame.right + 20} {height}h36"/>')
        labels.append(_text(frame.right + 64, height + 5, meaning, "start"))
    return "\n".join([opening, *_drawn(objective, visible_range(objective), frame), *labels, "</svg>\n"])


def _drawn(objective: PolicyObjective, half_width: float, frame: Frame) -> list[str]:
    """Return axes, curves and numbers."""
    log_ratio, by_sign = curves(objective, half_width)
    every = torch.cat(list(by_sign.values()))
    low, high = min(every.min().item(), 0.0), max(every.max().item(), 0.0)

    def across(value: Tensor | float) -> Tensor | float:
        return frame.left + (frame.right - frame.left) * (value + half_width) / (2 * half_width)

    def down(value: Tensor | float) -> Tensor | float:
        return frame.bottom - 4 - (frame.bottom - frame.top - 8) * (value - low) / (high - low)

    zero, center = down(0.0), across(0.0)
    axes = f"M{frame.left:g} {zero:.1f}H{frame.right:g}M{center:.1f} {frame.top:g}V{frame.bottom:g}"
    parts = [f'<path class="axis" d="{axes}"/>']
    for number, kind in ((1, "other"), (0, "own")):
        for sign, values in by_sign.items():
            points = _path(across(log_ratio).tolist(), down(values[:, number]).tolist())
            parts.append(f'<path class="{kind} {sign}" d="{points}"/>')
    ends = [value for value in (high, low) if value]
    heights = {value: down(value) for value in ends}
    if all(abs(height - zero) > 1.2 * frame.label_height for height in heights.values()):
        heights[0.0] = zero
    beside, below = frame.left - frame.label_height / 3, frame.bottom + 1.4 * frame.label_height
    parts += [
        _text(beside, height + frame.label_height / 3, _number(value), "end") for value, height in heights.items()
    ]
    ticks = {frame.left: _number(-half_width), center: "0" if frame is LARGE else "x", frame.right: _number(half_width)}
    return parts + [_text(place, below, tick, "middle") for place, tick in ticks.items()]


def _path(across: list[float], down: list[float]) -> str:
    """The points joined, without those in the middle of a level stretch."""
    level = [f"{y:.1f}" for y in down]
    last = len(level) - 1
    kept = [i for i in range(last + 1) if i in (0, last) or not level[i - 1] == level[i] == level[i + 1]]
    return "M" + "L".join(f"{across[i]:.1f} {level[i]}" for i in kept)


def _text(across: float, down: float, text: str, anchor: str) -> str:
    return f'<text x="{across:.1f}" y="{down:.1f}" text-anchor="{anchor}">{text}</text>'


def _number(value: float) -> str:
    return f"{value:.2g}".replace("-", "\N{MINUS SIGN}")
