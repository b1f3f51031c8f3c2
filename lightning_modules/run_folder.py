"""Lock of a run folder, so that no two processes write to it."""

from __future__ import annotations

import fcntl
import os
import socket
import warnings
from pathlib import Path

_LOCK = ".lock"
_held: dict[tuple[int, int], int] = {}  # open locks of this process, by device and inode


def lock_run_folder(folder: str | Path) -> None:
    """Lock a run folder for the rest of the life of this process.

    The kernel holds the lock on an open file, and releases it when the process ends, however it ends. Only one process
    of a run may call this function.

    Args:
        folder: run folder; it is created if it does not exist.

    Raises:
        ValueError: another process holds the lock, or the folder cannot be written to.
    """
    path = Path(folder) / _LOCK
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(path, os.O_RDWR | os.O_CREAT, 0o666)
    except OSError as error:
        raise ValueError(
            f"`trainer.default_root_dir` is {str(folder)!r}, where no files can be written ({error}); grant access, or "
            "choose another folder with `--trainer.default_root_dir`."
        ) from error
    status = os.fstat(descriptor)
    if (status.st_dev, status.st_ino) in _held:
        os.close(descriptor)
        return
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        holder = os.pread(descriptor, 1000, 0).decode(errors="replace").strip()
        os.close(descriptor)
        if holder == _name(os.getppid()):  # a launcher that started this process as rank 0
            return
        raise ValueError(
            f"`trainer.default_root_dir` is {str(folder)!r}, where another process is running ({holder or 'unknown'}); "
            "wait until it has ended, or choose another folder with `--trainer.default_root_dir`."
        ) from None
    except OSError as error:  # a file system without locks
        message = f"the run folder {str(folder)!r} cannot be locked ({error}); do not start a second run in it."
        warnings.warn(message, stacklevel=2)
    os.ftruncate(descriptor, 0)
    os.pwrite(descriptor, f"{_name(os.getpid())}\n".encode(), 0)
    _held[status.st_dev, status.st_ino] = descriptor


def _name(process: int) -> str:
    return f"process {process} on {socket.gethostname()}"


def _release_in_child() -> None:
    """Close the locks in a forked process, which could outlive the one that holds them."""
    for descriptor in _held.values():
        os.close(descriptor)
    _held.clear()


os.register_at_fork(after_in_child=_release_in_child)
