"""Rows of data sets: local files and folders, and data sets of the Hugging Face hub."""

from __future__ import annotations

import re
from collections.abc import Callable, Iterable
from pathlib import Path
from types import ModuleType
from typing import Any, TypeVar

from aggregate_po.extras import install_command
from lightning_modules.prompts.rows import Row, file_type, rows_of_file

_T = TypeVar("_T")

_LOCAL_FORMS = (
    "a JSON Lines, JSON, CSV, TSV, Parquet or Arrow file, a folder of such files, or a folder written by `save_to_disk`"
)
_FILE_TYPES = {".jsonl", ".json", ".csv", ".tsv", ".parquet", ".arrow", ".txt", ".gz", ".bz2", ".xz", ".zip", ".zst"}


def rows_of(path: str, name: str | None, split: str | None, cache_dir: str | None) -> list[Row]:
    """Return the rows of a data set.

    Args:
        path: path of a file or a folder, or hub id.
        name: configuration of the data set, if there are several.
        split: split of the data set; "train" when None.
        cache_dir: folder for files of the hub; that of `datasets` when None.

    Raises:
        ConnectionError: the hub cannot be reached, and the data set is not in the cache.
        FileNotFoundError: there is no such file, folder or hub id.
        ImportError: a package is not installed.
        ValueError: a file is damaged, or there is no such configuration or split.
    """
    if Path(path).is_file():
        for option, value in (("name", name), ("split", split)):
            if value is not None:
                raise ValueError(f"`{option}` is {value!r}, but `path` is the file {path!r}; leave `{option}` out.")
        return _rows_of_file(path, cache_dir)
    if Path(path).is_dir():
        saved = any((Path(path) / file).is_file() for file in ("dataset_dict.json", "state.json"))
        return _saved(path, name, split) if saved else _rows_of_folder(path, name, split or "train", cache_dir)
    if file_type(path) in _FILE_TYPES or not re.fullmatch(r"[\w.-]+(/[\w.-]+)?", path):
        raise FileNotFoundError(f"`path` is {path!r}, which is no file, folder or hub id; pass {_LOCAL_FORMS}.")
    return _rows_of_hub(path, name, split or "train", cache_dir)


def _rows_of_file(path: str, cache_dir: str | None) -> list[Row]:
    if file_type(path) != ".arrow":
        return list(rows_of_file(path))
    files = {"data_files": [path], "split": "train", "cache_dir": cache_dir}
    return _rows(path, _read(path, lambda: _library(path).load_dataset("arrow", **files)))


def _rows_of_folder(path: str, name: str | None, split: str, cache_dir: str | None) -> list[Row]:
    """Return the rows of the files that make up a split, by their names or by the folder's README.md."""
    library = _library(path)
    try:
        files = library.load_dataset_builder(path, name, cache_dir=cache_dir).config.data_files
    except (ValueError, OSError) as error:
        raise ValueError(f"{path}: {_first_line(error)}; {_remedy(error) or f'pass {_LOCAL_FORMS}.'}") from None
    if split not in files:
        raise ValueError(f"`split` is {split!r}, which {path} does not have; pass one of {', '.join(map(str, files))}.")
    return [row for file in files[split] for row in _rows_of_file(str(file), cache_dir)]


def _saved(path: str, name: str | None, split: str | None) -> list[Row]:
    """Return the rows of a folder written by `save_to_disk`."""
    if name is not None:
        raise ValueError(f"`name` is {name!r}, but {path} was written by `save_to_disk`; leave `name` out.")
    library = _library(path)
    found = _read(path, lambda: library.load_from_disk(path))
    if isinstance(found, library.DatasetDict):
        if (split or "train") not in found:
            known = ", ".join(found)
            raise ValueError(f"`split` is {split or 'train'!r}, which {path} does not have; pass one of {known}.")
        return _rows(path, found[split or "train"])
    if split is not None:
        raise ValueError(f"`split` is {split!r}, but {path} was saved as a single split; leave it out.")
    return _rows(path, found)


def _rows_of_hub(path: str, name: str | None, split: str, cache_dir: str | None) -> list[Row]:
    library = _library(path)
    try:
        return _rows(path, _read(path, lambda: _split_of(library, path, name, split, cache_dir)))
    except (ConnectionError, FileNotFoundError) as error:
        kind = ConnectionError if isinstance(error, ConnectionError) else FileNotFoundError
        raise kind(
            f"`path` is {path!r}, which is no local file or folder, and was not found on the hub "
            f"({_first_line(error)}); pass a local copy: {_LOCAL_FORMS}."
        ) from None


def _split_of(library: ModuleType, path: str, name: str | None, split: str, cache_dir: str | None) -> Any:
    """Return a split of a data set of the hub; cells of CSV stay texts."""
    builder = library.load_dataset_builder(path, name, cache_dir=cache_dir)
    builder.download_and_prepare()
    found = builder.as_dataset(split=split)
    if not hasattr(builder.config, "keep_default_na"):  # an option of CSV alone
        return found
    texts = library.Features({column: library.Value("string") for column in found.column_names})
    builder = library.load_dataset_builder(path, name, cache_dir=cache_dir, features=texts, keep_default_na=False)
    builder.download_and_prepare()
    return builder.as_dataset(split=split)


def _rows(path: str, dataset: Iterable[dict[str, Any]]) -> list[Row]:
    found = _read(path, lambda: list(dataset))
    return [Row(f"{path}, row {number} (from 0)", row) for number, row in enumerate(found)]


def _read(path: str, read: Callable[[], _T]) -> _T:
    """Return what a function reads with `datasets`, whose errors often do not name the file."""
    try:
        return read()
    except (ConnectionError, FileNotFoundError):
        raise
    except Exception as error:
        cause = error.__cause__ or error
        raise ValueError(
            f"{path}: cannot be read ({_first_line(cause)}); {_remedy(cause) or 'write the file again.'}"
        ) from error


def _remedy(error: BaseException) -> str:
    """Return a sentence with the configurations or splits that an error of `datasets` lists; empty if none."""
    listed = re.search(r"(?:available configs|Available|Should be one of):? (\[.*?\])", str(error))
    return f"pass a `name` or `split` of {listed[1]}." if listed else ""


def _first_line(error: BaseException) -> str:
    return str(error).strip().splitlines()[0].rstrip(".") if str(error).strip() else type(error).__name__


def _library(path: str) -> ModuleType:
    try:
        import datasets
    except ModuleNotFoundError as error:
        if error.name != "datasets":
            raise
        raise ModuleNotFoundError(
            f"{path}: this data set needs `datasets`, which is not installed; run {install_command('datasets')}, or "
            "pass a JSON Lines, JSON, CSV or Parquet file.",
            name=error.name,
        ) from None
    return datasets
