"""Prompts from a Parquet file."""

from __future__ import annotations

from typing_extensions import override

from lightning_modules.parquet_files import read_rows, require_pyarrow
from lightning_modules.prompts.base import Example, StoredPrompts
from lightning_modules.prompts.json_lines import example_of
from lightning_modules.prompts.text_files import require_file

MAGIC = b"PAR1"


class Parquet(StoredPrompts):
    """Examples from a Parquet file, with one example per row.

    Args:
        path: Path of the Parquet file.
        prompt: Name of the column that contains the prompt.

    Raises:
        FileNotFoundError: there is no such file.
        ImportError: pyarrow is not installed.
        ValueError: the file is damaged, or a row has no prompt; the message gives its number.
    """

    def __init__(self, path: str, prompt: str = "prompt") -> None:
        require_file("path", path)
        self._path = path
        self._examples = [
            example_of(row, self.location(index), "lightning_modules.Parquet", prompt)
            for index, row in enumerate(rows_of_parquet(path))
        ]

    @override
    def location(self, index: int) -> str:
        return f"{self._path}, row {index} (from 0)"


def rows_of_parquet(path: str) -> list[Example]:
    """Return the rows of a Parquet file.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: the file is damaged.
    """
    require_pyarrow(f"{path}: a Parquet file", "write the prompts as JSON Lines")
    return [*read_rows(path)]
