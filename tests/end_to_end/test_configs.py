"""The configurations under `experiments/configs` are understood by the command line, and keep their meaning."""

from pathlib import Path
from pydoc import locate
from typing import Any

import pytest
import yaml

from lightning_modules.cli import PolicyCLI, run
from tests.docs.test_snippets import contains, parsed_config

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"
GOLDEN = Path(__file__).parent / "golden"
PATHS = pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)


class ResolvingCLI(PolicyCLI):
    """Instantiates module and data only."""

    def before_instantiate_classes(self) -> None:
        """Skip this step."""

    def instantiate_trainer(self, **kwargs: Any) -> Any:
        """Return the class itself, since this machine may lack the devices of the trainer."""
        return self.trainer_class

    def fit(self, **_: Any) -> None:
        """Skip this step."""

    def before_fit(self) -> None:
        """Skip this step."""


def arguments(path: Path) -> list[str]:
    """Return arguments of `fit`: the file, on top of the default configuration if it names no model."""
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    below = [] if "model" in said else ["--config", str(CONFIGS / "addition.yaml")]
    return ["fit", *below, "--config", str(path)]


def class_paths(node: Any):
    """Return every import path in a resolved configuration."""
    if isinstance(node, dict):
        yield from ([node["class_path"]] if "class_path" in node else [])
    for child in node.values() if isinstance(node, dict) else node if isinstance(node, list) else ():
        yield from class_paths(child)


def objects(node: Any, depth: int = 0) -> Any:
    """Return the class names of the parts of a module or its data, by attribute."""
    if type(node).__module__.partition(".")[0] not in ("aggregate_po", "lightning_modules") or depth > 6:
        return None
    parts = {name: objects(value, depth + 1) for name, value in sorted(vars(node).items()) if name[0] != "_"}
    return {"class": type(node).__name__, **{name: part for name, part in parts.items() if part}}


def resolved(path: Path) -> dict[str, Any]:
    """Return the full configuration with all defaults, and the parts of its objective."""
    configuration = parsed_config(arguments(path))
    module = run(arguments(path), ResolvingCLI).model
    return {"configuration": configuration, "objective": objects(module.objective)}


@PATHS
def test_the_command_line_understands_it(path):
    """A configuration is accepted, on top of the default one if it names no model, and all its values are kept."""
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert contains(parsed_config(arguments(path)), said)


@PATHS
def test_it_resolves_to_the_same_objects_as_ever(path, tmp_path, monkeypatch):
    """The meaning of a configuration is part of the interface: defaults, import paths, and the resulting objects."""
    monkeypatch.chdir(tmp_path)
    for name in ("train.jsonl", "test.jsonl"):
        Path(name).write_text('{"prompt": "What is 1 + 1?", "answer": "2"}\n')
    found = resolved(path)
    assert [class_path for class_path in class_paths(found["configuration"]) if locate(class_path) is None] == []
    golden = yaml.safe_load((GOLDEN / path.name).read_text(encoding="utf-8"))
    assert contains(found, golden)  # there may be new options, with defaults


@pytest.mark.parametrize("rewards", [["boxed_answer"], ["boxed_answer", "last_boxed"]], ids=len)
def test_rewards_are_written_so_that_they_can_be_read_again(rewards, tmp_path):
    """A run's `config.yaml` is read by `evaluate`."""
    paths = [f"lightning_modules.rewards.{name}" for name in rewards]
    said = paths[0] if len(paths) == 1 else f"[{', '.join(paths)}]"
    base = ["fit", "--config", str(CONFIGS / "addition.yaml")]
    written = parsed_config([*base, f"--data.reward={said}"])["data"]["reward"]
    (tmp_path / "written.yaml").write_text(yaml.safe_dump({"data": {"reward": written}}))
    assert parsed_config([*base, "--config", str(tmp_path / "written.yaml")])["data"]["reward"] == written
    assert all(name in str(written) for name in rewards)
