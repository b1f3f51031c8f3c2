"""The notebooks of the documentation: their cells run, shortened, and are kept without outputs."""

import json
import re

import pytest

from aggregate_po.recipes import gmpo, grpo
from experiments.notebook import main, run_notebook
from tests.docs.test_snippets import ROOT

PAGE = (ROOT / "docs" / "notebooks.md").read_text(encoding="utf-8")
FOLDER = ROOT / "docs" / "notebooks"
NOTEBOOKS = sorted(path.stem for path in FOLDER.glob("*.ipynb"))


def cells(name):
    return json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))["cells"]


@pytest.fixture
def model_of_the_test(tmp_path, monkeypatch):
    """A start model that has learned nothing, and a reward in which its completions differ."""
    monkeypatch.setenv("AGGREGATE_PO_CACHE", str(tmp_path / "cache"))
    monkeypatch.setattr(
        "lightning_modules.rewards.boxed_answer", lambda completion, example: float(len(completion) % 2)
    )


@pytest.mark.slow
def test_both_objectives_train(model_of_the_test, tmp_path):
    shorter = {"STEPS": 8, "WARM_START": 2, "HELD_OUT": 4}
    defined = run_notebook(FOLDER / "gmpo-against-grpo.ipynb", shorter, tmp_path)
    assert defined["by_hand"].keys() == {"GRPO", "GMPO"}
    for name in ("GRPO", "GMPO"):
        rows = (tmp_path / defined["runs"][name] / "metrics.csv").read_text().splitlines()
        assert len(rows) >= 8
    assert {path.name for path in tmp_path.glob("*.svg")} == {f"gmpo-against-grpo-{number}.svg" for number in (1, 2, 3)}


@pytest.mark.slow
def test_the_mean_is_compared(model_of_the_test, tmp_path, capsys):
    shorter = {"EXAMPLES": 1, "PROMPTS": 4, "UPDATES": 2, "WARM_START": 2}
    defined = run_notebook(FOLDER / "own-mean.ipynb", shorter, tmp_path)
    names = ["grpo", "gmpo", "gmpo_no_clip", "asinh_mean.AsinhMean(scale=0.2)"]
    assert list(defined["comparison"].weights) == names
    assert "log M: 0.0921" in capsys.readouterr().out
    assert {path.name for path in tmp_path.glob("*.svg")} == {"own-mean-1.svg", "own-mean-2.svg"}


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_a_notebook_has_no_outputs_and_is_valid(name):
    notebook = json.loads((FOLDER / f"{name}.ipynb").read_text(encoding="utf-8"))
    assert (notebook["nbformat"], notebook["nbformat_minor"]) == (4, 5)
    identifiers = [cell["id"] for cell in notebook["cells"]]
    assert len(set(identifiers)) == len(identifiers)
    for cell in notebook["cells"]:
        assert cell["cell_type"] in ("markdown", "code")
        assert cell.get("outputs", []) == []
        assert cell.get("execution_count") is None
        assert all(line.endswith("\n") for line in cell["source"][:-1])
    assert sum("parameters" in cell["metadata"].get("tags", []) for cell in notebook["cells"]) == 1


@pytest.mark.parametrize("name", NOTEBOOKS)
def test_the_page_shows_and_makes_each_notebook(name):
    assert f"({FOLDER.name}/{name}.ipynb)" in PAGE
    assert f"python -m experiments.notebook docs/notebooks/{name}.ipynb\n" in PAGE
    title = "".join(cells(name)[0]["source"]).splitlines()[0]
    assert f"\n#{title}\n" in PAGE


def test_the_plots_of_the_page_are_those_of_the_notebooks():
    shown = set(re.findall(r"assets/notebooks/([\w.-]+)\)", PAGE))
    assert shown == {path.name for path in (ROOT / "docs" / "assets" / "notebooks").iterdir()}


def test_links_of_the_notebooks_lead_to_files():
    links = [
        link
        for name in NOTEBOOKS
        for cell in cells(name)
        for link in re.findall(r"\]\(([^)]+)\)", "".join(cell["source"]))
    ]
    assert links
    assert [link for link in links if not (FOLDER / link).is_file()] == []


def test_a_parameter_that_is_none_is_refused(tmp_path):
    message = r"`parameters` has STEP, which gmpo-against-grpo\.ipynb does not set; pass any of FOLDER, HELD_OUT, S"
    with pytest.raises(ValueError, match=message):
        run_notebook(FOLDER / "gmpo-against-grpo.ipynb", {"STEP": 1}, tmp_path)


def test_a_parameter_without_a_value_is_refused(tmp_path, capsys):
    with pytest.raises(SystemExit):
        main([str(FOLDER / "own-mean.ipynb"), "--set", "PROMPTS", "--output", str(tmp_path)])
    assert "'PROMPTS' is no NAME=VALUE" in capsys.readouterr().err


def test_the_bounds_of_the_text_are_the_defaults():
    text = "".join("".join(cell["source"]) for cell in cells("gmpo-against-grpo"))
    assert "r_t, 0.8, 1.2" in text
    assert (grpo().token_transform.clip_low, grpo().token_transform.clip_high) == (0.2, 0.2)
    assert "min(x_t, 0.4)" in text
    assert (gmpo().token_transform.log_clip_low, gmpo().token_transform.log_clip_high) == (0.4, 0.4)
