"""Prompts from data sets: of the Hugging Face hub, or from local files and folders."""

from __future__ import annotations

from collections.abc import Callable, Mapping

from typing_extensions import override

from lightning_modules.prompts.base import Example, StoredPrompts
from lightning_modules.prompts.columns import ColumnChoice, IncompleteRows
from lightning_modules.prompts.loading import rows_of
from lightning_modules.validation import require_one_of


class HubDataset(StoredPrompts):
    """Examples of a data set of the Hugging Face hub, or of a local file or folder, with columns by name.

    An example has the fields "prompt", those of `columns`, and all columns of its row. A row is incomplete if one of
    these fields, or "answer" where other rows have it, is missing, None or blank. Cells of CSV files stay texts.

    Args:
        path: Hub id, such as openai/gsm8k; or the path of a JSON Lines, JSON, CSV, TSV, Parquet or Arrow file, of a
            folder of such files, or of a folder written by `save_to_disk`. Text files may be compressed.
        name: Configuration of the data set, such as main for openai/gsm8k, if there are several.
        split: Split of a hub data set or of a folder; train when None.
        prompt: Column of the prompt. Dots lead to nested columns, as in extra_info.question.
        columns: Columns of other fields, such as `{answer: reward_model.ground_truth}`.
        filter: Function that returns whether an example is kept; all are when None.
        incomplete: Rule for incomplete rows: refuse raises an error, and skip leaves them out and logs their number.
        cache_dir: Folder for what is downloaded or converted; that of `datasets` when None.

    Raises:
        ConnectionError: the hub cannot be reached.
        FileNotFoundError: there is no such file, folder or hub id.
        ImportError: `datasets` is not installed, or pyarrow for a Parquet file.
        ValueError: a file is damaged, a column or a split does not exist, or a row is refused; the message names it.
    """

    def __init__(
        self,
        path: str,
        name: str | None = None,
        split: str | None = None,
        prompt: str = "prompt",
        columns: Mapping[str, str] | None = None,
        filter: Callable[[Example], bool] | None = None,
        incomplete: IncompleteRows = "refuse",
        cache_dir: str | None = None,
    ) -> None:
        require_one_of(IncompleteRows, incomplete=incomplete)
        if "prompt" in (columns or {}):
            raise ValueError(f"`columns` is {columns!r}, which names the prompt; pass its column as `prompt`.")
        rows = rows_of(path, name, split, cache_dir)
        if not rows:
            raise ValueError(f"`path` is {path!r}, which has no rows; pass a data set with at least one.")
        choice = ColumnChoice({"prompt": prompt, **(columns or {})}, filter, incomplete)
        self._examples, self._places = choice.examples(path, rows)

    @override
    def location(self, index: int) -> str:
        return self._places[index]
