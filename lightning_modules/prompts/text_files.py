"""Lines of text files, plain or compressed, in the encodings of Unicode."""

from __future__ import annotations

import bz2
import gzip
import json
import lzma
import zlib
from collections.abc import Iterator
from pathlib import Path

_DECOMPRESSORS = {b"\x1f\x8b": gzip.decompress, b"BZh": bz2.decompress, b"\xfd7zXZ\x00": lzma.decompress}
# First bytes of formats that are not text, with the remedy.
_OTHERS = {
    b"\x28\xb5\x2f\xfd": "it is compressed by Zstandard; decompress it with `zstd -d`",
    b"PK\x03\x04": "it is a ZIP archive; unpack it",
    b"PAR1": "it is a Parquet file; pass lightning_modules.Parquet",
    b"ARROW1": "it is an Arrow file; pass lightning_modules.HubDataset",
}


def lines(path: str) -> Iterator[tuple[int, str]]:
    """Return the lines of a file that are not blank, with their numbers.

    The file may be compressed by gzip, bzip2 or xz, which its first bytes tell, and may be encoded in UTF-8, or in
    UTF-16 or UTF-32 with a byte-order mark.

    Raises:
        ValueError: the file is damaged, is no text, or is not valid in its encoding; the message names the line.
    """
    return numbered_lines(text_of(path))


def numbered_lines(text: str) -> Iterator[tuple[int, str]]:
    r"""Yield the number and the text of each line that is not blank; only "\n" ends a line."""
    for number, line in enumerate(text.split("\n"), start=1):
        if line.strip():
            yield number, line


def text_of(path: str) -> str:
    """Return the text of a file, plain or compressed, as for `lines`.

    Raises:
        ValueError: the file is damaged, is no text, or is not valid in its encoding.
    """
    return _decoded(_decompressed(path), path)


def require_file(name: str, path: str) -> None:
    """Check that the argument `name` is the path of a file.

    Raises:
        FileNotFoundError: it is not.
    """
    if not Path(path).is_file():
        found = "a folder" if Path(path).is_dir() else "not a file"
        raise FileNotFoundError(
            f"`{name}` is {path!r}, which is {found}; pass a JSON Lines, Parquet, CSV or Arrow "
            "file, or lightning_modules.HubDataset for folders and data sets of the hub."
        )


def _decompressed(path: str) -> bytes:
    content = first_bytes(path)
    for start, remedy in _OTHERS.items():
        if content.startswith(start):
            raise ValueError(f"{path}: not a text file, {remedy}.")
    for start, decompress in _DECOMPRESSORS.items():
        if content.startswith(start):
            try:
                return decompress(content)
            except (OSError, EOFError, ValueError, zlib.error, lzma.LZMAError) as error:
                raise ValueError(f"{path}: damaged or incomplete compressed file ({error}); copy it again.") from None
    return content


def first_bytes(path: str, count: int = -1) -> bytes:
    """Return the first bytes of a file; all when the count is negative.

    Raises:
        OSError: the file cannot be read.
    """
    try:
        with Path(path).open("rb") as file:
            return file.read(count)
    except OSError as error:
        raise type(error)(f"{path}: the file cannot be read ({error.strerror}); check its permissions.") from None


def _decoded(content: bytes, path: str) -> str:
    encoding = json.detect_encoding(content[:4])  # by byte-order marks and the zeros of UTF-16 and UTF-32
    try:
        return content.decode(encoding)
    except UnicodeDecodeError as error:
        before = content[: error.start].decode(encoding, errors="ignore")
        line, byte = before.count("\n") + 1, content[error.start]
        raise ValueError(
            f"{path}, line {line}: byte 0x{byte:02x} at offset {error.start} is not valid {encoding.upper()} "
            f"({error.reason}); save the file as UTF-8."
        ) from None
