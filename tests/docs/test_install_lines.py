"""Lines that install the library: they name extras that exist, and no index that does not have it."""

import importlib
import re
import sys
import tomllib
from pathlib import Path

import pytest

from aggregate_po.extras import install_command

ROOT = Path(__file__).resolve().parents[2]
EXTRAS = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]["optional-dependencies"]
FILES = sorted(
    path
    for pattern in ("*.md", "Makefile", "docs/**/*.md", "docs/**/*.ipynb", "Dockerfile", ".github/workflows/*.yml")
    for path in ROOT.glob(pattern)
) + sorted(
    path
    for folder in ("aggregate_po", "lightning_modules", "experiments")
    for pattern in ("*.py", "*.sh", "*.yaml")
    for path in (ROOT / folder).rglob(pattern)
)
# An extra of a checkout, or of the library by its name.
NAMED = re.compile(r"""(?:["'\s]\.|aggregate[-_]po)\[([\w,-]+)\]["'\s\\]""")
BY_NAME = re.compile(r"""pip install(?: -\S+)* ["']?aggregate[-_]po\b""")
CALL = re.compile(r"""install_command\(["']([\w-]+)["']\)""")


def extras_of(text):
    """Extras that a text names, in commands and in calls of `install_command`."""
    return {extra for found in NAMED.findall(text) for extra in found.split(",")} | set(CALL.findall(text))


def test_named_extras_exist():
    named = {path.relative_to(ROOT): extras_of(path.read_text(encoding="utf-8")) for path in FILES}
    assert {path: extras - EXTRAS.keys() for path, extras in named.items() if extras - EXTRAS.keys()} == {}


def test_the_start_page_lists_the_extras():
    """All but those of contributors."""
    section = (
        (ROOT / "docs" / "index.md").read_text(encoding="utf-8").partition("| extra | for |")[2].partition("\n\n")[0]
    )
    rows = re.findall(r"^\| (`[^|]+`) \|", section, re.MULTILINE)
    assert {extra for row in rows for extra in re.findall(r"`([\w-]+)`", row)} == EXTRAS.keys() - {
        "dev",
        "docs",
        "test",
    }


def test_no_line_installs_the_library_by_its_name():
    """Except the one of `aggregate_po.extras`, once the library is on an index."""
    found = [path for path in FILES if BY_NAME.search(path.read_text(encoding="utf-8").replace("\\\n", " "))]
    assert [path.relative_to(ROOT).as_posix() for path in found] == ["aggregate_po/extras.py"]


def test_every_message_takes_its_command_from_one_place():
    """A `pip install` in the code of the packages is that of another package, or of an extra by `install_command`."""
    lines = [
        line.strip()
        for package in ("aggregate_po", "lightning_modules")
        for path in (ROOT / package).rglob("*.py")
        if path != ROOT / "aggregate_po" / "extras.py"
        for line in path.read_text(encoding="utf-8").splitlines()
        if "pip install" in line
    ]
    assert lines == []


@pytest.mark.parametrize(
    ("module", "package", "extra"),
    [
        ("aggregate_po.adapters.trl", "trl", "trl"),
        ("experiments.classical.control.environments", "gymnasium", "classical"),
    ],
)
def test_what_needs_an_extra_names_its_command(monkeypatch, module, package, extra):
    monkeypatch.delitem(sys.modules, module, raising=False)
    monkeypatch.setitem(sys.modules, package, None)
    with pytest.raises(ModuleNotFoundError, match=rf"{package}.*; run pip install .*\[{extra}\]") as raised:
        importlib.import_module(module)
    assert raised.value.name == package


def test_the_command_names_the_extra():
    assert '[trl]"' in install_command("trl")


@pytest.mark.parametrize(
    ("text", "extras"),
    [
        ('pip install -e ".[math,lora]"', {"math", "lora"}),
        ("pip install -e '.[math]'", {"math"}),
        ('uv pip install --editable ".[docs]"', {"docs"}),
        ("pip install 'aggregate-po[vllm]'", {"vllm"}),
        ("install_command('trl')", {"trl"}),
        ("table[row]", set()),
    ],
)
def test_extras_are_found(text, extras):
    assert extras_of(text) == extras


@pytest.mark.parametrize("text", ["pip install aggregate-po", 'pip install -U "aggregate-po[trl]"'])
def test_the_name_is_found(text):
    assert BY_NAME.search(text)


@pytest.mark.parametrize("text", ['pip install -e ".[trl]" in a checkout of aggregate_po', "pip install -e ."])
def test_a_checkout_is_no_name(text):
    assert not BY_NAME.search(text)
