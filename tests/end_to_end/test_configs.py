"""The configurations under `experiments/configs` are understood by the command line."""

from pathlib import Path

import pytest
import yaml

from tests.docs.test_snippets import contains, parsed_config

CONFIGS = Path(__file__).parents[2] / "experiments" / "configs"


@pytest.mark.parametrize("path", sorted(CONFIGS.glob("*.yaml")), ids=lambda path: path.stem)
def test_the_command_line_understands_it(path):
    """Alone, or on top of the default job where it names no model; and nothing it says is lost."""
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    below = [] if "model" in said else ["--config", str(CONFIGS / "addition.yaml")]
    parsed = parsed_config(["fit", *below, "--config", str(path)])
    assert contains(parsed, said)
