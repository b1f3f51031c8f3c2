"""The plots of the classical experiments: each is made by its command, shortened here, and shown on the page."""

import csv
import math
import re
from pathlib import Path

import pytest
import torch

from experiments.classical import __main__ as classical
from experiments.classical.shared.curves import band, curve_of, moments, point, points, slope
from experiments.figures.style import write_table

ROOT = Path(__file__).resolve().parents[3]
FOLDER = ROOT / "docs" / "assets" / "classical"
PAGE = (ROOT / "docs" / "classical.md").read_text(encoding="utf-8")


@pytest.mark.parametrize("name", classical.names())
def test_each_experiment_makes_its_plot_and_its_table_again(name, tmp_path, capsys):
    for folder in ("first", "second"):
        classical.main([name, "--short", "--output", str(tmp_path / folder)])
    assert {path.name for path in (tmp_path / "first").iterdir()} == {f"{name}.csv", f"{name}.svg"}
    for path in (tmp_path / "first").iterdir():
        assert path.read_bytes() == (tmp_path / "second" / path.name).read_bytes()
    with (tmp_path / "first" / f"{name}.csv").open(newline="") as file:
        assert all(None not in row.values() for row in csv.DictReader(file))
    with (FOLDER / f"{name}.csv").open(newline="") as committed, (tmp_path / "first" / f"{name}.csv").open() as short:
        assert next(csv.reader(committed)) == next(csv.reader(short))


def test_the_page_shows_every_plot_and_names_every_command():
    files = {path.name for path in FOLDER.iterdir()}
    assert files == {f"{name}.{suffix}" for name in classical.names() for suffix in ("csv", "svg")}
    for name in classical.names():
        assert f"](assets/classical/{name}.svg)" in PAGE
        assert f"python -m experiments.classical {name}`" in PAGE
    assert "make classical" in PAGE
    assert len(re.findall(r"^## ", PAGE, re.MULTILINE)) >= len(classical.names())
    sizes = {path.name: path.stat().st_size for path in FOLDER.glob("*.svg")}
    assert {name: size for name, size in sizes.items() if size > 150_000} == {}


@pytest.mark.parametrize("name", ["batch", "mean_variance"])  # in seconds
def test_committed_tables_are_those_of_a_fresh_computation(name, tmp_path):
    fresh = write_table(classical.experiment(name).rows(), tmp_path, name)
    committed = rows_of(name)
    assert [(row["panel"], row["curve"]) for row in committed] == [(row["panel"], row["curve"]) for row in fresh]
    for column in ("x", "y", "low", "high"):
        found = [float(row[column] or "nan") for row in committed]
        assert found == pytest.approx([row[column] for row in fresh], rel=1e-4, abs=1e-6, nan_ok=True)


def rows_of(name):
    with (FOLDER / f"{name}.csv").open(newline="", encoding="utf-8") as file:
        return list(csv.DictReader(file))


def value(name, panel, curve, x=None):
    """The value of a curve at a position, at its end without one."""
    rows = [row for row in rows_of(name) if (row["panel"], row["curve"]) == (panel, curve)]
    return float(next(row["y"] for row in rows if float(row["x"]) == x) if x is not None else rows[-1]["y"])


def late_slope(name, panel, curve, first):
    rows = [row for row in rows_of(name) if (row["panel"], row["curve"]) == (panel, curve) and float(row["x"]) >= first]
    return slope([float(row["x"]) for row in rows], [float(row["y"]) for row in rows])


def test_numbers_of_the_page_are_those_of_the_tables():
    text = PAGE.replace("\N{MINUS SIGN}", "-")
    mean, share = (f"no baseline: {name}" for name in ("mean of $\\pi(a^*)$", "share with $\\pi(a^*)$ < 0.01"))
    best = value("baselines", "exact", mean.replace("no", "value"))
    assert f"is {value('baselines', 'exact', mean):.3f} without the baseline and {best:.3f} with it" in text
    assert f"below 0.01 is {value('baselines', 'exact', share):.3f} and 0." in text
    assert f"stays at a regret of {value('baselines', 'uniform', 'no baseline'):.2f}" in text
    assert f"is {late_slope('baselines', 'uniform', 'value baseline', 1_000):.1f} on 20 arms" in text
    assert f"{late_slope('baselines', 'process', 'value baseline', 3_000):.1f} on the process" in text
    assert f"{value('committal', 'failures', 'observed', 1):.0%} commit to the arm" in text
    assert f"fails in {value('committal', 'failures', 'observed', 6):.1%} of the ensembles" in text
    ratio = value("zero_sum", "matrix", "with prediction", 200) / value("zero_sum", "matrix", "with prediction", 100)
    assert f"by the factor {ratio**0.01:.2f} in each step" in text
    assert f"{value('mean_variance', 'reached', '256 starts in each process', 8):.0%} of the starts" in text
    assert f"of value {value('batch', 'value', 'best policy'):.2f}" in text
    for name, wording in (("plain", "for the plain policy"), ("constrained", "for the constrained one")):
        number = f"{value('robust', 'KLBall violation', name, 0.02):.2f}"
        assert re.search(rf"{number}( discounted steps)? {wording}", text)
    costs = [f"{value('robust', 'KLBall cost', name, 0.02):.2f}" for name in ("robust", "plain")]
    assert f"costs {costs[0]} in the worst case instead of {costs[1]}" in text


def test_returns_of_cross_entropy_on_the_page_are_those_of_the_table_to_its_end():
    text = PAGE.replace("\N{MINUS SIGN}", "-")
    names = ("SAC", "SAC-CEPO", "SAC-CEPO, shared elites")
    for steps in (7_000, 9_000, 10_000):
        returns = [f"{value('sac_cepo', 'return', name, steps):.0f}" for name in names]
        assert f"{returns[0]}, {returns[1]} and {returns[2]}" in text
    last = [row for row in rows_of("sac_cepo") if row["panel"] == "return"][-1]
    assert (float(last["x"]), last["curve"]) == (10_000, names[-1])
    assert f"is still at {value('sac_cepo', 'bandit', names[-1], -0.9):.2f} after" in text
    ends = [float(row["y"]) for row in rows_of("sac_cepo") if row["curve"] == names[1] and row["panel"] == "bandit"]
    assert ends == pytest.approx([0.45] * 19, abs=0.035)


def test_the_share_of_data_sets_with_the_best_policy_is_that_of_the_page():
    batch = classical.experiment("batch")
    for size, share in ((50, "88% of the data sets of 50"), (500, "all of those of 500")):
        true, _ = batch.outcome(batch.q_iteration(batch.Data(size, 200), 0.02))
        found = float((true > value("batch", "value", "best policy") - 1e-4).double().mean())
        assert share.startswith("all" if found == 1 else f"{found:.0%}")
        assert share in PAGE


@pytest.mark.parametrize(("name", "unit"), [("robust", "discounted"), ("batch", "discounted reward")])
def test_values_and_costs_have_their_unit(name, unit):
    numbers = ("x", "y", "low", "high")
    table = [row | {column: float(row[column] or "nan") for column in numbers} for row in rows_of(name)]
    labels = [axes.get_ylabel() for axes in classical.experiment(name).plot(table).axes]
    assert [label for label in labels if f"({unit}" not in label and "multiplier" not in label] == []


def test_experiments_are_found_by_their_files_and_unknown_ones_refused(tmp_path, capsys, monkeypatch):
    assert "committal" in classical.names()
    assert not {"shared", "__main__"} & set(classical.names())
    made = []
    monkeypatch.setattr(classical, "make", lambda name, *rest: made.append((name, *rest)))
    classical.main([])
    assert made == [(name, FOLDER, ["svg"], False) for name in classical.names()]
    with pytest.raises(SystemExit):
        classical.main(["comittal", "--output", str(tmp_path)])
    assert "`names` has comittal; pass any of " in capsys.readouterr().err


def test_curves_of_a_table():
    table = [*points("a", "one", [1, 2], [3, 4]), *band("a", "two", [1], torch.arange(11.0).unsqueeze(0))]
    assert curve_of(table, "a", "one")["y"] == [3, 4]
    assert (table[2]["y"], table[2]["low"], table[2]["high"]) == (5, 1, 9)
    assert math.isnan(point("a", "one", 1, 2)["low"])


def test_slopes_of_power_functions():
    assert slope([1, 10, 100], [5, 0.5, 0.05]) == pytest.approx(-1)
    assert moments(100, 3) == [1, 10, 100]
    assert moments(3) == [1, 2, 3]
