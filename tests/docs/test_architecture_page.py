"""The page on the architecture names what is there: folders, classes, and the stages in the order of the flow."""

import inspect
import re
from pathlib import Path

from lightning_modules import RolloutDataModule

ROOT = Path(__file__).resolve().parents[2]
TEXT = (ROOT / "docs" / "architecture.md").read_text(encoding="utf-8")
FLOW = TEXT.partition("## The flow\n")[2].partition("```\n\n")[0]
SOURCES = "\n".join(
    path.read_text(encoding="utf-8")
    for name in ("aggregate_po", "lightning_modules")
    for path in (ROOT / name).rglob("*.py")
)


def test_every_folder_is_a_part_of_the_flow_or_named_beside_it():
    folders = [path.parent.name for path in (ROOT / "lightning_modules").glob("*/__init__.py")]
    assert [folder for folder in folders if f"{folder}/" not in TEXT] == []
    named = re.findall(r"^([\w/]+?)/? +\S", FLOW.split("----\n")[-1], re.MULTILINE)
    missing = [
        name
        for name in named
        if not any(
            (ROOT / base / f"{name}{ending}").exists() for base in ("", "lightning_modules") for ending in ("", ".py")
        )
    ]
    assert len(named) == 12
    assert missing == []


def test_classes_and_functions_of_the_diagrams_exist():
    names = set(re.findall(r"\b(?:[A-Z][a-z]+){2,}\b", TEXT))
    assert len(names) > 15
    defined = set(re.findall(r"^ *(?:class|def) (\w+)", SOURCES, re.MULTILINE))
    assert sorted(names - defined) == []


def test_stages_stand_in_the_order_in_which_the_flow_calls_them():
    source = inspect.getsource(RolloutDataModule._rollout)
    stages = ["log_probs_of", "advantages", "updates"]
    assert sorted(stages, key=lambda stage: source.index(f"{stage}(")) == stages
    assert sorted(stages, key=lambda stage: FLOW.index(f" {stage}:")) == stages


def test_lines_of_diagrams_fit_the_page():
    blocks = re.findall(r"^```text\n(.*?)^```$", TEXT, re.DOTALL | re.MULTILINE)
    assert len(blocks) == 5
    assert [line for block in blocks[:4] for line in block.splitlines() if len(line) > 78] == []
