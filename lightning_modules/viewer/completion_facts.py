"""Completions of a page from rows of completions and of token numbers."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from typing import Any

from lightning_modules.token_rows import TokenRow
from lightning_modules.viewer.report import Completion, TokenNumbers
from lightning_modules.viewer.run_facts import described_value

# Columns that a completion shows by itself, or that say nothing beyond them.
_SHOWN = {"step", "group", "sample", "prompt", "completion", "reward", "advantage", "length", "example"}
_LONGEST_FACT = 500  # characters


def completion_of_row(
    row: Mapping[str, Any], key: tuple[int, int, int], tokens: Sequence[TokenNumbers] = ()
) -> Completion:
    """Return the completion of a row that `CompletionsFile` has written.

    Args:
        row: the row.
        key: first step of its rollout, group and sample.
        tokens: numbers of its tokens.
    """
    others = {name: value for name, value in row.items() if name not in _SHOWN and value not in (None, "")}
    facts = {name: _fact(value) for name, value in {**_example(row.get("example")), **others}.items()}
    step, group, sample = key
    return Completion(
        run=0,
        step=step,
        group=group,
        sample=sample,
        prompt=str(row["prompt"]),
        text=str(row["completion"]),
        reward=row.get("reward"),
        advantage=_mean(row.get("advantage")),
        length=row.get("length"),
        facts=facts,
        tokens=tokens,
    )


def completion_of_token_row(row: TokenRow, start: int) -> Completion:
    """Return the completion of a row of token numbers, whose rollout begins with this step."""
    return Completion(
        run=0,
        step=start,
        group=row["group"],
        sample=row["sample"],
        prompt=row["prompt"],
        text=row["completion"],
        reward=row["reward"],
        advantage=_mean(row["advantage"]),
        length=len(row["tokens"]),
    )


def _example(text: object) -> dict[str, Any]:
    """Return the other fields of an example, which are kept as JSON."""
    try:
        fields = json.loads(text) if isinstance(text, str) else {}
    except ValueError:
        return {"example": text}
    return fields if isinstance(fields, dict) else {"example": fields}


def _mean(advantage: float | Sequence[float] | None) -> float | None:
    if isinstance(advantage, (list, tuple)):
        return sum(advantage) / len(advantage) if advantage else None
    return None if advantage is None else float(advantage)  # type: ignore[arg-type]


def _fact(value: Any) -> str:
    text = value if isinstance(value, str) else described_value(value)
    return text if len(text) <= _LONGEST_FACT else f"{text[:_LONGEST_FACT]} ... ({len(text):,} characters)"
