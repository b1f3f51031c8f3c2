"""What a user installs: the distributions, an environment with nothing else, and a typed project that uses it."""

import importlib
import os
import re
import shutil
import subprocess
import sys
import tarfile
import tomllib
import zipfile
from email import message_from_bytes
from pathlib import Path

import pytest

from aggregate_po import __version__

build = pytest.importorskip("build", reason="the package build is not installed")

pytestmark = pytest.mark.slow

ROOT = Path(__file__).resolve().parents[2]
PROJECT = Path(__file__).with_name("project")
PACKAGES = ("aggregate_po", "lightning_modules")
DECLARED = tomllib.loads((ROOT / "pyproject.toml").read_text(encoding="utf-8"))["project"]
# What the source distribution has besides the packages, and what setuptools adds to it.
SOURCES = ["CHANGELOG.md", "CITATION.cff", "LICENSE", "MANIFEST.in", "README.md", "constraints.txt", "pyproject.toml"]
ADDED = ["PKG-INFO", "setup.cfg"]


def ran(*command, folder, **variables):
    """Run a command in a folder outside the checkout, without the checkout on its path, and return its output."""
    environment = {name: value for name, value in os.environ.items() if name not in ("PYTHONPATH", "VIRTUAL_ENV")}
    result = subprocess.run(
        [*map(str, command)],
        cwd=folder,
        env=environment | {"PIP_DISABLE_PIP_VERSION_CHECK": "1"} | variables,
        capture_output=True,
        text=True,
        timeout=900,
    )
    assert result.returncode == 0, result.stdout + result.stderr
    return result.stdout


@pytest.fixture(scope="module")
def distributions(tmp_path_factory):
    """The source distribution of a copy of the checkout, and the wheel that is built from it."""
    folder = tmp_path_factory.mktemp("release")
    (folder / "checkout").mkdir()
    for path in ROOT.iterdir():  # without environments, runs and earlier builds
        if path.is_file():
            shutil.copy(path, folder / "checkout")
        elif path.name in (*PACKAGES, "docs", "experiments", "tests"):
            shutil.copytree(path, folder / "checkout" / path.name, ignore=shutil.ignore_patterns("__pycache__"))
    ran(sys.executable, "-m", "build", "--outdir", folder / "dist", folder / "checkout", folder=folder)
    (source,), (wheel,) = (folder / "dist").glob("*.tar.gz"), (folder / "dist").glob("*.whl")
    return source, wheel


@pytest.fixture(scope="module")
def installed(distributions, tmp_path_factory):
    """An environment with the wheel and its dependencies in the tested versions, and what the core printed before."""
    folder = tmp_path_factory.mktemp("installed")
    ran(sys.executable, "-m", "venv", "--without-pip", "environment", folder=folder)
    pip = (sys.executable, "-m", "pip", "--python", folder / "environment" / "bin" / "python", "install", "--quiet")
    pip = (*pip, "--no-compile", "--constraint", ROOT / "constraints.txt")
    ran(*pip, "--no-deps", distributions[1], folder=folder)
    ran(*pip, "torch", "einops", folder=folder)
    core = ran(folder / "environment" / "bin" / "python", "-c", CORE, folder=folder)
    ran(*pip, distributions[1], folder=folder)
    return folder / "environment" / "bin", core


@pytest.fixture
def project(tmp_path):
    """A folder with the project of a user."""
    shutil.copytree(PROJECT, tmp_path / "project", ignore=shutil.ignore_patterns("__pycache__"))
    return tmp_path / "project"


# One completion by hand: log ratios log 2 and 0; the geometric mean is sqrt 2, and both weights sqrt 2 / 2.
CORE = """
import importlib.util

import torch

import aggregate_po
from aggregate_po.recipes import gmpo

batch = aggregate_po.PolicyBatch(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1))
log_probs = torch.tensor([[2.0, 1.0]]).log()
weights = gmpo(log_clip=1.0).gradient_weights(log_probs, batch)
print(aggregate_po.__file__)
print(f"{gmpo(log_clip=1.0)(log_probs, batch):.4f}", *(f"{weight:.4f}" for weight in weights.total[0]))
print(*(name for name in ("lightning", "transformers", "numpy") if importlib.util.find_spec(name)))
"""


def package_files():
    return {
        path.relative_to(ROOT).as_posix()
        for package in PACKAGES
        for path in (ROOT / package).rglob("*")
        if path.is_file() and "__pycache__" not in path.parts and not path.name.startswith(".")
    }


def test_the_wheel_has_the_files_of_the_packages_and_no_others(distributions):
    """With `py.typed`, stubs, lists of benchmarks, the page of the viewer; without tests, experiments and pages."""
    with zipfile.ZipFile(distributions[1]) as wheel:
        names = {name for name in wheel.namelist() if ".dist-info/" not in name}
        assert any(name.endswith(".dist-info/licenses/LICENSE") for name in wheel.namelist())
    assert names == package_files()


def test_the_source_distribution_has_what_the_wheel_is_built_from(distributions):
    with tarfile.open(distributions[0]) as source:
        names = {member.name.partition("/")[2] for member in source.getmembers() if member.isfile()}
    names = {name for name in names if not name.startswith("aggregate_po.egg-info/")}
    assert names == package_files() | {*SOURCES, *ADDED}


def test_the_metadata_say_what_an_index_shows(distributions):
    with zipfile.ZipFile(distributions[1]) as wheel:
        (name,) = [name for name in wheel.namelist() if name.endswith(".dist-info/METADATA")]
        metadata = message_from_bytes(wheel.read(name))
        entries = wheel.read(name.replace("METADATA", "entry_points.txt")).decode()
    assert (metadata["Name"], metadata["Version"]) == ("aggregate-po", __version__)
    assert metadata["Requires-Python"] == DECLARED["requires-python"]
    assert metadata["License-Expression"] == "Apache-2.0"
    assert metadata["Summary"] == DECLARED["description"]
    assert metadata["Description-Content-Type"] == "text/markdown"
    assert metadata.get_payload().lstrip().startswith("# aggregate_po\n")
    assert set(metadata.get_all("Provides-Extra")) == DECLARED["optional-dependencies"].keys()
    required = [line for line in metadata.get_all("Requires-Dist") if "extra ==" not in line]
    assert len(required) == len(DECLARED["dependencies"])
    assert "aggregate-po = lightning_modules.__main__:main" in entries
    assert "[verl.plugins]" in entries


def test_the_core_works_with_torch_and_einops_alone(installed):
    place, numbers, others = installed[1].split("\n")[:3]
    assert Path(place).is_relative_to(installed[0].parent)
    assert numbers == "1.4142 0.7071 0.7071"
    assert others == ""


def test_the_command_line_of_an_installation(installed, project):
    command = installed[0] / "aggregate-po"
    assert ran(command, "--version", folder=project) == f"aggregate-po {__version__}\n"
    assert "usage: aggregate-po" in ran(command, "--help", folder=project)


def test_a_user_trains_with_an_objective_of_ones_own(installed, project):
    """By its import path; the configuration comes from the installation."""
    command = installed[0] / "aggregate-po"
    (project / "addition.yaml").write_text(ran(command, "example", folder=project), encoding="utf-8")
    ran(
        *(command, "fit", "--config", "addition.yaml"),
        *("--model.objective", "my_parts.lehmer_po", "--model.objective.order", "3"),
        *("--data.reward", "my_parts.even_digits", "--data.max_completion_length", "8"),
        *("--model.model_name.init_args.steps", "2", "--data.validation.init_args.size", "8"),
        *("--trainer.max_steps", "1", "--trainer.default_root_dir", "runs/mine"),
        *("--report.evaluate_before_training", "false", "--report.evaluate_after_training", "false"),
        folder=project,
        AGGREGATE_PO_CACHE=str(project / "cache"),
        OMP_NUM_THREADS="1",
    )
    assert (project / "runs" / "mine" / "model" / "config.json").is_file()
    assert "objective: my_parts.lehmer_po" in re.sub(
        r"objective:\s+class_path:", "objective:", (project / "runs" / "mine" / "config.yaml").read_text()
    )


def test_the_typed_project_runs(project, monkeypatch, capsys):
    monkeypatch.chdir(project)
    monkeypatch.syspath_prepend(project)
    monkeypatch.setenv("AGGREGATE_PO_CACHE", str(project / "cache"))
    importlib.import_module("train").main()
    printed = capsys.readouterr().out
    assert "geometric: 2.00 of 2 tokens" in printed
    assert "trained for 1 step" in printed


# Modules that a user's types do not come from; mypy reads all of torch and Lightning.
SKIPPED = """
[mypy]
strict = True
[mypy-transformers.*,tokenizers.*,matplotlib.*,torchmetrics.*,jsonargparse.*]
follow_imports = skip
"""
# Each line that is wrong has the code of its error.
WRONG = """
import torch
from aggregate_po import GeometricMean, PessimisticClip, PolicyBatch, PolicyObjective, TokenAggregator, TokenRatios
from aggregate_po.recipes import gmpo
from lightning_modules import PolicyModule, RolloutDataModule
from my_parts import lehmer_po

gmpo(log_clip="0.4")  # arg-type
gmpo(clip=0.4)  # call-arg
lehmer_po(order="3")  # arg-type
PolicyObjective("GeometricMean")  # arg-type
PolicyObjective(PessimisticClip(0.2, 0.2))  # arg-type
PolicyObjective(GeometricMean()).gradient_weights(torch.zeros(1, 1), None)  # arg-type
PolicyBatch(torch.zeros(1, 1), torch.ones(1, 1), [1.0])  # arg-type
PolicyModule("model", objective=gmpo)  # arg-type
RolloutDataModule(dataset=3, reward=lambda completion, example: 1.0)  # arg-type


class Backward(TokenAggregator):
    def log_aggregate(self, tokens: torch.Tensor) -> torch.Tensor:  # override
        return tokens
"""


def test_a_typed_project_is_checked_and_its_mistakes_are_found(installed, project):
    """`mypy --strict` with the types of the installation."""
    (project / "mypy.ini").write_text(SKIPPED, encoding="utf-8")
    (project / "wrong.py").write_text(WRONG, encoding="utf-8")
    mypy = [sys.executable, "-m", "mypy", "--python-executable", installed[0] / "python", "--no-error-summary"]
    result = subprocess.run([*mypy, "."], cwd=project, capture_output=True, text=True)
    errors = re.findall(r"^(\w+)\.py:(\d+): error: .*\[([\w-]+)\]$", result.stdout, re.MULTILINE)
    expected = [
        ("wrong", str(number), line.rpartition("# ")[2])
        for number, line in enumerate(WRONG.splitlines(), start=1)
        if "# " in line
    ]
    assert sorted(set(errors)) == sorted(expected), result.stdout + result.stderr
