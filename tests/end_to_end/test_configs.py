"""The configurations under `experiments/configs` are understood by the command line."""

from pathlib import Path

import pytest
import yaml

from tests.docs.test_snippets import parsed_config

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_command_line_understands_it(path):
    """Alone, or on top of the default job where it names no model; and nothing it says is lost."""
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    below = [] if "model" in said else ["--config", str(CONFIGS / "addition.yaml")]
    parsed = parsed_config(["fit", *below, "--config", str(path)])
    assert contains(parsed, said)


def contains(parsed, said):
    """Whether `parsed` says what `said` says, perhaps with further defaults."""
    if isinstance(said, dict):
        return all(contains(parsed[name], value) for name, value in said.items())
    return parsed == said
