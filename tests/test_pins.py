"""The lists of versions that are installed one over the other agree."""

import re
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
LISTS = ["constraints.txt", "tests/parity/peers.txt", "experiments/vllm_cpu.txt"]


def pins(path):
    """Version by normalised name; every line that is no comment pins one package."""
    lines = (ROOT / path).read_text(encoding="utf-8").splitlines()
    found = [
        re.fullmatch(r"([\w.-]+)==([\w.+!]+)(?:;.*)?", line) for line in lines if line and not line.startswith("#")
    ]
    assert all(found), path
    return {re.sub(r"[-_.]+", "-", match[1]).lower(): match[2] for match in found}


def test_no_list_installs_over_another():
    versions = {}
    for path in LISTS:
        for name, version in pins(path).items():
            versions.setdefault(name, {})[path] = version
    assert not {name: where for name, where in versions.items() if len(set(where.values())) > 1}


def test_the_versions_that_the_engine_is_tied_to_are_pinned():
    constraints, engine = pins("constraints.txt"), pins("experiments/vllm_cpu.txt")
    assert engine["vllm-cpu"] == "0.32.0"
    assert constraints["torch"] == "2.13.0"
    assert not {"torch", "triton", "torchvision", "torchaudio", "torchcodec", "numpy", "transformers"} & engine.keys()
    script = (ROOT / "experiments" / "install_vllm_cpu.sh").read_text(encoding="utf-8")
    assert f'!= "{constraints["torch"]}"' in script
