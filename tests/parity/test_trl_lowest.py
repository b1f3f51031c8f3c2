"""Our objectives in the trainer of the lowest version of TRL that the extra allows."""

import subprocess
import sys
import tomllib

from tests.parity.test_peers import HERE, PEERS, pins
from tests.peers import ROOT, environment_with, require_peers

LOWEST = pins(HERE / "apart" / "trl.txt")["trl"]
PROGRAM = """
import sys
import pytest
import trl

assert trl.__version__ == sys.argv[1], trl.__version__
sys.exit(pytest.main(sys.argv[2:]))
"""


def test_all_comparisons_hold():
    require_peers("trl")  # and what it needs
    options = ["-q", "-n", "0", "-p", "no:cacheprovider", "-W", "ignore"]
    command = [sys.executable, "-c", PROGRAM, LOWEST, "tests/parity/test_trl_trainer.py", *options]
    done = subprocess.run(command, cwd=ROOT, env=environment_with("trl"), capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stdout[-4000:] + done.stderr[-2000:]


def test_the_extra_allows_the_versions_that_are_tested():
    extras = tomllib.loads((ROOT / "pyproject.toml").read_text())["project"]["optional-dependencies"]
    major, minor, _ = map(int, PEERS["trl"].split("."))
    assert extras["trl"] == [f"trl>={LOWEST.removesuffix('.0')},<{major}.{minor + 1}"]
