"""Examples of an argument: a data set, a list, or the path of a file."""

from __future__ import annotations

import os
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

from jsonargparse.typing import register_type
from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn

from lightning_modules.prompts.base import Example, PromptDataset, StoredPrompts, location_in, require_prompt
from lightning_modules.prompts.hub import HubDataset
from lightning_modules.prompts.json_lines import JSONLines
from lightning_modules.prompts.parquet import MAGIC, Parquet
from lightning_modules.prompts.rows import file_type
from lightning_modules.prompts.text_files import first_bytes, require_file

_SUFFIXES = (".jsonl", ".json", ".parquet", ".gz", ".bz2", ".xz", ".zst", ".txt", ".csv", ".tsv", ".arrow")


class PromptFile(str):
    """Path of a file with prompts.

    The command line takes such a path as it is. As a value that may also be the import path of a class, `train.jsonl`
    would import a module `train`.
    """


def _path(value: Any) -> str:
    """Return a value of the command line that is a path.

    Raises:
        ValueError: it may be the name of a class.
    """
    if isinstance(value, str) and (os.sep in value or value.lower().endswith(_SUFFIXES) or Path(value).exists()):
        return value
    raise ValueError(f"{value!r} is not the path of a file")


register_type(PromptFile, serializer=_path, deserializer=_path)

if TYPE_CHECKING:  # a list is passed in Python only: the command line reads examples from files
    PromptSource = PromptFile | PromptDataset | Sequence[Example] | str
else:
    PromptSource = PromptFile | PromptDataset | str


def examples_of(name: str, dataset: Sequence[Example] | str) -> Sequence[Example]:
    """Return the examples of the argument `name`: a data set, a list, or the path of a file.

    Files of JSON Lines, Parquet, CSV, TSV and Arrow are read.

    Raises:
        FileNotFoundError: there is no such file.
        TypeError: the argument is none of these.
        ValueError: there are no examples, or one of a list or a file has no prompt.
    """
    if isinstance(dataset, (str, os.PathLike)):
        examples: Sequence[Example] = _read(name, str(dataset))
    elif isinstance(dataset, Mapping) or not (hasattr(dataset, "__len__") and hasattr(dataset, "__getitem__")):
        raise TypeError(
            f'`{name}` is of type {type(dataset).__name__}; pass a PromptDataset, a list of mappings with "prompt", '
            "or the path of a JSON Lines, Parquet, CSV or Arrow file."
        )
    else:
        examples = dataset
    if len(examples) == 0:
        raise ValueError(f"`{name}` is {dataset!r}, which has no prompts; pass at least one example.")
    if isinstance(examples, (list, tuple)):  # the files have been checked, and a data set may be slow or endless
        for index, example in enumerate(examples):
            require_prompt(example, location_in(name, examples, index))
    if is_in_memory(examples):
        _report(name, examples)
    return examples


def is_in_memory(examples: Sequence[Example]) -> bool:
    """Whether all examples can be read at no cost; another data set may be slow or endless."""
    return isinstance(examples, (list, tuple, StoredPrompts))


def different_prompts(examples: Sequence[Example]) -> set[str]:
    """Return each prompt once, in a form that tells texts from messages."""
    return {repr(example["prompt"]) for example in examples}


def _report(name: str, examples: Sequence[Example]) -> None:
    """Log how many prompts occur more than once, and warn of examples without the answer that others have."""
    repeated = len(examples) - len(different_prompts(examples))
    if repeated:
        rank_zero_info(f"`{name}`: {repeated:,} of {len(examples):,} prompts are duplicates of others.")
    missing = sum(example.get("answer") is None for example in examples)
    if 0 < missing < len(examples):
        rank_zero_warn(
            f'`{name}`: {missing:,} of {len(examples):,} examples have no "answer", which the others have; a reward '
            "that reads it fails on them. HubDataset refuses such rows, or skips them with incomplete='skip'."
        )


def _read(name: str, path: str) -> PromptDataset:
    require_file(name, path)
    if file_type(path) in (".csv", ".tsv", ".arrow"):
        return HubDataset(path)
    return Parquet(path) if first_bytes(path, len(MAGIC)) == MAGIC else JSONLines(path)
