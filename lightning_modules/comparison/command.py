"""`aggregate-po compare`: evaluate objectives on a recording, and write tables, plots and a page."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import get_args

from lightning_modules.argument_parser import PolicyArgumentParser
from lightning_modules.comparison.compare import GradientDetail, compare_objectives
from lightning_modules.comparison.output import write_comparison
from lightning_modules.comparison.tables import summary_table
from lightning_modules.errors import ended_by_its_message
from lightning_modules.interruption import interrupt_from_here
from lightning_modules.option_help import prepare_import_paths
from lightning_modules.recordings.recorder import require_new

_DESCRIPTION = (
    "Evaluate objectives on the optimizer steps that `aggregate-po record` has written, without training: who gets the "
    "gradient, what is clipped, and how the gradients of the parameters differ. The table on the terminal has the "
    "measures over all steps; the folder has all tables as CSV, the plots as SVG and PDF, and a page, report.html."
)
_OBJECTIVES = (
    "Objectives with commas between them: names of recipes such as grpo, with arguments as in gmpo(log_clip=0.2), or "
    "import paths of recipes, objectives or aggregators of your own, such as mypackage.MyMean."
)
_GRADIENTS = (
    "Gradients of the parameters, with the recorded model: `completions` makes a backward pass for each objective and "
    "completion of one optimizer step and measures the variance, `steps` one for each objective and micro-batch, and "
    "`none` makes none."
)


def compare_command(arguments: Sequence[str]) -> None:
    """Run `aggregate-po compare`."""
    prepare_import_paths(arguments)
    options = vars(_parser().parse_args(list(arguments)))
    output = Path(options.pop("output"))
    interrupt_from_here()
    with ended_by_its_message():
        require_new(output)
        comparison = compare_objectives(**options)
        write_comparison(comparison, output)
    note = f"\n\n{comparison.gradients_note}" if comparison.gradients_note else ""
    table = summary_table(comparison.objectives, comparison.gradients)
    print(f"{table}{note}\n\nreport: {output / 'report.html'}")


def _parser() -> PolicyArgumentParser:
    parser = PolicyArgumentParser(prog="aggregate-po compare", description=_DESCRIPTION)
    parser.add_argument("folder", type=str, metavar="FOLDER", help="Folder that `aggregate-po record` has written.")
    parser.add_argument("--objectives", type=str, required=True, help=_OBJECTIVES)
    parser.add_argument("--output", type=str, required=True, help="Folder to write, which must not exist.")
    parser.add_argument("--gradients", choices=get_args(GradientDetail), default="completions", help=_GRADIENTS)
    parser.add_argument("--device", type=str, default="cpu", help="Device of the recorded model, such as cuda.")
    return parser
