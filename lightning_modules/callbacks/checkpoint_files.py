"""Files of checkpoints: their names, their checksums, and the checkpoint to offer where one is damaged.

A run keeps its last checkpoints under the names `step-10.ckpt`, `step-20.ckpt`, ..., each a file or a folder of shards.
`last.ckpt` is a link to the newest one. Next to each is a list of checksums, `step-10.ckpt.sha256`, in the format of
the program `sha256sum`. No checkpoint is overwritten, so each is there together with its list, or is not linked.
"""

from __future__ import annotations

import hashlib
import os
import re
import shutil
import zipfile
from collections.abc import Iterator, Mapping, Sequence
from contextlib import suppress
from pathlib import Path

LAST = "last.ckpt"
_NAME = re.compile(r"step-(\d+)(\.\d+)?\.ckpt")


def free_path(folder: Path, step: int) -> Path:
    """Return a path for the checkpoint of a step, at which there is nothing yet."""
    path, number = folder / f"step-{step}.ckpt", 2
    while path.exists() or path.is_symlink():
        path, number = folder / f"step-{step}.{number}.ckpt", number + 1
    return path


def members(path: Path) -> list[Path]:
    """Return the files of a checkpoint, in order: the file itself, or those of a folder of shards."""
    return sorted(file for file in path.rglob("*") if file.is_file()) if path.is_dir() else [path]


def checksums_of(path: Path, files: Sequence[Path]) -> dict[str, str]:
    """Return the SHA-256 of some files of a checkpoint, by their names relative to its folder."""
    return {_name_in_list(file, path): _checksum(file) for file in files}


def write_checksums(path: Path, checksums: Mapping[str, str]) -> None:
    """Write the list of the checksums of a checkpoint, by the names of its files relative to its folder."""
    target = _list_of(path)
    scratch = target.with_name(f".{target.name}.part")
    scratch.write_text("".join(f"{value}  {name}\n" for name, value in sorted(checksums.items())), encoding="utf-8")
    scratch.replace(target)


def publish(path: Path, keep: int) -> None:
    """Point `last.ckpt` to a checkpoint in the same folder, and delete all but the `keep` newest ones.

    What an interrupted save has left, which no list of checksums belongs to, is deleted too.
    """
    link = path.with_name(LAST)
    if link.is_dir() and not link.is_symlink():
        shutil.rmtree(link)
    scratch = link.with_name(f".{link.name}.part")
    scratch.unlink(missing_ok=True)
    scratch.symlink_to(path.name)
    scratch.replace(link)
    others = [other for other in _newest_first(path.parent) if other != path]
    complete = [other for other in others if _list_of(other).exists()]
    for old in [*complete[keep - 1 :], *(other for other in others if other not in complete)]:
        _delete(old)
    for part in path.parent.glob(".step-*.part"):
        part.unlink(missing_ok=True)


def make_newest(path: Path, folder: Path) -> None:
    """Let the checkpoint that a run resumes from outlast others of its folder, which may be damaged."""
    path = path.resolve()
    if path.parent == folder.resolve() and _NAME.fullmatch(path.name):
        with suppress(OSError):  # a file of another user, which can be read alone
            os.utime(path)


def require_last(folder: Path) -> None:
    """Check the newest checkpoint of a folder, if there are any.

    Raises:
        ValueError: the checkpoint is missing or damaged; the message names the newest one that is not.
    """
    link = folder / LAST
    if link.is_symlink() or link.exists() or _newest_first(folder):
        require_undamaged(link)


def require_undamaged(path: Path) -> None:
    """Check a checkpoint against its list of checksums; a file without such a list is checked as a ZIP archive.

    Raises:
        ValueError: the checkpoint is missing or damaged; the message names the newest one in its folder that is not.
    """
    if (state := _state(path)) in _undamaged:
        return
    if damage := _damage(path):
        raise ValueError(f"`ckpt_path` is {str(path)!r}: {damage}; {_remedy(path)}")
    _undamaged.add(state)


_undamaged: set[tuple[object, ...]] = set()  # what this process has read and found undamaged


def _state(path: Path) -> tuple[object, ...]:
    """Return a value that changes when a checkpoint is written again."""
    path = path.resolve()
    files = [file for file in (*members(path), _list_of(path)) if file.exists()]
    return tuple((file, *file.stat()[:2], file.stat().st_size, file.stat().st_mtime_ns) for file in files)


def _remedy(path: Path) -> str:
    damaged = path.resolve()
    for other in _newest_first(path.parent):
        if other.resolve() != damaged and _damage(other) is None:
            return f"resume from the checkpoint before it with `--ckpt_path {other}`."
    return "no undamaged checkpoint is next to it, so start a new run in another folder."


def _damage(path: Path) -> str | None:
    """Return what is wrong with a checkpoint, or None."""
    if not path.exists():
        return f"it links to {path.readlink()}, which is missing" if path.is_symlink() else "it is missing"
    path = path.resolve()
    expected = _list_of(path)
    if expected.exists():
        return next(_differences(path, expected), None)
    if _NAME.fullmatch(path.name):
        return f"its checksums, {expected.name}, are missing"
    return None if path.is_dir() else _damage_of_archive(path)


def _differences(path: Path, expected: Path) -> Iterator[str]:
    """Yield a text for each file of a checkpoint that differs from the list of checksums."""
    try:
        lines = expected.read_text(encoding="utf-8").splitlines()
    except ValueError:
        lines = [""]
    checksums = {name: value for value, _, name in (line.partition("  ") for line in lines)}
    files = {_name_in_list(file, path): file for file in members(path)}
    if not checksums or not all(re.fullmatch("[0-9a-f]{64}", value) for value in checksums.values()):
        yield f"its checksums, {expected.name}, are damaged"
        return
    for name in sorted(checksums.keys() | files.keys()):
        if name not in files:
            yield f"it is damaged: {name} is missing"
        elif name not in checksums:
            yield f"it is damaged: {expected.name} does not list {name}"
        elif _checksum(files[name]) != checksums[name]:
            yield f"it is damaged: {name} has another checksum than when it was written"


def _damage_of_archive(path: Path) -> str | None:
    """Return what is wrong with a file without checksums; `torch.save` writes a ZIP archive, which has its own."""
    try:
        with zipfile.ZipFile(path) as archive:
            bad = archive.testzip()
    except (OSError, zipfile.BadZipFile, EOFError, NotImplementedError) as error:
        return f"it is no checkpoint, or is damaged ({error})"
    return f"it is damaged: its part {bad} has another checksum than when it was written" if bad else None


def _list_of(path: Path) -> Path:
    return path.with_name(f"{path.name}.sha256")


def _checksum(file: Path) -> str:
    with file.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()


def _name_in_list(file: Path, checkpoint: Path) -> str:
    return file.relative_to(checkpoint.parent).as_posix()


def _newest_first(folder: Path) -> list[Path]:
    """Return the checkpoints of a folder by their names, the one that was written last first."""
    found = [(path, match) for path in folder.glob("step-*.ckpt") if (match := _NAME.fullmatch(path.name))]
    found.sort(key=lambda pair: (pair[0].stat().st_mtime_ns, int(pair[1][1])), reverse=True)
    return [path for path, _ in found]


def _delete(path: Path) -> None:
    if path.is_dir():
        shutil.rmtree(path, ignore_errors=True)
    else:
        path.unlink(missing_ok=True)
    _list_of(path).unlink(missing_ok=True)
