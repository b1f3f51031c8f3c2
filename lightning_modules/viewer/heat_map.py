"""A completion as a picture: the heat map of its tokens as SVG, in the colors of the page."""

from __future__ import annotations

import math
from collections.abc import Sequence
from html import escape
from textwrap import wrap
from unicodedata import east_asian_width

from lightning_modules.viewer.report import Quantity, TokenNumbers

_NEUTRAL, _LOW, _HIGH = (255, 255, 255), (33, 102, 172), (205, 92, 8)
_SHARE_OF_BOUND = 0.99  # quantile of the sizes of the numbers at which colors end
_WIDTH, _MARGIN, _CHARACTER, _LINE = 860, 20, 9.0, 30  # pixels
_LONGEST_CELL = int((_WIDTH - 2 * _MARGIN - 5) / _CHARACTER)  # characters
_TITLE_COLUMNS, _ABOUT_COLUMNS = 72, 125  # characters of a line of each size
_SIGNS = str.maketrans({"\t": "\u21e5", "\r": "\u240d", "\n": "\u23ce"})
_SANS = "font-family='system-ui, Segoe UI, Helvetica, Arial, sans-serif'"
_MONO = "font-family='ui-monospace, SFMono-Regular, DejaVu Sans Mono, Menlo, Consolas, monospace'"
COLORED = ("diverging", "share")  # scales of the quantities that a picture can show
_INK, _MUTED, _OUTLINE = "#1a1d23", "#5c6470", "#dde1e7"


def heat_map_svg(tokens: TokenNumbers, quantities: Sequence[Quantity], title: str, about: Sequence[str] = ()) -> str:
    """Return the heat maps of a completion as an SVG file, one below the other, each with its legend.

    Args:
        tokens: numbers of the tokens.
        quantities: quantities to show, of the scales `diverging` and `share`; each is colored up to the 99th percentile
            of its sizes in this completion.
        title: first lines, such as the prompt; they are wrapped, and line breaks are shown.
        about: lines below it, such as objective, model, data and step.

    Raises:
        ValueError: a quantity has no numbers, or another scale.
    """
    _require_colors(tokens, quantities)
    body, top = _head(title, about)
    for quantity in quantities:
        sizes = _sizes(quantity, tokens.values[quantity.name])
        bound = color_bound(sizes)
        body += _legend(quantity, bound, top)
        cells, top = _cells(tokens, quantity, [size / bound for size in sizes], top + 18)
        body += cells
        top += 34
    if any(any(tokens.marks.get(quantity.mark, ())) for quantity in quantities):
        body.append(_text(_MARGIN, top - 10, "\u25b2 clipped: the token has no gradient", 11.5, _MUTED))
        top += 26
    top -= 20
    head = f'<svg xmlns="http://www.w3.org/2000/svg" width="{_WIDTH}" height="{top}" viewBox="0 0 {_WIDTH} {top}">'
    frame = f'<rect x="0.5" y="0.5" width="{_WIDTH - 1}" height="{top - 1}" rx="8" fill="#fff" stroke="{_OUTLINE}"/>'
    return "\n".join([head, frame, *body, "</svg>\n"])


def _require_colors(tokens: TokenNumbers, quantities: Sequence[Quantity]) -> None:
    for quantity in quantities:
        if quantity.scale not in COLORED:
            raise ValueError(
                f"`quantities` has {quantity.name!r}, whose scale is {quantity.scale!r}; pass quantities of the scales "
                f"{' and '.join(COLORED)}."
            )
        if quantity.name not in tokens.values:
            raise ValueError(
                f"`quantities` has {quantity.name!r}, of which the completion has no numbers; pass some of "
                f"{sorted(tokens.values)}."
            )


def _head(title: str, about: Sequence[str]) -> tuple[list[str], int]:
    """Return the lines above the heat maps, and where these begin."""
    lines, top = [], 30
    for line in _wrapped(title, _TITLE_COLUMNS):
        lines.append(_text(_MARGIN, top, line, 15, _INK, "600"))
        top += 20
    for line in [part for text in about for part in _wrapped(text, _ABOUT_COLUMNS)]:
        lines.append(_text(_MARGIN, top, line, 12.5, _MUTED))
        top += 17
    return lines, top + 15


def _wrapped(text: str, columns: int) -> list[str]:
    """Return the lines of a text, each of at most so many columns; a wide letter, such as a Chinese one, takes two."""
    columns = columns // 2 if any(east_asian_width(letter) in "WF" for letter in text) else columns
    parts = [part.translate(_SIGNS) for part in text.splitlines(keepends=True)]
    return [line for part in parts for line in wrap(part, columns, drop_whitespace=False)] or [""]


def color_at(position: float) -> tuple[int, int, int]:
    """Return red, green and blue at a position of the scale, from -1 to 1; 0 is white, and beyond is as at the end."""
    end, share = _LOW if position < 0 else _HIGH, min(abs(position), 1.0)
    red, green, blue = (math.floor(low + (high - low) * share + 0.5) for low, high in zip(_NEUTRAL, end, strict=True))
    return red, green, blue


def color_bound(sizes: Sequence[float]) -> float:
    """Return the size at which the colors of a scale end, the 99th percentile; 1 without any."""
    finite = sorted(abs(size) for size in sizes if math.isfinite(size))
    if not finite:
        return 1.0
    return finite[math.ceil(len(finite) * _SHARE_OF_BOUND) - 1] or finite[-1] or 1.0


def _sizes(quantity: Quantity, values: Sequence[float]) -> list[float]:
    """Return what the colors of numbers show: the numbers, or the logarithms of their multiples of an equal share.

    Shares of 0 and below are at the lower end.
    """
    if quantity.scale != "share":
        return list(values)
    count = sum(not math.isnan(value) for value in values)
    return [value if math.isnan(value) else math.log2(value * count) if value > 0 else -math.inf for value in values]


def _cells(tokens: TokenNumbers, quantity: Quantity, positions: Sequence[float], top: int) -> tuple[list[str], int]:
    """Return the cells of the tokens, and where the last line ends."""
    cells, left = [], float(_MARGIN)
    clipped = tokens.marks.get(quantity.mark) or [False] * len(tokens.texts)
    for text, position, mark in zip(tokens.texts, positions, clipped, strict=True):
        for shown in _chunks(text):
            width = len(shown) * _CHARACTER + 5
            if left + width > _WIDTH - _MARGIN and left > _MARGIN:
                left, top = float(_MARGIN), top + _LINE + 4
            cells += _cell(shown, position, mark, left, top)
            left += width + 1.5
    return cells, top + _LINE


def _chunks(text: str) -> list[str]:
    """Return a token as it is shown, in chunks that fit a line."""
    shown = text.replace(" ", "\u00b7").translate(_SIGNS) or "\u2205"
    return [shown[start : start + _LONGEST_CELL] for start in range(0, len(shown), _LONGEST_CELL)]


def _cell(shown: str, position: float, mark: bool, left: float, top: int) -> list[str]:
    """Return the shapes of a cell."""
    color = (240, 240, 240) if math.isnan(position) else color_at(position)
    ink = "#fff" if _luminance(color) <= 0.179 else "#000"
    edge = f'stroke="{_INK}" stroke-width="2"' if mark else f'stroke="{_OUTLINE}"'
    length = len(shown) * _CHARACTER
    cell = [
        f'<rect x="{left:.1f}" y="{top}" width="{length + 5:.1f}" height="{_LINE - 4}" rx="3" fill="rgb{color}" '
        f"{edge}/>",
        f'<text x="{left + 2.5:.1f}" y="{top + 18}" {_MONO} font-size="15" fill="{ink}" '
        f'textLength="{length:.1f}" lengthAdjust="spacingAndGlyphs" xml:space="preserve">{_clean(shown)}</text>',
    ]
    return cell + ([_text(left + length / 2 - 1.5, top + _LINE + 6, "\u25b2", 9, _INK)] if mark else [])


def _legend(quantity: Quantity, bound: float, top: int) -> list[str]:
    """Return the name of a quantity, and its color scale with the numbers at the ends."""
    name = f"{quantity.label}, {quantity.symbol}" if quantity.symbol else quantity.label
    if quantity.unit:
        name += f" ({quantity.unit})"
    if quantity.scale == "share":
        low, middle, high = f"{2**-bound:.3g} \u00d7", "equal share", f"{2**bound:.3g} \u00d7"
    else:
        low, middle, high = f"\u2212{bound:.3g}", "0", f"{bound:.3g}"
    left, width, steps = 520, 200, 20
    ramp = [
        f'<rect x="{left + index * width / steps:.1f}" y="{top - 4}" width="{width / steps + 0.5:.1f}" height="11" '
        f'fill="rgb{color_at(2 * index / (steps - 1) - 1)}"/>'
        for index in range(steps)
    ]
    labels = [
        _text(left - 8, top + 6, low, 11.5, _MUTED, anchor="end"),
        _text(left + width / 2, top - 9, middle, 11.5, _MUTED, anchor="middle"),
        _text(left + width + 8, top + 6, high, 11.5, _MUTED),
    ]
    outline = f'<rect x="{left}" y="{top - 4}" width="{width}" height="11" fill="none" stroke="{_OUTLINE}"/>'
    return [_text(_MARGIN, top + 6, name, 13, _INK, "600"), *ramp, outline, *labels]


def _text(
    left: float, top: float, text: str, size: float, color: str, weight: str = "400", anchor: str = "start"
) -> str:
    return (
        f'<text x="{left:.1f}" y="{top}" {_SANS} font-size="{size}" font-weight="{weight}" fill="{color}" '
        f'text-anchor="{anchor}">{_clean(text)}</text>'
    )


def _clean(text: str) -> str:
    """Return a text as XML, which has no control characters."""
    return escape("".join(letter if letter.isprintable() else "\ufffd" for letter in text))


def _luminance(color: tuple[int, int, int]) -> float:
    linear = [part / 12.92 if part <= 0.04045 else ((part + 0.055) / 1.055) ** 2.4 for part in (c / 255 for c in color)]
    return 0.2126 * linear[0] + 0.7152 * linear[1] + 0.0722 * linear[2]
