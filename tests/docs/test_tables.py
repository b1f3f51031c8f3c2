"""The tables that are made from the code: they leave nothing out, and their curves are the gradient weights."""

import importlib
import inspect
import math
import re
from pathlib import Path
from xml.etree import ElementTree

import pytest
import torch

from aggregate_po import PolicyBatch, StepTotals, advantages, recipes

pytest.importorskip("mkdocs")

ROOT = Path(__file__).resolve().parents[2]
PAGE = (ROOT / "docs" / "recipes.md").read_text(encoding="utf-8")
EQUATION = re.compile(r"\[eq\. (\d+)\]\[eq-\1\]")


@pytest.fixture(scope="module")
def tables():
    """The hook, imported as MkDocs does, with the folder of the pages in the path."""
    with pytest.MonkeyPatch.context() as patch:
        patch.syspath_prepend(ROOT / "docs")
        return importlib.import_module("recipe_tables")


@pytest.fixture(scope="module")
def plots(tables):
    return importlib.import_module("weight_plots")


@pytest.fixture(scope="module")
def recipe_rows(tables):
    """The cells of the table of recipes, by name of the recipe."""
    return {re.search(r"\[`(\w+)`\]", cells[0])[1]: cells for cells in cells_of(tables.recipe_table(PAGE))}


def cells_of(table):
    return [line.removeprefix("| ").removesuffix(" |").split(" | ") for line in table.splitlines()[2:]]


def drawn(cell, curve):
    """Points of one curve of a plot, and the heights of its zero line."""
    path = re.search(rf'<path class="{curve}" d="M([^"]+)"', cell)[1]
    zero = float(re.search(r'class="axis" d="M[\d.]+ ([\d.]+)H', cell)[1])
    return [tuple(map(float, point.split())) for point in path.split("L")], zero


def test_every_recipe_has_a_row(recipe_rows):
    assert sorted(recipe_rows) == sorted(recipes.__all__)


@pytest.mark.parametrize("name", recipes.__all__)
def test_a_row_has_paper_parts_arguments_formula_and_plot(recipe_rows, name):
    recipe, parts, arguments, weight, plot = recipe_rows[name]
    assert "](https://arxiv.org/abs/" in recipe or "no paper" in recipe
    assert "[aggregate_po.aggregators." in parts
    assert "[aggregate_po.normalizers." in parts
    own = set(inspect.signature(getattr(recipes, name)).parameters) - {"penalties"}
    assert set(re.findall(r"`(\w+)[=`]", arguments)) == own
    assert re.match(r"\$[^$]*A_\{?i[^$]*\$", weight)
    assert plot.count("<path") == 5
    assert len(re.findall(r"<text", plot)) >= 4
    assert plot.endswith(f"</svg>](assets/weights/{name}.svg)")


def test_recipes_with_an_equation_lead_to_it(recipe_rows):
    theory = (ROOT / "docs" / "theory.md").read_text(encoding="utf-8")
    cited = {name: EQUATION.search(cells[3]) for name, cells in recipe_rows.items()}
    without = {name for name, equation in cited.items() if equation is None}
    assert without <= {"grpo_wide_clip", "gmpo_no_clip", "gmpo_sequence_clip", "gmpo_without_length_norm"}
    assert [name for name, equation in cited.items() if equation and f"{{#eq-{equation[1]}}}" not in theory] == []


@pytest.mark.parametrize("name", recipes.__all__)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_the_curves_are_the_gradient(tables, plots, name, advantage):
    objective = tables.with_any_arguments(getattr(recipes, name))
    half_width = plots.visible_range(objective)
    log_ratio = torch.tensor([-0.9, -0.35, 0.0, 0.35, 0.9], dtype=torch.float64) * half_width
    old = torch.full((5, plots.TOKENS), math.log(plots.BEHAVIOR_PROBABILITY), dtype=torch.float64)
    log_probs = old.clone()
    log_probs[:, 0] += log_ratio
    log_probs.requires_grad_()
    totals = StepTotals(completions=1, tokens=plots.TOKENS, progress=0.0, reward_mean=0.5, reward_std=0.5)
    signs = torch.full((5,), advantage, dtype=torch.float64)
    if objective.group_objective is None:
        steps = {"divergence": (log_probs - old).detach().square() / 2, "scale": torch.ones_like(old)}
        objective(log_probs, PolicyBatch(old, torch.ones_like(old), signs, totals, **steps)).backward()
    for row in range(5) if objective.group_objective is not None else ():
        pair, both = torch.stack([log_probs[row], old[row]]), torch.tensor([advantage, -advantage]).double()
        objective(pair, PolicyBatch(old[:2], torch.ones(2, plots.TOKENS), both, groups=torch.zeros(2))).backward()
    torch.testing.assert_close(plots.weights(objective, log_ratio, advantage), plots.TOKENS * log_probs.grad)


def test_grpo_is_drawn_at_zero_beyond_its_clip_and_along_the_ratio_before(recipe_rows, plots):
    points, zero = drawn(recipe_rows["grpo"][4], "own up")
    center, right = 101.0, points[-1][0]
    log_ratios = [(across - center) / (right - center) for across, _ in points]
    beyond = [height for x, (_, height) in zip(log_ratios, points, strict=True) if x > math.log(1.2) + 0.02]
    before = {x: zero - height for x, (_, height) in zip(log_ratios, points, strict=True) if x < math.log(1.2) - 0.02}
    assert beyond
    assert set(beyond) == {zero}
    unit = before[min(before, key=abs)]  # the height of the weight 1, on policy
    assert len(before) > 50
    for x, height in before.items():
        assert height / unit == pytest.approx(math.exp(x), abs=0.02)


def test_the_other_token_shows_how_tokens_act_on_each_other(recipe_rows):
    """Constant under the arithmetic mean; under the geometric mean it moves with the completion."""
    heights = {name: {height for _, height in drawn(recipe_rows[name][4], "other up")[0]} for name in ("grpo", "gmpo")}
    assert len(heights["grpo"]) == 1
    assert len(heights["gmpo"]) > 20


@pytest.mark.parametrize("name", recipes.__all__)
def test_the_large_figure_has_the_curves_of_the_plot_and_says_what_they_are(tables, plots, name):
    objective = tables.with_any_arguments(getattr(recipes, name))
    drawing = ElementTree.fromstring(plots.figure(objective, name))
    texts = [text.text for text in drawing.iter("{http://www.w3.org/2000/svg}text")]
    assert {name, "log ratio x of this token", "another token, advantage 1"} <= set(texts)
    small = re.findall(r'class="(own|other) (up|down)"', plots.plot(objective, name))
    curves = [path.get("class") for path in drawing.iter("{http://www.w3.org/2000/svg}path")]
    assert sorted(curves) == sorted(["axis", *2 * [" ".join(one) for one in small]])


@pytest.mark.parametrize(
    ("name", "half_width"),
    [
        ("flow_grpo", 5e-4),
        ("flow_dppo", 0.01),
        ("gspo", 0.002),
        ("luspo", 0.01),
        ("grpo", 1.0),
        ("espo", 1.0),
        ("cispo", 2.0),
    ],
)
def test_the_range_of_a_plot_shows_its_clip(plots, name, half_width):
    assert plots.visible_range(getattr(recipes, name)()) == half_width


def test_every_estimator_has_a_row(tables):
    rows = {re.search(r"\[`(\w+)`\]", cells[0])[1]: cells for cells in cells_of(tables.advantage_table(PAGE))}
    interfaces = {"AdvantageEstimator", "GroupAdvantage", "GroupedRewards"}
    assert set(rows) == set(advantages.__all__) - interfaces
    for name, (estimator, definition, arguments) in rows.items():
        assert "](https://arxiv.org/abs/" in estimator
        assert "$" in definition or name == "OverlongShaping"
        assert set(re.findall(r"`(\w+)[=`]", arguments)) == set(inspect.signature(getattr(advantages, name)).parameters)


def test_the_page_asks_for_both_tables(tables):
    filled = tables.on_page_markdown(PAGE)
    assert not any(comment in filled for comment in tables.TABLES)
    assert filled.count("weight-plot") == len(recipes.__all__)


def undocumented():
    """A recipe without the sections.

    Reference: no number.
    """
    return recipes.gpg()


def test_a_docstring_without_the_sections_stops_the_build(tables, monkeypatch):
    from mkdocs.exceptions import PluginError

    with pytest.raises(PluginError, match="no `Reference:`"):
        tables.paper_of(undocumented)
    monkeypatch.setattr(recipes, "grpo", undocumented)
    with pytest.raises(PluginError, match="`grpo` has no section `Gradient weight:`"):
        tables.recipe_row("grpo", "grpo")


def letters(formula):
    """The quantities of a formula: Latin letters that stand alone, and Greek ones."""
    bare = re.sub(r"_\{[^}]*\}|_\w|\\mathrm\{\w+\}", "", formula)
    return set(re.findall(r"\\(?:beta|gamma|lambda|mu|rho|tau)\b|(?<![\\a-zA-Z])[A-Za-df-z](?![a-zA-Z])", bare))


def test_the_legend_has_every_letter_of_the_formulas(recipe_rows):
    legend = re.search(r"^\*\*Formulas\.\*\* (.*)$", PAGE, re.MULTILINE)[1]
    explained = set().union(*map(letters, re.findall(r"\$[^$]+\$", legend)))
    assert {r"\lambda", "L", "c", "p", "r"} <= explained
    assert {name: letters(cells[3].split("<br>")[0]) - explained for name, cells in recipe_rows.items()} == {
        name: set() for name in recipe_rows
    }
    arguments = {name for row in recipe_rows.values() for name in re.findall(r"`(\w+)[=`]", row[2])}
    assert set(re.findall(r"`(\w+)`", legend)) <= arguments


def test_tooltips_have_no_labels(tables):
    link = '<a class="autorefs autorefs-internal" title="{}" href="../">x</a>'
    labelled = link.format("LehmerMean\n\n\n  \n      dataclass\n   (aggregate_po.LehmerMean)")
    assert tables.on_post_page(labelled) == link.format("LehmerMean (aggregate_po.LehmerMean)")
    assert tables.on_post_page(link.format("GRPO")) == link.format("GRPO")


def test_a_recipe_without_a_snippet_stops_the_build(tables):
    from mkdocs.exceptions import PluginError

    with pytest.raises(PluginError, match=r"names the recipes \['hmpo'\]"):
        tables.recipe_table(PAGE.replace("aggregate_po.recipes.hmpo", "elsewhere"))


def test_the_readme_names_every_recipe():
    readme = (ROOT / "README.md").read_text(encoding="utf-8")
    ablations = {"gmpo_no_clip", "gmpo_sequence_clip", "gmpo_without_length_norm", "grpo_wide_clip"}
    assert [name for name in recipes.__all__ if name not in ablations and f"`{name}`" not in readme] == []
