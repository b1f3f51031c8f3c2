"""Small pictures of gradient weights: one token moves, and the objective says what it and its neighbours receive."""

import math

import torch
from torch import Tensor

from aggregate_po import PolicyBatch, PolicyObjective, StepTotals

TOKENS = 3
BEHAVIOUR_PROBABILITY = 0.5
RANGES = (0.002, 0.01, 1.0, 2.0)  # half-widths of the axis of log ratios
SIGNS = {"up": 1.0, "down": -1.0}  # class of the curve in site.css: advantage

_POINTS = 121
_LEFT, _RIGHT, _TOP, _BOTTOM, _WIDTH, _HEIGHT = 30.0, 172.0, 6.0, 86.0, 176, 100


def weights(objective: PolicyObjective, log_ratio: Tensor, advantage: float) -> Tensor:
    """Gradient weights of a completion, times its length, when its first token has the given log ratios.

    The other tokens have the ratio 1. The completion is alone in its optimiser step.

    Returns:
        Shape `batch time`, one row for each log ratio.
    """
    old = torch.full((len(log_ratio), TOKENS), math.log(BEHAVIOUR_PROBABILITY), dtype=torch.float64)
    log_probs = old.clone()
    log_probs[:, 0] += log_ratio
    totals = StepTotals(completions=1, tokens=TOKENS, reward_mean=0.5, reward_std=0.5)
    batch = PolicyBatch(old, torch.ones_like(old), torch.full_like(old[:, 0], advantage), totals)
    return TOKENS * objective.gradient_weights(log_probs, batch).total


def visible_range(objective: PolicyObjective) -> float:
    """Half-width of the narrowest range in whose inner nine tenths are the places where curves begin to be flat.

    A clip, a cap or a mask makes a curve flat from some log ratio on. Where nothing does, it is 1.
    """
    distance = torch.logspace(-4, math.log10(RANGES[-1]), 240, dtype=torch.float64)
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
    """The curves as SVG on one line; colours and widths are those of the classes in site.css."""
    half_width = visible_range(objective)
    log_ratio, by_sign = curves(objective, half_width)
    every = torch.cat(list(by_sign.values()))
    low, high = min(every.min().item(), 0.0), max(every.max().item(), 0.0)

    def across(value: Tensor | float) -> Tensor | float:
        return _LEFT + (_RIGHT - _LEFT) * (value + half_width) / (2 * half_width)

    def down(value: Tensor | float) -> Tensor | float:
        return _BOTTOM - 4 - (_BOTTOM - _TOP - 8) * (value - low) / (high - low)

    zero, centre = down(0.0), across(0.0)
    label = f"{name}: gradient weight of a token against its log ratio, from {-half_width:g} to {half_width:g}"
    parts = [
        f'<svg class="weight-plot" viewBox="0 0 {_WIDTH} {_HEIGHT}" width="{_WIDTH}" height="{_HEIGHT}" role="img" '
        f'aria-label="{label}">',
        f'<path class="axis" d="M{_LEFT:g} {zero:.1f}H{_RIGHT:g}M{centre:.1f} {_TOP:g}V{_BOTTOM:g}"/>',
    ]
    for number, kind in ((1, "other"), (0, "own")):
        for sign, values in by_sign.items():
            points = _path(across(log_ratio).tolist(), down(values[:, number]).tolist())
            parts.append(f'<path class="{kind} {sign}" d="{points}"/>')
    ends = [value for value in (high, low) if value]
    parts += [_text(_LEFT - 3, down(value) + 3, _number(value), "end") for value in ends]
    if all(abs(down(value) - zero) > 10 for value in ends):
        parts.append(_text(_LEFT - 3, zero + 3, "0", "end"))
    parts.append(_text(_LEFT, _HEIGHT - 3, _number(-half_width), "middle"))
    parts.append(_text(centre, _HEIGHT - 3, "x", "middle"))
    parts.append(_text(_RIGHT, _HEIGHT - 3, _number(half_width), "end"))
    return "".join([*parts, "</svg>"])


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
