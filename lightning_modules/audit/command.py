"""`aggregate-po audit-reward`: grade a file of completions with two graders, and list where they differ."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Literal

from jsonargparse.typing import NonNegativeInt

from lightning_modules.argument_parser import PolicyArgumentParser
from lightning_modules.audit.audit import audit_rewards
from lightning_modules.audit.tables import audit_json, audit_table
from lightning_modules.errors import ended_by_its_message
from lightning_modules.interruption import interrupt_from_here
from lightning_modules.option_help import prepare_import_paths

_DESCRIPTION = (
    "Grade the completions of a JSON Lines or Parquet file with two graders, and print how often and where they "
    'differ. Each row has a "completion" and the fields of its example, such as "answer".'
)


def audit_command(arguments: Sequence[str]) -> None:
    """Run `aggregate-po audit-reward`."""
    prepare_import_paths(arguments)
    parser = _parser()
    with ended_by_its_message(instantiating=True):
        options = vars(parser.instantiate(parser.parse_args(list(arguments))))
    form, show = options.pop("format"), options.pop("show")
    interrupt_from_here()
    with ended_by_its_message():
        audit = audit_rewards(**options)
    print(audit_json(audit) if form == "json" else audit_table(audit, show))


def _parser() -> PolicyArgumentParser:
    parser = PolicyArgumentParser(prog="aggregate-po audit-reward", description=_DESCRIPTION)
    parser.add_function_arguments(audit_rewards, as_group=False, as_positional=True, skip={"reward", "other"})
    parser.add_function_arguments(audit_rewards, as_group=False, skip={"file", "workers", "limit", "completion"})
    parser.add_argument("--format", type=Literal["markdown", "json"], default="markdown", help="Format of the output.")
    help_text = "Number of differences, and of bad lines, to list in Markdown."
    parser.add_argument("--show", type=NonNegativeInt, default=20, help=help_text)
    return parser
