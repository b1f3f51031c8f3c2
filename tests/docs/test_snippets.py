"""The pages of the documentation: their code runs, their commands parse, and their equations are those cited."""

import contextlib
import io
import re
import shlex
import sys
from pathlib import Path

import pytest
import yaml

from aggregate_po.testing import AggregatorContract
from lightning_modules.cli import run
from lightning_modules.flow.command import flow_command

ROOT = Path(__file__).resolve().parents[2]
PAGES = sorted((ROOT / "docs").rglob("*.md"))
FENCE = re.compile(
    r"^```(?P<language>\w+)(?: title=\"(?P<title>[^\"]+)\")?\n(?P<code>.*?)^```$", re.DOTALL | re.MULTILINE
)
PRINTED = re.compile(r"(?m)^print\(.*\)\s+# (.+)$")


def blocks(page, *languages):
    """Language, title, code and first line of the fenced blocks of a page."""
    text = page.read_text(encoding="utf-8")
    for match in FENCE.finditer(text):
        if match["language"] in languages:
            yield match["language"], match["title"], match["code"], text[: match.start("code")].count("\n")


def commands(page):
    """Arguments of each `aggregate-po fit` in the shell blocks of a page."""
    for _, _, code, _ in blocks(page, "bash"):
        for line in code.replace("\\\n", " ").splitlines():
            words = shlex.split(line, comments=True)
            if words[:1] == ["srun"]:
                words = words[1:]
            if words[:2] == ["aggregate-po", "fit"]:
                yield words[1:]


def pages_with(find):
    found = [page for page in PAGES if next(iter(find(page)), None) is not None]
    return pytest.mark.parametrize("page", found, ids=[page.stem for page in found])


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """An empty working folder with the experiments next to it."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setenv("AGGREGATE_PO_CACHE", str(tmp_path / "cache"))
    return tmp_path


def test_pages_have_code():
    assert {"index", "theory", "write-an-aggregator"} <= {page.stem for page in PAGES if any(blocks(page, "python"))}


@pages_with(lambda page: blocks(page, "python"))
def test_python_runs_and_prints_what_the_page_says(page, folder):
    namespace = {"__name__": "page"}
    for _, _, code, line in blocks(page, "python"):
        printed = io.StringIO()
        with contextlib.redirect_stdout(printed):
            exec(compile("\n" * line + code, str(page), "exec"), namespace)
        if expected := PRINTED.findall(code):
            assert printed.getvalue().splitlines() == expected


@pages_with(commands)
def test_commands_parse(page, folder):
    if page.stem == "write-an-aggregator" and sys.version_info >= (3, 13):
        pytest.xfail("jsonargparse 4.53 on Python 3.13 refuses a function that returns an Annotated type")
    write_files(page, folder)
    for arguments in commands(page):
        parsed_config(arguments)


@pages_with(lambda page: blocks(page, "yaml"))
def test_configurations_parse(page, folder):
    write_files(page, folder)
    for _, _, code, _ in blocks(page, "yaml"):
        (folder / "snippet.yaml").write_text(code, encoding="utf-8")
        config = parsed_config([*job_of(page, code), "--config", "snippet.yaml"])
        assert contains(config, yaml.safe_load(code))


def job_of(page, code):
    """Arguments of the job that a configuration changes: of a flow-matching model if the code has parts of one."""
    if page.stem == "flow" or "lightning_modules.flow." in code:
        return "flow", "fit", "--config", "experiments/configs/flow/mixture.yaml"
    return "fit", "--config", "experiments/configs/addition.yaml"


def contains(parsed, said):
    """Whether `parsed` says what `said` says, perhaps with further defaults and longer import paths."""
    if isinstance(said, dict):
        return all(contains(parsed[name], value) for name, value in said.items())
    if isinstance(said, list):
        return len(parsed) == len(said) and all(map(contains, parsed, said))
    if isinstance(said, str) and said.startswith("aggregate_po."):
        path = parsed["class_path"] if isinstance(parsed, dict) else parsed
        return path.split(".")[-1] == said.split(".")[-1]
    return parsed == said


def write_files(page, folder):
    """The files that a page shows, under the names in their titles."""
    for _, title, code, _ in blocks(page, "python", "yaml", "json"):
        if title:
            (folder / title).write_text(code, encoding="utf-8")


def parsed_config(arguments):
    """The configuration that the command line makes of its arguments, without running anything."""
    output, errors = io.StringIO(), io.StringIO()
    command, rest = (flow_command, arguments[1:]) if arguments[0] == "flow" else (run, arguments)
    with contextlib.redirect_stdout(output), contextlib.redirect_stderr(errors), pytest.raises(SystemExit) as stop:
        command([*rest, "--print_config"])
    assert not stop.value.code, errors.getvalue()
    return yaml.safe_load(output.getvalue())


def test_the_page_names_every_law_of_an_aggregator():
    text = (ROOT / "docs" / "write-an-aggregator.md").read_text(encoding="utf-8")
    laws = [name.removeprefix("test_") for name in AggregatorContract.laws()]
    assert [name for name in laws if f"`{name}`" not in text] == []


def test_cited_equations_are_in_the_theory():
    theory = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    tags = re.findall(r"\\tag\{(\d+)\}", theory)
    assert tags == [str(number + 1) for number in range(len(tags))]
    assert re.findall(r"^\[\]\(\)\{#eq-(\d+)\}$", theory, re.MULTILINE) == tags
    cited = {
        number
        for path in (ROOT / "aggregate_po").rglob("*.py")
        for number in re.findall(r"\beqs?\. (\d+)", path.read_text(encoding="utf-8"))
    }
    assert cited
    assert cited <= set(tags)


def test_pages_are_self_contained():
    """Scripts and styles are files of the site, so it needs no network."""
    config = (ROOT / "mkdocs.yml").read_text(encoding="utf-8")
    assert "font: false" in config
    listed = re.findall(r"^  - (assets/\S+)$", config, re.MULTILINE)
    assert listed
    assert [path for path in listed if not (ROOT / "docs" / path).is_file()] == []
    assert not re.search(r"https?://", config)
