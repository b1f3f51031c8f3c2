"""What is said of a broken law: where it breaks, what was computed, and on which input."""

from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from aggregate_po.advantages import GroupedRewards


class LawBroken(AssertionError):
    """A law does not hold.

    Args:
        finding: what was computed, and what it should have been.
        row: the completion in which it is, where it is in one.
        rows: how many there are.
    """

    def __init__(self, finding: str, row: int | None = None, rows: int | None = None) -> None:
        super().__init__(finding)
        self.finding = finding
        self.row = row
        self.rows = rows


def require(condition: bool, finding: str) -> None:
    """Break the law unless the condition holds."""
    if not condition:
        raise LawBroken(finding)


def require_form(
    what: str, result: Any, shape: tuple[int, ...], dtype: torch.dtype, or_shape: tuple[int, ...] | None = None
) -> None:
    """Break the law unless a result is a tensor of this type, and of this shape or of the other one."""
    if not isinstance(result, Tensor):
        raise LawBroken(f"{what}: {type(result).__name__}, not a tensor")
    shapes = [tuple(shape)] if or_shape is None else [tuple(shape), tuple(or_shape)]
    found = f"{what}: shape {tuple(result.shape)} and type {result.dtype}"
    expected = f"shape {' or '.join(map(str, shapes))} and type {dtype}"
    require(tuple(result.shape) in shapes and result.dtype == dtype, f"{found}, not {expected}")


def require_all(what: str, holds: Tensor, actual: Tensor, claim: str, where: Tensor | None = None) -> None:
    """Break the law unless `holds` is True everywhere, or everywhere in `where`."""
    wrong = ~holds if where is None else ~holds & where
    if wrong.any():
        _break(what, wrong, {"actual": actual, "expected": claim})


def require_finite(what: str, actual: Tensor, where: Tensor | None = None) -> None:
    """Break the law unless every number is finite, or every one in `where`."""
    require_all(what, torch.isfinite(actual), actual, "finite numbers", where)


def require_close(
    what: str, actual: Tensor, expected: Tensor | float, allowed: Tensor | float = 0.0, where: Tensor | None = None
) -> None:
    """Break the law unless two tensors agree, or agree in `where`.

    Args:
        what: names the quantity in the report.
        actual: as computed.
        expected: as it should be; a number, or a tensor of the same shape.
        allowed: how far they may be apart; what is equal agrees always, NaN never.
        where: entries that count; all when None.
    """
    expected = torch.as_tensor(expected, dtype=actual.dtype if isinstance(expected, float) else None)
    if expected.ndim and expected.shape != actual.shape:
        raise LawBroken(f"{what} has shape {tuple(actual.shape)}, not {tuple(expected.shape)}")
    wrong = ~((actual == expected) | ((actual.double() - expected.double()).abs() <= allowed))
    if where is not None:
        wrong = wrong & where
    if wrong.any():
        _break(what, wrong, {"actual": actual, "expected": expected, "may differ by": _three_digits(allowed)})


def _break(what: str, wrong: Tensor, shown: dict[str, Tensor | str]) -> None:
    row = int(wrong.reshape(len(wrong), -1).any(dim=-1).nonzero()[0]) if wrong.ndim else None
    width = max(len(name) for name in shown)
    lines = [f"{what}:" if row is None else f"{what}, completion {row} of {len(wrong)}:"]
    for name, value in shown.items():
        lines.append(f"  {name:<{width}}  {written(value, row, len(wrong) if wrong.ndim else None)}")
    raise LawBroken("\n".join(lines), row, len(wrong) if wrong.ndim else None)


def _three_digits(numbers: Tensor | float) -> Tensor:
    copy = torch.as_tensor(numbers, dtype=torch.float64).detach().clone()
    return copy.apply_(lambda number: float(f"{number:.3g}"))


def written(value: Any, row: int | None = None, rows: int | None = None) -> str:
    """A value as a person would write it; only one completion's, where `row` of `rows` is given."""
    if not isinstance(value, Tensor):
        return value if isinstance(value, str) else repr(value)
    if row is not None and value.ndim and len(value) == rows:
        value = value[row]
    if value.dtype == torch.bool:
        value = value.int()
    return str(value.tolist())


def described(inputs: dict[str, Any], row: int | None, rows: int | None) -> str:
    """The inputs of a law, one field a line, of the one completion where one is to blame."""
    return "\n".join(line for name, value in inputs.items() for line in _lines(name, value, row, rows))


def _lines(name: str, value: Any, row: int | None, rows: int | None) -> list[str]:
    if isinstance(value, torch.Generator):
        return [f"{name} = torch.Generator().manual_seed({value.initial_seed()})"]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        pairs = zip(value._fields, value, strict=True)
        return [line for field, member in pairs for line in _lines(field, member, row, rows)]
    if not is_dataclass(value) or isinstance(value, type):
        return [f"{name} = {written(value, row, rows)}"]
    filled = {field.name: getattr(value, field.name) for field in fields(value)}
    batch = next((len(member) for member in filled.values() if isinstance(member, Tensor) and member.ndim), None)
    # An advantage follows from the rewards of the others, so these are shown with it.
    one = row is not None and rows == batch and batch is not None and not isinstance(value, GroupedRewards)
    heading = f"{name}, completion {row} of {rows}:" if one else f"{name}:"
    lines = [line for field, member in filled.items() for line in _lines(field, member, row if one else None, batch)]
    return [heading, *(f"  {line}" for line in lines)]


def scale(expected: Tensor) -> Tensor:
    """One more than the size of the numbers, to which rounding is relative."""
    return 1 + expected.detach().abs()
