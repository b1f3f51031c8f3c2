"""Errors of the command line: what has a sentence for the user ends without a traceback."""

from __future__ import annotations

import sysconfig
import traceback
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta
from pathlib import Path
from types import FrameType

import torch.distributed as dist
from lightning.fabric.utilities.exceptions import MisconfigurationException

from lightning_modules.option_errors import concerning_the_value

_REFUSALS = (ValueError, TypeError, OSError, RuntimeError, ImportError, MisconfigurationException)
_REFUSALS_IN_TRAINING = (ValueError, RuntimeError, ArithmeticError, MisconfigurationException)
_TRAINING = ("lightning.pytorch.loops.training_epoch_loop", "lightning.pytorch.loops.evaluation_loop")
_OWN = ("aggregate_po", "lightning_modules", "lightning")
_INSTALLED = tuple({sysconfig.get_path(name) for name in ("stdlib", "platstdlib", "purelib", "platlib")})
_ENDED, _WAIT_FOR_RANK_ZERO = "aggregate_po/ended", timedelta(seconds=10)


@contextmanager
def ended_by_its_message(*, instantiating: bool = False) -> Iterator[None]:
    """End the program with the message alone where an argument is refused.

    An error from before the first optimizer step is such a refusal. Later only the errors that this library or
    Lightning raise themselves are, and an error with the user's own code in its traceback never is, but while classes
    are instantiated. All other errors keep their traceback.

    Args:
        instantiating: whether the classes of a configuration are instantiated.

    Raises:
        SystemExit: an argument is refused.
    """
    try:
        yield
    except Exception as error:
        if not (isinstance(error, _REFUSALS) if instantiating else _is_refusal(error)):
            raise
        if _rank_zero_says_it():
            raise SystemExit(1) from error
        text = "\n".join([concerning_the_value(str(error)), *getattr(error, "__notes__", [])])
        raise SystemExit(f"error: {text}") from error


def _is_refusal(error: Exception) -> bool:
    frames = [frame for frame, _ in traceback.walk_tb(error.__traceback__)]
    if not frames or any(_is_users(frame) for frame in frames):
        return False
    if any(_module(frame) in _TRAINING for frame in frames):
        return isinstance(error, _REFUSALS_IN_TRAINING) and _is_own(frames[-1])
    return isinstance(error, _REFUSALS)


def _module(frame: FrameType) -> str:
    return str(frame.f_globals.get("__name__", ""))


def _is_own(frame: FrameType) -> bool:
    return _module(frame).split(".")[0] in _OWN


def _is_users(frame: FrameType) -> bool:
    """Whether the frame is of a file of the user, and not of an installed package."""
    path = frame.f_code.co_filename
    return not _is_own(frame) and not path.startswith("<") and not str(Path(path)).startswith(_INSTALLED)


def _rank_zero_says_it() -> bool:
    """Whether this is another rank than 0, and rank 0 ends with an error as well; ranks usually fail for one reason."""
    if not (dist.is_available() and dist.is_initialized()) or dist.get_world_size() == 1:
        return False
    store = dist.distributed_c10d._get_default_store()
    if dist.get_rank() == 0:
        store.set(_ENDED, "1")
        return False
    try:
        store.wait([_ENDED], _WAIT_FOR_RANK_ZERO)
    except dist.DistNetworkError:  # it has ended already
        return True
    except dist.DistError:
        return False
    return True
