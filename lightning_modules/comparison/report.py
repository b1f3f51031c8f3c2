"""Page of a comparison: tables, plots, and a heat map of each objective's weights on the recorded completions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

from torch import Tensor

from lightning_modules.comparison.compare import Comparison
from lightning_modules.comparison.rows import ALL, Row
from lightning_modules.viewer import Completion, Plot, Quantity, Report, Run, Table, TokenNumbers

_COMPLETIONS = 200  # on the page, of the last update of the rollouts, where ratios are farthest from 1
_RECORDED = "The first column has the weights that the training steps computed."
_PLOTS = {
    "weight_by_log_ratio": (
        "Weight against log ratio",
        "Weight of a token over its weight if every ratio were 1: mean and 5 % to 95 % of the tokens in each bin. The "
        "same line at 1 for all means would say that the ratios do not matter. A bin has five tokens or more.",
    ),
    "gradient_by_position": (
        "Gradient and clipped tokens against position",
        "Left: share of the gradient in each tenth of the completions over the share of the tokens, 1 where it is "
        "even. Right: tokens whose gradient a clip sets to zero.",
    ),
    "gradient_by_log_ratio": (
        "Gradient by log ratio",
        "Share of the gradient in each tenth of the tokens, sorted by log ratio; 10 % where it is even.",
    ),
    "measures_by_update": ("By update of the rollout", "In the first update every ratio is 1, up to rounding."),
    "clipped_overlap": (
        "Overlap of the clipped tokens",
        "Tokens that both objectives clip over those that either clips; a dash where neither clips any.",
    ),
    "parameter_gradients": (
        "Norm and noise of the parameter gradients",
        "On one optimizer step. Noise: standard deviation of the gradient over completions, over its norm.",
    ),
    "gradient_cosines": ("Angles between the parameter gradients", "On one optimizer step."),
}


def comparison_report(comparison: Comparison, folder: Path) -> Report:
    """Return the page of a comparison.

    Args:
        comparison: the comparison.
        folder: folder with its plots as SVG.
    """
    manifest = comparison.recording.manifest
    model = manifest.model.get("class_path") if isinstance(manifest.model, Mapping) else manifest.model
    facts = {
        "trained objective": manifest.objective,
        "model": str(model),
        "recorded": f"{manifest.rollouts} rollouts, {len(manifest.steps)} optimizer steps",
        "device": f"{manifest.device}, {manifest.precision}",
    }
    labels = list(comparison.weights)
    completions, left_out = _completions(comparison)
    shown = f"The page has {len(completions)} completions, of the last update; the recording has {left_out:,} more."
    return Report(
        title=f"Objectives on {comparison.recording.folder.name}",
        runs=[Run(comparison.recording.folder.name, facts=facts)],
        completions=completions,
        quantities=_quantities(labels),
        tables=_tables(comparison),
        plots=[_plot(folder, name, *texts) for name, texts in _PLOTS.items() if (folder / f"{name}.svg").exists()],
        notes=[shown] if left_out else [],
    )


def _plot(folder: Path, name: str, title: str, caption: str) -> Plot:
    return Plot(title, (folder / f"{name}.svg").read_text(encoding="utf-8"), f"{caption} Numbers: {name}.csv.")


def _tables(comparison: Comparison) -> list[Table]:
    whole = [row for row in comparison.objectives if row["update"] == ALL]
    tables = [_table("All optimizer steps", whole, _RECORDED)]
    if comparison.gradients:
        note = f"Optimizer step {comparison.gradients[0]['step']}. {comparison.gradients_note}".strip()
        tables.append(_table("Gradients of the parameters", comparison.gradients, note))
    return tables


def _table(title: str, rows: Sequence[Row], caption: str) -> Table:
    """Return a table with a column for each objective, since there are more measures than objectives."""
    measures = [name for name in rows[0] if name not in ("objective", "update", "step")]
    cells = [[name.replace("_", " "), *(_cell(row[name]) for row in rows)] for name in measures]
    return Table(title, ["measure", *(str(row["objective"]) for row in rows)], cells, caption)


def _cell(value: float | int | str) -> float | int | str:
    if isinstance(value, float):
        return "" if math.isnan(value) else float(f"{value:.4g}")
    return value


def _quantities(labels: Sequence[str]) -> list[Quantity]:
    meaning = "Gradient of the objective with respect to the log-probability of the token."
    weights = [
        Quantity(f"weight/{label}", f"weight, {label}", "w", "", meaning, mark=f"clipped/{label}") for label in labels
    ]
    ratio = Quantity("log_ratio", "log ratio", "log r", "nats", "Of the policies of the step and of the rollout.")
    return [*weights, ratio]


def _completions(comparison: Comparison) -> tuple[list[Completion], int]:
    """Return the completions of the last update with their numbers, and how many are left out."""
    last = max(comparison.tokens.updates)
    rows, spans = comparison.recording.tokens, _Spans(comparison)
    chosen = [(number, row) for number, row in enumerate(rows) if row["update"] == last]
    shown = [
        Completion(
            run=0,
            step=row["step"],
            group=row["group"],
            sample=row["sample"],
            prompt=row["prompt"],
            text=row["completion"],
            reward=row["reward"],
            advantage=_mean(row["advantage"]),
            length=len(row["tokens"]),
            tokens=[spans.numbers(number, row)],
        )
        for number, row in chosen[:_COMPLETIONS]
    ]
    return shown, len(rows) - len(shown)


class _Spans:
    """Numbers of the tokens of a row, from the table of all trained tokens, which has the rows one after the other."""

    def __init__(self, comparison: Comparison) -> None:
        columns: dict[str, Tensor] = {"log_ratio": comparison.tokens.log_ratio}
        columns |= {f"weight/{label}": one.total for label, one in comparison.weights.items()}
        marks = {f"clipped/{label}": one.clipped for label, one in comparison.weights.items()}
        counts = comparison.tokens.completion.bincount().tolist()
        self._values = {name: column.split(counts) for name, column in columns.items()}
        self._marks = {name: column.split(counts) for name, column in marks.items()}

    def numbers(self, number: int, row: Mapping[str, Any]) -> TokenNumbers:
        trained = row["trained"]
        return TokenNumbers(
            step=row["step"],
            texts=row["tokens"],
            ids=row["token_ids"],
            values={name: _placed(parts[number], trained, math.nan) for name, parts in self._values.items()},
            marks={
                "untrained": [not flag for flag in trained],
                **{name: _placed(parts[number], trained, False) for name, parts in self._marks.items()},
            },
        )


def _placed(values: Tensor, trained: Sequence[bool], missing: Any) -> list[Any]:
    """Return a value for each token of a completion, from those of the trained ones."""
    known = iter(values.tolist())
    return [next(known) if flag else missing for flag in trained]


def _mean(advantage: float | Sequence[float]) -> float:
    return sum(advantage) / max(len(advantage), 1) if isinstance(advantage, Sequence) else advantage
