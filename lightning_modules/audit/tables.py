"""An audit of two graders as Markdown and as JSON."""

from __future__ import annotations

import json
from typing import Any

from lightning_modules.audit.audit import Audit, Difference, Grades
from lightning_modules.rewards import Verdict

_TEXT = 160  # characters of a completion or example in a cell
_ALL = "`--format json` has them all."
_PAIRS = 10  # of rewards in the table


def audit_table(audit: Audit, show: int = 20) -> str:
    """Return an audit as Markdown: counts, the two rewards of the completions, and the first differences.

    Args:
        audit: the audit.
        show: number of differences to list, and of bad lines.
    """
    differ, rows = len(audit.differences), audit.rows
    lines = [
        f"{rows:,} completions graded, {len(audit.bad_rows):,} bad lines left out.",
        f"The graders differ, or one fails, on {differ:,} of them ({differ / rows:.2%}).",
        "",
        "| grader | mean reward | verdicts | failed |",
        "|---|---:|---:|---|",
        *(_grades(grades) for grades in (audit.first, audit.second)),
        "",
        f"| {audit.first.name} | {audit.second.name} | completions |",
        "|---:|---:|---:|",
        *(
            f"| {_reward(first)} | {_reward(second)} | {count:,} |"
            for (first, second), count in audit.pairs.most_common(_PAIRS)
        ),
    ]
    if further := audit.pairs.most_common()[_PAIRS:]:
        completions = sum(count for _, count in further)
        lines += ["", f"{completions:,} completions have {len(further):,} further pairs of rewards. {_ALL}"]
    if shown := audit.differences[:show]:
        lines += ["", f"| line | {audit.first.name} | {audit.second.name} | answer | end of the completion |"]
        lines += ["|---:|---|---|---|---|", *map(_difference, shown)]
        if differ > show:
            lines += ["", f"{differ - show:,} further ones. {_ALL}"]
    if audit.bad_rows:
        lines += ["", *(f"- line {row.line}: {_cell(row.reason)}" for row in audit.bad_rows[:show])]
        if len(audit.bad_rows) > show:
            lines += ["", f"{len(audit.bad_rows) - show:,} further bad lines. {_ALL}"]
    return "\n".join(lines)


def audit_json(audit: Audit) -> str:
    """Return an audit as JSON, with all differences."""
    graders = {
        key: {"name": grades.name, "mean": grades.mean, "count": grades.count, "failed": dict(grades.failed)}
        for key, grades in (("first", audit.first), ("second", audit.second))
    }
    pairs = [{"first": first, "second": second, "count": count} for (first, second), count in audit.pairs.items()]
    content = {
        "rows": audit.rows,
        **graders,
        "pairs": pairs,
        "differences": [_as_json(difference) for difference in audit.differences],
        "bad_rows": [vars(row) for row in audit.bad_rows],
    }
    return json.dumps(content, indent=2, ensure_ascii=False, default=str)


def _as_json(difference: Difference) -> dict[str, Any]:
    return {
        "line": difference.line,
        "completion": difference.completion,
        "example": difference.example,
        "first": vars(difference.verdict),
        "second": vars(difference.other),
    }


def _grades(grades: Grades) -> str:
    failed = ", ".join(f"{cause}: {count}" for cause, count in sorted(grades.failed.items())) or "0"
    return f"| {grades.name} | {grades.mean:.4f} | {grades.count:,} | {failed} |"


def _difference(difference: Difference) -> str:
    answer = difference.example.get("answer", "")
    verdicts = f"{_verdict(difference.verdict)} | {_verdict(difference.other)}"
    end = difference.completion[-_TEXT:]
    return f"| {difference.line} | {verdicts} | {_cell(str(answer)[:_TEXT])} | {_cell(end)} |"


def _verdict(verdict: Verdict) -> str:
    return f"failed: {verdict.cause}" if verdict.value is None else _reward(verdict.value)


def _reward(value: float | None) -> str:
    return "failed" if value is None else f"{value:.6g}"


def _cell(text: str) -> str:
    """Return a text that fits in a cell: in one line, without what would end the cell."""
    return " ".join(text.split()).replace("|", "\\|")
