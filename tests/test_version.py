"""One version: `aggregate_po.__version__`, from which the metadata of the package is built."""

import re
import tomllib
from pathlib import Path

import pytest

from aggregate_po import __version__

ROOT = Path(__file__).resolve().parents[1]


def test_the_metadata_reads_the_version_of_the_package():
    project = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))
    assert "version" not in project["project"]
    assert project["tool"]["setuptools"]["dynamic"]["version"] == {"attr": "aggregate_po.__version__"}


def test_the_citation_has_the_version():
    citation = (ROOT / "CITATION.cff").read_text(encoding="utf-8")
    assert re.findall(r"^version: (\S+)$", citation, re.MULTILINE) == [__version__]


def test_the_newest_release_of_the_changelog_has_the_version():
    headings = re.findall(r"^## (\S+)", (ROOT / "CHANGELOG.md").read_text(encoding="utf-8"), re.MULTILINE)
    assert headings[0] in ("Unreleased", __version__)
    assert [heading for heading in headings if heading != "Unreleased"][:1] in ([], [__version__])


def test_the_version_is_written_once_in_the_code():
    found = [
        path.relative_to(ROOT).as_posix()
        for package in ("aggregate_po", "lightning_modules")
        for path in (ROOT / package).rglob("*.py")
        if f'"{__version__}"' in path.read_text(encoding="utf-8")
    ]
    assert found == ["aggregate_po/__init__.py"]


@pytest.mark.parametrize(("arguments", "name"), [([], "aggregate-po"), (["flow"], "aggregate-po flow")])
def test_the_command_line_prints_the_version(arguments, name, monkeypatch, capsys):
    pytest.importorskip("lightning")
    from lightning_modules.__main__ import main

    monkeypatch.setattr("sys.argv", ["aggregate-po", *arguments, "--version"])
    with pytest.raises(SystemExit) as stop:
        main()
    assert stop.value.code == 0
    assert capsys.readouterr().out == f"{name} {__version__}\n"
