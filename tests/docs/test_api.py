"""The API pages: they have every public name, and no module without one.

Public is what a package exports, what the documentation or a configuration names, the base class of an extension point,
and a record that such a class receives.
"""

import re
from pathlib import Path

import pytest

griffe = pytest.importorskip("griffe")

ROOT = Path(__file__).resolve().parents[2]
API = ROOT / "docs" / "api"
ROOTS = ("aggregate_po", "lightning_modules")
DIRECTIVE = re.compile(r"^::: ([\w.]+)(?:\n    options: \{members: \[([\w, ]+)\]\})?$", re.MULTILINE)
NAMED = re.compile(rf"(?<![\w.])(?:{'|'.join(ROOTS)})(?:\.\w+)+")
CLASS = re.compile(rf"\b(?:{'|'.join(ROOTS)})(?:\.[a-z_0-9]+)*\.[A-Z]\w*")
IMPORTED = re.compile(rf"^from ((?:{'|'.join(ROOTS)})[\w.]*) import ([\w, ]+)$", re.MULTILINE)
BEYOND_EXPORTS = {
    "lightning_modules.aggregation_metrics.AggregationMetrics",
    "lightning_modules.batch.RolloutBatch",
    "lightning_modules.data.groups.GroupSampler",
    "lightning_modules.data.groups.Groups",
    "lightning_modules.data.rollout.Rollout",
    "lightning_modules.micro_batch_observers.EvaluatedMicroBatch",
    "lightning_modules.model.policy.ModelSource",
    "lightning_modules.model.policy.Policy",
    "lightning_modules.rollouts.servers.weight_channels.WeightChannel",
    "lightning_modules.token_rows.TokenRow",
}


@pytest.fixture(scope="module")
def packages():
    return {name: griffe.load(name, search_paths=[ROOT]) for name in ROOTS}


@pytest.fixture(scope="module")
def public(packages):
    """Paths of all public names, each where it is defined."""
    found = BEYOND_EXPORTS | exported(packages) | named(packages)
    bases = {path for package in packages.values() for path in abstract_classes(package)}
    return found | bases


def exported(packages):
    paths = set()
    pending = list(packages.values())
    while pending:
        package = pending.pop()
        paths |= {defined(package[name]).canonical_path for name in package.exports or ()}
        pending += [module for module in package.modules.values() if module.is_subpackage]
    return paths


def named(packages):
    """Classes and functions that a page, the README or a configuration names."""
    pages = [ROOT / "README.md", *(ROOT / "docs").rglob("*.md"), *(ROOT / "experiments" / "configs").glob("*.yaml")]
    text = "\n".join(page.read_text(encoding="utf-8") for page in pages if page.parent != API or page.stem != "index")
    text = DIRECTIVE.sub("", text)
    paths = set(NAMED.findall(text))
    for module, names in IMPORTED.findall(text):
        paths |= {f"{module}.{name.strip()}" for name in names.split(",")}
    found = (resolved(packages, path) for path in paths)
    return {one.canonical_path for one in found if one is not None and (one.is_class or one.is_function)}


def resolved(packages, path):
    root, _, rest = path.partition(".")
    try:
        return defined(packages[root][rest])
    except (KeyError, ValueError):  # a file, an option, or an argument of a class
        return None


def defined(one):
    """What a name stands for; a module with a function of its own name, as recipes have, for that function."""
    target = one.final_target if one.is_alias else one
    return target.members.get(target.name, target) if target.is_module else target


def abstract_classes(module):
    for one in module.classes.values():
        if not one.is_alias and "ABC" in {str(base) for base in one.bases}:
            yield one.canonical_path
    for inner in module.modules.values():
        yield from abstract_classes(inner)


def shown():
    """Modules on the pages, each with the names that it is limited to, if it is."""
    pages = "\n".join(path.read_text(encoding="utf-8") for path in API.glob("*.md"))
    found = DIRECTIVE.findall(pages)
    assert len(found) == len(dict(found)), "a module is on two pages"
    return {module: set(names.split(", ")) - {""} for module, names in found}


def test_every_public_name_is_on_a_page(public):
    pages = shown()
    missing = []
    for path in sorted(public):
        module, _, name = path.rpartition(".")
        if module not in pages or (pages[module] and name not in pages[module]):
            missing.append(path)
    assert missing == [], "add `::: MODULE` to a page in docs/api"


def test_no_page_has_a_module_without_a_public_name(public):
    assert sorted(set(shown()) - {path.rpartition(".")[0] for path in public}) == []


def test_what_is_public_includes_exports_names_and_base_classes(public):
    assert "aggregate_po.aggregators.power.PowerMean" in public  # exported
    assert "aggregate_po.bounds.bounded" in public  # imported by a page
    assert "lightning_modules.rewards.boxed.boxed_answer" in public  # named by a configuration
    assert "lightning_modules.rollouts.base.RolloutEngine" in public  # abstract


def test_the_index_has_every_page_once():
    index = (API / "index.md").read_text(encoding="utf-8")
    listed = re.findall(r"^\| \[[^\]]+\]\((\w+)\.md\) \| \S.*\|$", index, re.MULTILINE)
    assert sorted(listed) == sorted(path.stem for path in API.glob("*.md") if path.stem != "index")


def test_classes_that_code_names_exist(packages):
    """Messages and docstrings name classes by the path from which they can be imported."""
    sources = [source for name in ROOTS for source in sorted((ROOT / name).rglob("*.py"))]
    paths = {path for source in sources for path in CLASS.findall(source.read_text(encoding="utf-8"))}
    assert "lightning_modules.flow.FlowModelSource" in paths
    assert [path for path in sorted(paths) if resolved(packages, path) is None] == []
