"""`aggregate-po view`: write the page of one run or several."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

from lightning_modules.argument_parser import PolicyArgumentParser
from lightning_modules.errors import ended_by_its_message
from lightning_modules.viewer.page import write_page
from lightning_modules.viewer.report import Report
from lightning_modules.viewer.view import run_report

_DESCRIPTION = (
    "Write one HTML file that shows runs: metrics with what to expect of them, and the kept completions with a heat "
    "map of their tokens. It opens in a browser without a network. Runs that differ in their seed only become one line "
    "with a band."
)


def view_command(arguments: Sequence[str]) -> None:
    """Run `aggregate-po view`."""
    options = vars(_parser().parse_args(list(arguments)))
    output = Path(options.pop("output"))
    with ended_by_its_message():
        _require_output(output)
        report = run_report(**options)
        replaced = output.exists()
        size = write_page(report, output)
    print(_summary(report, output, size, replaced))


def _parser() -> PolicyArgumentParser:
    parser = PolicyArgumentParser(prog="aggregate-po view", description=_DESCRIPTION)
    parser.add_argument("runs", nargs="+", type=str, metavar="RUN", help="Run folder, such as runs/addition.")
    parser.add_argument("--output", type=str, required=True, help="HTML file to write; an existing one is replaced.")
    parser.add_function_arguments(run_report, as_group=False, skip={"runs"})
    return parser


def _require_output(output: Path) -> None:
    """Check that the output is a path of an HTML file, so that no file of a run is replaced by mistake."""
    if output.suffix.lower() not in (".html", ".htm") or output.is_dir():
        reason = "is a folder" if output.is_dir() else "does not end in .html"
        raise ValueError(f"`output` is {str(output)!r}, which {reason}; pass the path of an HTML file.")
    if not output.parent.is_dir():
        raise FileNotFoundError(f"`output` is {str(output)!r}, whose folder does not exist; create it first.")


def _summary(report: Report, output: Path, size: int, replaced: bool) -> str:
    with_tokens = sum(bool(one.tokens) for one in report.completions)
    lines = [
        *report.notes,
        *(f"{run.name}: {note}" for run in report.runs for note in run.notes),
        f"{output}: {len(report.runs)} run{'s' * (len(report.runs) != 1)}, {len(report.completions):,} completions, "
        f"{with_tokens:,} of them with token numbers; {size / 1e6:.1f} MB{', replaced' if replaced else ''}.",
    ]
    return "\n".join(lines)
