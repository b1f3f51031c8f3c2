"""Progress bars on the terminal."""

from __future__ import annotations

import sys
from typing import Any

from lightning.pytorch.utilities import rank_zero_only
from tqdm.auto import tqdm


def progress_bar(**options: Any) -> tqdm:
    """Return a `tqdm` bar on rank 0; it refreshes twice a second on a terminal, and twice a minute in a log file."""
    defaults = {
        "mininterval": 0.5 if sys.stderr.isatty() else 30.0,
        "dynamic_ncols": True,
        "disable": getattr(rank_zero_only, "rank", 0) != 0,
    }
    return tqdm(**{**defaults, **options})
