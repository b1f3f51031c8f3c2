"""Folders and files that nobody but their owner can write, through which weights are exchanged."""

from __future__ import annotations

import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

_WRITABLE_BY_OTHERS = stat.S_IWGRP | stat.S_IWOTH
_ADVICE = "run trainer and servers as one user, and pass a folder that this user alone can write"


def made_private(folder: Path) -> None:
    """Make a folder that nobody else can enter, unless there is one.

    Raises:
        PermissionError: there is one that others can write.
    """
    for parent in reversed(folder.absolute().parents):
        parent.mkdir(mode=0o755, exist_ok=True)
    folder.mkdir(mode=0o700, exist_ok=True)
    require_private(folder)


def require_private(folder: Path) -> Path:
    """Return the real path of a folder.

    Raises:
        FileNotFoundError: there is no such folder.
        PermissionError: others can write the folder or replace it: it belongs to another user, its mode or that of a
            folder above it lets others write, or it is a symbolic link.
    """
    real = folder.resolve(strict=True)
    if folder.is_symlink():
        raise PermissionError(f"the weights folder {folder} is a symbolic link; pass the folder itself, {real}.")
    _require_owner(real, real.stat())
    for parent in real.parents:
        mode = parent.stat().st_mode
        is_sticky = bool(mode & stat.S_ISVTX)  # others can rename and remove what they own, and nothing else
        if mode & _WRITABLE_BY_OTHERS and not is_sticky:
            raise PermissionError(
                f"the weights folder {folder} can be replaced by others, who can write {parent} (mode "
                f"{stat.S_IMODE(mode):o}); chmod go-w {parent}, or pass a folder elsewhere, such as in /dev/shm."
            )
    return real


@contextmanager
def opened_private(path: Path) -> Iterator[str]:
    """Open a file in a private folder, and yield a path that names the open file, whatever happens to its name.

    Raises:
        OSError: there is no such file, or it is a symbolic link.
        PermissionError: others can write the file, its folder, or replace them.
    """
    real = require_private(path.parent) / path.name
    descriptor = os.open(real, os.O_RDONLY | os.O_NOFOLLOW | os.O_NONBLOCK | os.O_CLOEXEC)
    try:
        status = os.fstat(descriptor)
        if not stat.S_ISREG(status.st_mode):
            raise PermissionError(f"{real} is no regular file; remove it, and start the trainer again.")
        _require_owner(real, status)
        yield f"/dev/fd/{descriptor}"
    finally:
        os.close(descriptor)


def _require_owner(path: Path, status: os.stat_result) -> None:
    """Refuse what another user owns, the administrator excepted, or others can write."""
    if status.st_uid not in (os.geteuid(), 0):
        raise PermissionError(
            f"{path} belongs to user {status.st_uid}, who could replace the weights of this user, {os.geteuid()}; "
            f"{_ADVICE}."
        )
    if status.st_mode & _WRITABLE_BY_OTHERS:
        mode = stat.S_IMODE(status.st_mode)
        raise PermissionError(
            f"{path} can be written by others (mode {mode:o}), who could replace the weights; chmod go-w {path}, or "
            f"{_ADVICE}."
        )
