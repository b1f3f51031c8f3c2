"""The structure of the repository: imports point one way, files are small, names exist, docstrings are there."""

import ast
import importlib
import re
import sys
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parents[1]
PACKAGES = ["aggregate_po", "lightning_modules", "experiments"]  # each may import those before it
CORE_LAYERS = [
    [
        "arguments",
        "masked",
        "shapes",
        "spans",
        "corrections",
        "totals",
        "transitions",
        "weights",
        "batch",
        "token_ratios",
        "bounds",
        "derivatives",
        "extras",
        "histograms",
        "linear_log_probs",
        "products",
        "scans",
        "weightings",
    ],
    [
        "aggregators",
        "exponents",
        "transforms",
        "prefixes",
        "suffixes",
        "group_objectives",
        "normalizers",
        "penalties",
        "advantages",
        "geometry",
    ],
    ["gradient_weights", "checks"],
    ["weight_sums"],
    ["trace"],
    ["objective"],
    ["recipes"],
    ["named"],
    ["__init__"],
    ["testing"],  # imported by tests alone
    ["adapters"],  # imported by other trainers alone
]

# Each may import those before it, and those beside it where that makes no circle.
TRAINING_LAYERS = [
    [
        "distributed",
        "seeding",
        "progress",
        "run_folder",
        "interruption",
        "validation",
        "option_help",
        "option_errors",
        "loops",
    ],
    ["argument_parser", "atomic", "cache", "parquet_files", "configuration", "errors", "optimizer"],
    ["tally", "recorded_config", "schedules"],
    ["metrics", "aggregation_metrics", "prompts", "token_texts"],
    ["micro_batch"],
    ["batch", "rewards", "addition"],
    ["model"],
    ["ratio_check", "group_terms", "token_rows", "micro_batch_observers", "rest_of_rollout"],
    ["resumption"],
    ["memory"],
    ["rollouts", "objective_module"],
    ["policy_module"],
    ["data"],
    ["evaluation"],
    ["callbacks"],
    ["__init__"],
    ["run_config"],
    ["cli"],
    ["planning", "evaluate_command", "example", "audit", "recordings", "viewer", "flow"],
    ["preflight", "comparison"],
    ["__main__"],
]
# Lines; of functions and classes without their docstring.
LONGEST_FILE, LONGEST_FUNCTION, LONGEST_CLASS = 300, 40, 200
# What is longer. These lists may only become shorter.
LONG_FILES: set[str] = set()
LONG_FUNCTIONS: set[str] = set()
LONG_CLASSES: set[str] = set()


def python_files(*packages):
    return sorted(path for package in packages for path in (ROOT / package).rglob("*.py"))


def relative(path):
    return path.relative_to(ROOT).as_posix()


def imported_modules(path, tree=None):
    """Dotted names of all modules that a file imports, also inside functions; `from a import b` counts as `a.b`."""
    package = list(path.relative_to(ROOT).parent.parts)
    for node in ast.walk(tree or ast.parse(path.read_text())):
        if isinstance(node, ast.Import):
            yield from (alias.name for alias in node.names)
        elif isinstance(node, ast.ImportFrom):
            origin = package[: len(package) - node.level + 1] if node.level else []
            base = [*origin, *(node.module.split(".") if node.module else [])]
            yield from (".".join([*base, alias.name]) for alias in node.names)


def layer_of(module, layers):
    """Layer of a module, by its first name below the package; None for a name of the package itself."""
    names = [layer for layer, members in enumerate(layers) if module in members]
    return names[0] if names else None


@pytest.mark.parametrize("path", python_files(*PACKAGES), ids=relative)
def test_packages_import_one_way(path):
    allowed = PACKAGES[: PACKAGES.index(path.relative_to(ROOT).parts[0]) + 1]
    roots = {module.split(".")[0] for module in imported_modules(path)}
    assert roots & set(PACKAGES) <= set(allowed)
    assert "tests" not in roots


LAYERS = {"aggregate_po": CORE_LAYERS, "lightning_modules": TRAINING_LAYERS}


@pytest.mark.parametrize("path", python_files(*LAYERS), ids=relative)
def test_imports_point_one_way(path):
    """Imports for types alone and inside functions count too."""
    package, own = path.relative_to(ROOT).with_suffix("").parts[:2]
    layers = LAYERS[package]
    layer = layer_of(own, layers)
    assert layer is not None, f"give {own} a place in the layers of {package}"
    for module in imported_modules(path):
        parts = module.split(".")
        if parts[0] == package and parts[1:]:
            target = layer_of(parts[1], layers)
            target = layer_of("__init__", layers) if target is None else target
            assert target <= layer, f"{own} imports {module}"


@pytest.mark.parametrize("package", LAYERS)
def test_no_modules_import_each_other_in_a_circle(package):
    files = {module_name(path): path for path in python_files(package)}
    arrows = {
        name: {
            found for module in imported_modules(path) if (found := longest_prefix(module, files)) not in (None, name)
        }
        for name, path in files.items()
    }
    while leaves := {name for name, targets in arrows.items() if not targets & arrows.keys()}:
        arrows = {name: targets for name, targets in arrows.items() if name not in leaves}
    assert sorted(arrows) == []


def module_name(path):
    return ".".join(path.relative_to(ROOT).with_suffix("").parts).removesuffix(".__init__")


def longest_prefix(module, files):
    """The file that an imported name stands in."""
    while module and module not in files:
        module = module.rpartition(".")[0]
    return module or None


@pytest.mark.parametrize("path", python_files("aggregate_po"), ids=relative)
def test_core_imports_torch_einops_and_the_standard_library(path):
    """And typing_extensions, on which torch depends, for `override` before Python 3.12; an adapter its trainer too."""
    roots = {module.split(".")[0] for module in imported_modules(path)}
    trainer = {root for root in roots if "adapters" in path.parts and path.stem.startswith(root)}
    extra = {"hypothesis"} if "testing" in path.parts else trainer
    assert roots <= {"aggregate_po", "torch", "einops", "typing_extensions", *extra} | sys.stdlib_module_names


def test_nothing_but_tests_imports_the_testing_kit():
    users = {
        relative(path)
        for path in python_files(*PACKAGES)
        if "testing" not in path.parts
        and any(module.startswith("aggregate_po.testing") for module in imported_modules(path))
    }
    assert not users


@pytest.mark.parametrize(
    ("package", "place"),
    [
        ("vllm", "lightning_modules/rollouts/vllm.py"),
        ("starlette", "lightning_modules/rollouts/serving/middleware.py"),
        ("uvicorn", "lightning_modules/rollouts/serving/connections.py"),
        ("peft", "lightning_modules/model/lora.py"),
        ("diffusers", "lightning_modules/flow/diffusers/source.py"),
        ("pyarrow", "lightning_modules/parquet_files.py"),
        ("gymnasium", "experiments/classical/control/environments.py"),
    ],
)
def test_what_is_optional_is_imported_in_one_place(package, place):
    places = {
        relative(path)
        for path in python_files(*PACKAGES)
        if package in {module.split(".")[0] for module in imported_modules(path)}
    }
    assert places <= {place}


@pytest.mark.parametrize(
    ("source", "expected"),
    [
        ("import vllm.engine as engine", ["vllm.engine"]),
        ("def f():\n    from aggregate_po import recipes", ["aggregate_po.recipes"]),
        ("from . import clip", ["aggregate_po.transforms.clip"]),
        ("from ..recipes.grpo import grpo", ["aggregate_po.recipes.grpo.grpo"]),
    ],
)
def test_imports_are_found_in_every_form(source, expected):
    path = ROOT / "aggregate_po" / "transforms" / "example.py"
    assert list(imported_modules(path, ast.parse(source))) == expected


@pytest.mark.parametrize("path", [p for p in python_files(*PACKAGES) if p.name == "__init__.py"], ids=relative)
def test_public_names_are_bound(path):
    """In the file itself, so that no package has to be imported that needs more than is installed."""
    stub = path.with_suffix(".pyi")  # of a package that imports its names when they are used
    tree = ast.parse((stub if stub.exists() else path).read_text())
    bound, public = set(), []
    for node in tree.body:
        if isinstance(node, (ast.Import, ast.ImportFrom)):
            bound |= {alias.asname or alias.name for alias in node.names}
        elif isinstance(node, (ast.FunctionDef, ast.ClassDef)):
            bound.add(node.name)
        elif isinstance(node, ast.Assign):
            bound |= {target.id for target in node.targets if isinstance(target, ast.Name)}
            if "__all__" in {target.id for target in node.targets if isinstance(target, ast.Name)}:
                public = ast.literal_eval(node.value)
    assert set(public) <= bound
    assert sorted(set(public)) == sorted(public)


@pytest.mark.parametrize("path", [p for p in python_files("aggregate_po") if p.name == "__init__.py"], ids=relative)
def test_public_names_of_the_core_exist(path):
    module = importlib.import_module(".".join(path.parent.relative_to(ROOT).parts))
    missing = [name for name in module.__all__ if not hasattr(module, name)]
    assert not missing


@pytest.mark.parametrize("path", python_files("aggregate_po"), ids=relative)
def test_public_definitions_of_the_core_have_docstrings(path):
    """Except overriding methods: the API pages show the docstring of the method that they override."""
    tree = ast.parse(path.read_text())
    assert ast.get_docstring(tree), "the module has none"
    undocumented = [
        node.name for node in public_definitions(tree) if not (ast.get_docstring(node) or is_override(node))
    ]
    assert not undocumented, "write a docstring, or mark what overrides with `@override`"


def is_override(node):
    return any(isinstance(decorator, ast.Name) and decorator.id == "override" for decorator in node.decorator_list)


def public_definitions(node):
    """Public classes and functions at the top, and the public methods of those classes."""
    for child in node.body:
        if isinstance(child, (ast.FunctionDef, ast.ClassDef)) and not child.name.startswith("_"):
            yield child
            if isinstance(child, ast.ClassDef):
                yield from public_definitions(child)


def test_no_file_is_named_utils():
    assert not [relative(path) for path in python_files(*PACKAGES, "tests") if path.name == "utils.py"]


def test_files_of_the_core_are_small():
    lengths = {relative(path): len(path.read_text().splitlines()) for path in python_files("aggregate_po")}
    assert len(lengths) > 10
    assert {path: length for path, length in lengths.items() if length > 250} == {}


def test_files_functions_and_classes_of_the_training_are_small():
    """But for those that are listed, and all that are listed are longer still."""
    files, functions, classes = {}, {}, {}
    for path in python_files("lightning_modules"):
        files[module_name(path)] = len(path.read_text().splitlines())
        for node in ast.walk(ast.parse(path.read_text())):
            name = f"{module_name(path)}.{getattr(node, 'name', '')}"
            if isinstance(node, (ast.FunctionDef, ast.AsyncFunctionDef)):
                functions[name] = max(functions.get(name, 0), lines_of_code(node.body, node))
            elif isinstance(node, ast.ClassDef):
                classes[name] = lines_of_code([node, *node.body], node)
    assert {name for name, length in files.items() if length > LONGEST_FILE} == LONG_FILES
    assert {name for name, length in functions.items() if length > LONGEST_FUNCTION} == LONG_FUNCTIONS
    assert {name for name, length in classes.items() if length > LONGEST_CLASS} == LONG_CLASSES


def lines_of_code(body, node):
    """Lines from the first to the last of some statements, without the docstring of a function or class."""
    first = node.body[0]
    docstring = first.end_lineno - first.lineno + 1 if ast.get_docstring(node) else 0
    return body[-1].end_lineno - body[0].lineno + 1 - docstring


# By the words of an identifier, so that `group` or `optimizer` is none of them.
ALGORITHMS = {
    *(
        "apmpo",
        "bnpo",
        "cispo",
        "cppo",
        "dapo",
        "dppo",
        "dro",
        "drpo",
        "espo",
        "fspo",
        "gdpo",
        "gmpo",
        "gpg",
        "grpo",
        "gspo",
        "hmpo",
    ),
    *("igrpo", "krpo", "luspo", "maxrl", "opo", "opsm", "pmpo", "ppo", "r2vpo", "reinforce", "remax", "rloo", "sapo"),
    *("spo", "sspo", "ticgrpo", "vespo"),
}
# Classes of other trainers, and of ours that extend them.
TRAINERS = {"GRPOTrainer", "ObjectiveGRPOTrainer"}


def identifiers(tree):
    """Every name that a file defines or uses."""
    for node in ast.walk(tree):
        for attribute in ("name", "id", "attr", "arg", "asname"):
            if isinstance(value := getattr(node, attribute, None), str):
                yield value


def words(identifier):
    return {word.lower() for word in re.findall(r"[A-Z]+(?![a-z])|[A-Z]?[a-z0-9]+", identifier)}


@pytest.mark.parametrize(
    "path",
    [path for path in python_files("aggregate_po", "lightning_modules") if "recipes" not in path.parts],
    ids=relative,
)
def test_only_recipes_name_algorithms(path):
    named = {name for name in identifiers(ast.parse(path.read_text())) if words(name) & ALGORITHMS}
    assert named <= (TRAINERS if path.parent.name == "adapters" else set())


@pytest.mark.parametrize("identifier", ["GRPOClip", "is_gmpo", "PMPO", "TokenDAPO", "r2vpo_state", "from_ppo"])
def test_names_of_algorithms_are_recognised(identifier):
    assert words(identifier) & ALGORITHMS
