"""Cache of what is made locally, such as warm-started models."""

from __future__ import annotations

import hashlib
import json
import os
import shutil
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any


def cached_folder(name: str, make: Callable[[Path], None]) -> Path:
    """Return a folder of the cache; the first call makes it, and several processes may call at once.

    Args:
        name: name of the folder; see `arguments_key`.
        make: writes the contents to an empty folder that it receives.
    """
    folder = _cache() / name
    if not folder.exists():
        folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
        try:
            make(scratch)
            # The rename is atomic: other processes find a complete folder or none.
            scratch.replace(folder)
        except OSError:
            if not folder.exists():  # otherwise another process has made the same folder meanwhile
                raise
        finally:
            shutil.rmtree(scratch, ignore_errors=True)
    return folder


def arguments_key(**arguments: Any) -> str:
    """Return a short name that differs whenever an argument differs."""
    described = json.dumps(arguments, sort_keys=True)
    return hashlib.sha256(described.encode()).hexdigest()[:12]


def _cache() -> Path:
    """Return the folder of the cache: `AGGREGATE_PO_CACHE`, or one in the user's cache."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("AGGREGATE_PO_CACHE") or Path(home) / "aggregate_po")
