"""Atomic writes of files and folders."""

from __future__ import annotations

import os
import shutil
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path


@contextmanager
def replacing(path: Path) -> Iterator[Path]:
    """Yield a path next to the given one to write to; at the end of the context it replaces the given one.

    A process that is killed meanwhile leaves the old file. Of a folder it leaves the old one, or none in the instant
    between two renames. After an error nothing of the write is left.

    Args:
        path: path of a file or folder, whose name and suffix the yielded path ends with.
    """
    scratch, old = (path.with_name(f".{prefix}-{path.name}") for prefix in ("new", "old"))
    _remove(scratch)
    try:
        yield scratch
        for file in scratch.rglob("*") if scratch.is_dir() else [scratch]:
            _flush(file)
        if scratch.is_dir() and path.exists():
            _remove(old)
            path.rename(old)
        scratch.replace(path)
        _remove(old)
    except BaseException:
        _remove(scratch)
        raise


def _flush(file: Path) -> None:
    """Wait until a file is on the disk, so that a power failure after the rename finds it whole."""
    if file.is_file():
        descriptor = os.open(file, os.O_RDONLY)
        try:
            os.fsync(descriptor)
        finally:
            os.close(descriptor)


def _remove(path: Path) -> None:
    if path.is_dir() and not path.is_symlink():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
