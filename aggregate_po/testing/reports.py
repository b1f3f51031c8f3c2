"""Failure reports of properties: the completion, the computed and expected values, and the input."""

from dataclasses import fields, is_dataclass
from typing import Any

import torch
from torch import Tensor

from aggregate_po.advantages import GroupedRewards


class LawBroken(AssertionError):
    """Failure of a property.

    Args:
        finding: description of the computed and the expected values.
        row: index of the failing completion, if there is one.
        rows: number of completions.
    """

    def __init__(self, finding: str, row: int | None = None, rows: int | None = None) -> None:
        super().__init__(finding)
        self.finding = finding
        self.row = row
        self.rows = rows


def require(condition: bool, finding: str) -> None:
    """Fail unless the condition holds."""
    if not condition:
        raise LawBroken(finding)


def require_form(
    what: str, result: Any, shape: tuple[int, ...], dtype: torch.dtype, or_shape: tuple[int, ...] | None = None
) -> None:
    """Fail unless a result is a tensor of this dtype and of one of the given shapes."""
    if not isinstance(result, Tensor):
        raise LawBroken(f"{what}: {type(result).__name__}, not a tensor")
    shapes = [tuple(shape)] if or_shape is None else [tuple(shape), tuple(or_shape)]
    found = f"{what}: shape {tuple(result.shape)} and type {result.dtype}"
    expected = f"shape {' or '.join(map(str, shapes))} and type {dtype}"
    require(tuple(result.shape) in shapes and result.dtype == dtype, f"{found}, not {expected}")


def require_all(what: str, holds: Tensor, actual: Tensor, claim: str, where: Tensor | None = None) -> None:
    """Fail unless `holds` is True everywhere, or everywhere in `where`."""
    wrong = ~holds if where is None else ~holds & where
    if wrong.any():
        _break(what, wrong, {"actual": actual, "expected": claim})


def require_finite(what: str, actual: Tensor, where: Tensor | None = None) -> None:
    """Fail unless every number is finite, or every number in `where`."""
    require_all(what, torch.isfinite(actual), actual, "finite numbers", where)


def require_close(
    what: str, actual: Tensor, expected: Tensor | float, allowed: Tensor | float = 0.0, where: Tensor | None = None
) -> None:
    """Fail unless two tensors agree, or agree in `where`.

    Args:
        what: name of the quantity in the report.
        actual: computed values.
        expected: expected values; a number, or a tensor of the same shape.
        allowed: absolute tolerance; equal values always agree, NaN never does.
        where: True on the entries to compare; None means all.
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
    """Format a value for a report; only that of one completion if `row` of `rows` is given."""
    if not isinstance(value, Tensor):
        return value if isinstance(value, str) else repr(value)
    if row is not None and value.ndim and len(value) == rows:
        value = value[row]
    if value.dtype == torch.bool:
        value = value.int()
    return str(value.tolist())


def described(inputs: dict[str, Any], row: int | None, rows: int | None) -> str:
    """Format the inputs of a property, one given field per line; of the failing completion only, if there is one."""
    return "\n".join(line for name, value in inputs.items() for line in _lines(name, value, row, rows))


def _lines(name: str, value: Any, row: int | None, rows: int | None) -> list[str]:
    if isinstance(value, torch.Generator):
        return [f"{name} = torch.Generator().manual_seed({value.initial_seed()})"]
    if isinstance(value, tuple) and hasattr(value, "_fields"):
        pairs = zip(value._fields, value, strict=True)
        return [line for field, member in pairs for line in _lines(field, member, row, rows)]
    if not is_dataclass(value) or isinstance(value, type):
        return [f"{name} = {written(value, row, rows)}"]
    members = {field.name: getattr(value, field.name) for field in fields(value)}
    filled = {field: member for field, member in members.items() if member is not None}
    batch = next((len(member) for member in filled.values() if isinstance(member, Tensor) and member.ndim), None)
    # An advantage depends on the rewards of other completions, so the report shows all of them.
    one = row is not None and rows == batch and batch is not None and not isinstance(value, GroupedRewards)
    heading = f"{name}, completion {row} of {rows}:" if one else f"{name}:"
    lines = [line for field, member in filled.items() for line in _lines(field, member, row if one else None, batch)]
    return [heading, *(f"  {line}" for line in lines)]


def scale(expected: Tensor) -> Tensor:
    """Return one plus the magnitude, the scale of a relative or absolute tolerance."""
    return 1 + expected.detach().abs()
