"""Hypothesis profiles (`pytest --hypothesis-profile thorough` for the long run), markers, and a model for runs."""

import logging
import os
import signal
import sys
from pathlib import Path

# Nothing is fetched. Without a network, a name that is not found would be asked for again and again, for a minute.
os.environ.setdefault("HF_HUB_OFFLINE", "1")

import pytest
import torch
from hypothesis import settings

from tests.peers import MISSING

TESTS = Path(__file__).parent
# What every test in a folder is marked with; single files set `pytestmark`. pyproject.toml says what markers mean.
MARKERS = {"distributed": ["distributed", "slow"], "end_to_end": ["slow"], "parity": ["parity"]}

settings.register_profile("default", max_examples=25, deadline=None, derandomize=True, database=None)
settings.register_profile("thorough", max_examples=10_000, deadline=None, database=None)
settings.load_profile("default")


# A job in the background of a shell ignores SIGINT, and so would all that the tests start.
if signal.getsignal(signal.SIGINT) is signal.SIG_IGN:
    signal.signal(signal.SIGINT, signal.default_int_handler)


def pytest_collection_modifyitems(config, items):
    """Mark the tests of whole folders, refuse names that are others in the next process, and put slow files first."""
    for item in items:
        if " at 0x" in item.nodeid:  # processes that share the tests must find the same ones
            raise pytest.UsageError(f"{item.nodeid}: the name has an address in memory; give the parameters `ids`.")
        if item.path.is_relative_to(TESTS):
            for marker in MARKERS.get(item.path.relative_to(TESTS).parts[0], []):
                item.add_marker(marker)
    if hasattr(config, "workerinput"):  # one of several processes: the others would wait for a slow file at the end
        slow = {item.path for item in items if {"slow", "vllm"} & {marker.name for marker in item.iter_markers()}}
        items.sort(key=lambda item: item.path not in slow)


def pytest_terminal_summary(terminalreporter):
    """Say how many were skipped because a peer is not installed; a file that is skipped as a whole counts as one."""
    # By name, since pytest imports a file once for its tests and once for its doctests.
    skipped = {report.nodeid for report in terminalreporter.stats.get("skipped", []) if MISSING in str(report.longrepr)}
    terminalreporter.write_line(f"tests or files skipped because a peer is not installed: {len(skipped)}")


@pytest.fixture(autouse=True)
def lightning_speaks():
    """Every test begins at the log level that Lightning has: notebooks and workers silence it in the whole process."""
    log = logging.getLogger("lightning.pytorch")
    if log.level != logging.NOTSET:  # Lightning was imported
        log.setLevel(logging.INFO)


@pytest.fixture(autouse=True)
def modules_are_forgotten(request):
    """A test that writes a module in its folder and imports it leaves nothing to tests with a module of that name."""
    folder = str(request.getfixturevalue("tmp_path")) if "tmp_path" in request.fixturenames else None
    yield
    if folder is not None:
        files = {name: getattr(module, "__file__", None) for name, module in list(sys.modules.items())}
        for name in [name for name, file in files.items() if str(file).startswith(folder)]:
            del sys.modules[name]


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Folder of a randomly initialised model, small enough for tests of everything but learning."""
    from lightning_modules.addition.warm_start import make_model, make_tokenizer  # the core is tested without

    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = make_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make_model(tokenizer, hidden_size=32, layers=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
