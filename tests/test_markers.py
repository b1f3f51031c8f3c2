"""Markers, and tests of peers: what needs a peer is marked, skips by name without it, or fails where none may skip."""

import os
import subprocess
import sys
from pathlib import Path

import pytest

from tests.conftest import MARKERS, TESTS
from tests.peers import INSTALL, environment_with, require_peers

ROOT = TESTS.parent


@pytest.fixture
def absent(monkeypatch):
    """No peer is installed."""
    monkeypatch.setattr("tests.peers.find_spec", lambda name: None)


def test_a_folder_has_its_markers(request):
    """Those tests of this session that stand in such a folder."""
    for item in request.session.items:
        if item.path.is_relative_to(TESTS):
            expected = MARKERS.get(item.path.relative_to(TESTS).parts[0], [])
            assert set(expected) <= {marker.name for marker in item.iter_markers()}, item.nodeid


def test_files_that_run_vllm_are_marked():
    texts = {path.name: path.read_text(encoding="utf-8") for path in TESTS.rglob("test_*.py") if path != Path(__file__)}
    asking = {name for name, text in texts.items() if 'require_peers("vllm")' in text}
    assert asking == {"test_against_trl_vllm.py", "test_vllm.py", "test_vllm_ranks.py", "test_vllm_server.py"}
    assert asking == {name for name, text in texts.items() if "pytestmark = pytest.mark.vllm" in text}


@pytest.mark.parametrize("name", INSTALL)
def test_a_test_is_skipped_by_the_name_of_what_is_missing(name, absent, monkeypatch):
    monkeypatch.delenv("REQUIRE_PEERS", raising=False)
    with pytest.raises(pytest.skip.Exception, match=f"peer not installed: {name}; to install it: sh "):
        require_peers(name)


@pytest.mark.parametrize("name", INSTALL)
def test_a_missing_peer_fails_where_all_are_required(name, absent, monkeypatch):
    monkeypatch.setenv("REQUIRE_PEERS", "1")
    with pytest.raises(pytest.fail.Exception, match=f"peer not installed: {name}"):
        require_peers(name)


@pytest.mark.parametrize(("required", "outcome"), [("", pytest.skip.Exception), ("1", pytest.fail.Exception)])
def test_a_version_in_a_folder_of_its_own_may_be_missing_too(required, outcome, monkeypatch):
    monkeypatch.setenv("REQUIRE_PEERS", required)
    with pytest.raises(outcome, match="peer not installed: none of tests/parity/apart; to install it: sh "):
        environment_with("none")


WITHOUT_VERL = """
import sys

import pytest

sys.modules["verl"] = None
sys.exit(pytest.main(["tests/parity/test_verl_advantages.py", "-p", "no:cacheprovider"]))
"""


@pytest.mark.parametrize(
    ("required", "status", "said"),
    [
        ("", pytest.ExitCode.NO_TESTS_COLLECTED, "skipped because a peer is not installed: 1"),
        ("1", pytest.ExitCode.INTERRUPTED, "peer not installed: verl; to install it: sh tests/parity/install_peers.sh"),
    ],
    ids=["skipped", "failed"],
)
def test_a_session_without_a_peer(required, status, said):
    result = subprocess.run(
        [sys.executable, "-c", WITHOUT_VERL],
        cwd=ROOT,
        env={**os.environ, "REQUIRE_PEERS": required},
        capture_output=True,
        text=True,
    )
    assert result.returncode == status, result.stdout + result.stderr
    assert said in result.stdout
