"""The peers that are installed are those that the comparisons vouch for."""

from importlib.metadata import version
from pathlib import Path

from tests.peers import require_peers

HERE = Path(__file__).parent


def pins(path):
    """Names and versions of a file of requirements."""
    lines = (line.partition("#")[0].strip() for line in path.read_text().splitlines())
    return dict(line.split("==") for line in lines if line)


PEERS = pins(HERE / "peers.txt")


def test_peers_have_the_versions_that_are_pinned():
    require_peers("liger_kernel", "trl", "verl")
    assert {name: version(name) for name in PEERS} == PEERS


def test_peers_replace_nothing_that_the_project_pins():
    constrained = {name.lower().replace("_", "-") for name in pins(HERE.parents[1] / "constraints.txt")}
    assert not constrained & {name.lower().replace("_", "-") for name in PEERS}
