"""`aggregate-po evaluate`: a finished run on held-out prompts, a model on benchmarks, or two evaluations compared."""

from __future__ import annotations

import warnings
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Any

import transformers
import yaml  # type: ignore[import-untyped]
from jsonargparse import ActionConfigFile

from lightning_modules.argument_parser import PolicyArgumentParser
from lightning_modules.cli import evaluate_run
from lightning_modules.configuration import described
from lightning_modules.errors import ended_by_its_message
from lightning_modules.evaluation import comparison_table, evaluate, results_table
from lightning_modules.interruption import interrupt_from_here
from lightning_modules.option_help import prepare_import_paths
from lightning_modules.run_config import newest_config

_DESCRIPTION = (
    "Evaluate the exported model of a finished run on its held-out prompts, and print the metrics. RUN: Folder of the "
    "finished run, such as runs/addition. Further options are those of `aggregate-po validate` and override the "
    "configuration of the run, such as `--data.rollouts TransformersEngine`. With --model, evaluate a model on "
    "benchmarks instead: aime24, aime25, amc23, gsm8k, math500, minerva, olympiadbench, or files of problems with "
    "answers. Accuracies with 95 % intervals and all completions are written to a folder. With A and B, the output "
    "folders of two such evaluations, print the paired differences."
)

_USAGE = """aggregate-po evaluate RUN [options]
       aggregate-po evaluate --model MODEL --benchmarks NAMES --output FOLDER [options]
       aggregate-po evaluate A B"""


def evaluate_command(arguments: Sequence[str]) -> None:
    """Run `aggregate-po evaluate`, in the form that the arguments have."""
    folders = [argument for argument in arguments if not argument.startswith("-")]
    if list(arguments) == folders and len(folders) == 2:
        with ended_by_its_message(instantiating=True):
            print(f"A: {folders[0]}\nB: {folders[1]}\n\n{comparison_table(*folders)}")
    elif arguments and arguments[0] in folders:
        evaluate_run(arguments[0], *arguments[1:])
    else:
        _on_benchmarks(arguments)


def _on_benchmarks(arguments: Sequence[str]) -> None:
    prepare_import_paths(arguments)
    parser = _parser()
    if not {text.partition("=")[0] for text in arguments} & {"-h", "--help", "-c", "--config", "--model"}:
        parser.error("the following arguments are required: RUN, or --model, or A and B; see `--help`")
    with ended_by_its_message(instantiating=True):
        options = vars(parser.instantiate(parser.parse_args(list(arguments))))
    _warn_of_other_format(options)
    interrupt_from_here()
    transformers.utils.logging.disable_progress_bar()
    with ended_by_its_message():
        results = evaluate(**{name: value for name, value in options.items() if name != "config"})
    print(f"\n{results_table(results)}\n\nresults: {options['output']}")


def _warn_of_other_format(options: Mapping[str, Any]) -> None:
    """Warn if the model is that of a run which was trained with other prompts; its configuration says with which."""
    run = Path(str(options["model"]))
    if not isinstance(options["model"], str) or not (run / "config.yaml").exists():
        return
    trained = (yaml.safe_load(newest_config(run).read_text(encoding="utf-8")) or {}).get("data", {})
    for name in ("chat_template", "chat_template_kwargs", "system_prompt", "prompt_template"):
        passed = described(options[name])
        if (trained.get(name) or None) != (passed or None):
            warnings.warn(
                f"`{name}` is {passed!r}, but the run {str(run)!r} was trained with {trained.get(name)!r}; its model "
                f"may do worse with other prompts. Pass `--{name}` as in {newest_config(run)}.",
                stacklevel=2,
            )


def _parser() -> PolicyArgumentParser:
    parser = PolicyArgumentParser(prog="aggregate-po evaluate", usage=_USAGE, description=_DESCRIPTION)
    parser.add_argument("-c", "--config", action=ActionConfigFile, help="Path of a YAML file with these options.")
    parser.add_function_arguments(evaluate, as_group=False, sub_configs=False)
    return parser
