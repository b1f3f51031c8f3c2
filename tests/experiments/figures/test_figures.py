"""The plots of the documentation: each is made by a command, shortened here, and shown on a page."""

import csv
import math
from pathlib import Path

import pytest
import torch

from aggregate_po import geometry
from aggregate_po.recipes import gmpo, grpo
from experiments.figures import __main__ as figures
from experiments.figures import mean_values, power_weights, training_curves, weight_landscape
from experiments.figures.style import write_table

ROOT = Path(__file__).resolve().parents[3]
ASSETS = ROOT / "docs" / "assets"
OWN = "tests.third_party.AsinhMean"
EXACT = ("--length", "2", "--problems", "2")
# Fewer values of each script, so that it takes a second.
SHORTER = {
    "experiments.exact.bias_variance": (*EXACT, "--objectives", "grpo, gmpo", "--distances", "0,0.4"),
    "experiments.exact.clip_width": (*EXACT, "--objectives", "gmpo", "--log_clips", "0.2,0.4"),
    "experiments.exact.completion_length": (*EXACT, "--objectives", "gmpo", "--lengths", "2,3"),
    "experiments.exact.ess_target": (*EXACT, "--targets", "0.8,1"),
    "experiments.exact.exponent": (*EXACT, "--objectives", "holder_po", "--exponents=-1,1"),
    "experiments.exact.group_size": (*EXACT, "--objectives", "gmpo", "--group_sizes", "2,4"),
    "experiments.exact.learning_curves": (*EXACT, "--objectives", "gmpo", "--rollouts", "2", "--updates", "1,2"),
    "experiments.exact.on_policy_bias": (*EXACT, "--group_sizes", "2"),
    "experiments.exact.ratio_bias": (*EXACT, "--distances", "0,0.4"),
    "experiments.figures.frozen_weights": (),
    "experiments.figures.mean_values": ("--objectives", f"gmpo,{OWN}"),
    "experiments.figures.power_weights": (),
    "experiments.figures.training_curves": (),
    "experiments.figures.weight_landscape": ("--objectives", f"gmpo,{OWN}"),
    "experiments.flow.plots": (),
    "experiments.study.plots": (),
}
NAMES = [name for script in figures.SCRIPTS for name in script.names]
# Pictures of runs, with the page that names the command that makes them.
OF_RUNS = {
    "addition.png": ("README.md", "make train"),
    "heat-map.svg": ("docs/view.md", "python experiments/heat_map.py"),
    "view.png": ("docs/view.md", "aggregate-po view runs/pmpo --output pmpo.html"),
    "view-metrics.png": ("docs/view.md", "aggregate-po view runs/pmpo-0 runs/pmpo-1 runs/grpo-0 runs/grpo-1"),
}


@pytest.mark.parametrize("script", figures.SCRIPTS, ids=lambda script: script.module)
def test_each_script_makes_its_plots_with_their_data(script, tmp_path, capsys):
    script.run(tmp_path, *SHORTER[script.module])
    names = {f"{name}.{suffix}" for name in script.names for suffix in ("csv", "svg")}
    assert {path.name for path in tmp_path.iterdir()} == names
    for name in script.names:
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            rows = list(csv.DictReader(file))
        assert rows
        assert all(None not in row.values() for row in rows)
        picture = (tmp_path / f"{name}.svg").read_text()
        assert "<dc:date>" not in picture
        assert "Matplotlib" not in picture


def test_a_script_shows_and_tabulates_an_objective_of_the_reader(tmp_path):
    mean_values.main(["--objectives", f"grpo,{OWN}", "--output", str(tmp_path)])
    weight_landscape.main(["--objectives", f"grpo,{OWN}", "--advantage=-1", "--output", str(tmp_path)])
    for name in ("mean_values", "weight_landscape"):
        assert OWN in (tmp_path / f"{name}.svg").read_text()
        assert OWN in (tmp_path / f"{name}.csv").read_text().splitlines()[0]


def test_every_picture_of_the_documentation_is_made_by_a_command():
    pictures = {path.name for path in ASSETS.iterdir() if path.suffix in (".png", ".svg", ".pdf")}
    assert pictures == set(OF_RUNS), "add a script to `experiments.figures`, or the page with the command to `OF_RUNS`"
    for page, command in OF_RUNS.values():
        assert command in (ROOT / page).read_text(encoding="utf-8")
    files = {path.name for path in (ASSETS / "figures").iterdir()}
    assert files == {f"{name}.{suffix}" for name in NAMES for suffix in ("csv", "svg")}


def test_every_plot_is_small_and_on_a_page():
    pages = "".join(page.read_text(encoding="utf-8") for page in (ROOT / "docs").glob("*.md"))
    assert [name for name in NAMES if f"assets/figures/{name}.svg" not in pages] == []
    sizes = {name: (ASSETS / "figures" / f"{name}.svg").stat().st_size for name in NAMES}
    assert {name: size for name, size in sizes.items() if size > 150_000} == {}


def test_some_plots_can_be_made_alone(tmp_path, monkeypatch, capsys):
    made = []
    monkeypatch.setattr(figures.Script, "run", lambda self, folder: made.append((self.module, folder)))
    figures.main(["bias_variance_plane", "mean_values", "bias_variance_random", "--output", str(tmp_path)])
    assert made == [("experiments.exact.bias_variance", tmp_path), ("experiments.figures.mean_values", tmp_path)]
    made.clear()
    figures.main([])
    assert [module for module, _ in made] == [script.module for script in figures.SCRIPTS]
    assert {folder for _, folder in made} == {ASSETS / "figures"}
    with pytest.raises(SystemExit):
        figures.main(["mean_value"])
    assert "`names` has mean_value; pass any of bias_variance_random," in capsys.readouterr().err


def test_numbers_of_tables_are_rounded(tmp_path):
    table = write_table([{"a": 1 / 3, "b": 2, "c": "x", "d": -3e-17, "e": math.nan}], tmp_path, "table")
    assert (tmp_path / "table.csv").read_text() == "a,b,c,d,e\n0.333333,2,x,0,\n"
    # Plots of what is returned do not depend on the last digits of a computation.
    assert list(table[0].values())[:4] == [0.333333, 2, "x", 0.0]


# What the plots show


def test_values_worked_by_hand():
    """Two of four tokens at the ratio 2: arithmetic mean of 1.2 and 1 under GRPO's clip, e^0.2 under GMPO's."""
    at = torch.tensor([2.0]).double().log()
    assert mean_values.values(grpo(), at, 2, 1.0) == pytest.approx([1.1])
    assert mean_values.values(gmpo(), at, 2, 1.0) == pytest.approx([math.exp(0.2)], abs=1e-5)
    assert mean_values.values(gmpo(), at, 2, -1.0) == pytest.approx([-(2**0.5)], abs=1e-5)


def test_the_landscape_is_that_of_the_weights():
    own, other = torch.tensor([-0.3, 0.0, 0.5]).double(), torch.tensor([0.0, 0.3]).double()
    weights = weight_landscape.landscape(gmpo(), own, other, 1.0)
    expected = ((own.clamp(max=0.4) + other.unsqueeze(-1)) / 3).exp() * (own < 0.4)
    torch.testing.assert_close(weights, expected)


def test_weights_against_the_advantage_are_apart_from_the_scale(tmp_path, monkeypatch):
    module = tmp_path / "steep_objective.py"
    module.write_text(
        "from aggregate_po import PolicyObjective, GeometricMean, RatioVariance\n"
        "steep = PolicyObjective(GeometricMean(), penalties=[RatioVariance(2.0)])\n"
    )
    monkeypatch.syspath_prepend(str(tmp_path))
    for name, advantage, apart in [("gmpo", 1, False), ("steep_objective.steep", 1, True), ("gmpo", -1, False)]:
        weight_landscape.main(["--objectives", name, f"--advantage={advantage}", "--output", str(tmp_path)])
        picture = (tmp_path / "weight_landscape.svg").read_text()
        assert (weight_landscape.OPPOSITE in picture) == apart


@pytest.mark.parametrize(("advantage", "limits"), [("1", (0, 1.6)), ("5", (0, 8)), ("-0.5", (-0.8, 0))])
def test_the_colors_of_a_landscape_reach_as_far_as_its_advantage(advantage, limits, tmp_path, monkeypatch):
    found = []
    monkeypatch.setattr(weight_landscape, "save", lambda canvas, *_: found.append(canvas.axes[0].images[0].get_clim()))
    weight_landscape.main(["--objectives", "gmpo", f"--advantage={advantage}", "--output", str(tmp_path)])
    assert found == [limits]


def test_log_ratios_of_a_table_give_weights_and_effective_size(tmp_path):
    table = tmp_path / "log_ratios.csv"
    table.write_text("completion,log_ratio\na,0.5\na,-0.5\nb,0.1\nb,0.1\nc,3.0\n")
    power_weights.main(["--log_ratios", str(table), "--output", str(tmp_path)])
    with (tmp_path / "power_weights.csv").open(newline="") as file:
        rows = {float(row["exponent"]): row for row in csv.DictReader(file)}
    # The completion of one token is left out, and the one that varies is shown.
    assert (float(rows[0]["weight_1"]), float(rows[0]["ess_fraction_50"])) == (0.5, 1)
    one = torch.tensor([[0.5, -0.5]]).double()
    ess = geometry.power_ess(one, torch.ones(1, 2).bool(), 2.0).item() / 2
    assert float(rows[2]["weight_1"]) == pytest.approx(torch.sigmoid(torch.tensor(2.0)).item(), abs=1e-5)
    assert float(rows[2]["ess_fraction_50"]) == pytest.approx((ess + 1) / 2, abs=1e-5)
    assert "2 completions" in (tmp_path / "power_weights.svg").read_text()


def test_metrics_of_runs_are_collected_and_shown_again(tmp_path):
    names = ["step", "val/reward_greedy", *training_curves.METRICS[1:]]
    for run, offset in (("a", 0.0), ("b", 1.0)):
        (tmp_path / run).mkdir()
        rows = [dict.fromkeys(names, step + offset) | {"step": step} for step in (1, 2, 3)]
        rows[1] |= {"ratio/max": "", "entropy": ""} if run == "a" else {}  # a step that trains nothing
        rows.insert(1, dict.fromkeys(names, "") | {"step": 1, "val/reward_greedy": 0.5})  # an evaluation
        write_table(rows, tmp_path / run, "metrics")
    runs = f"grpo={tmp_path / 'a'},gmpo={tmp_path / 'b'}"
    training_curves.main(["--runs", runs, "--output", str(tmp_path / "first")])
    collected = tmp_path / "first" / "training_curves.csv"
    training_curves.main(["--curves", str(collected), "--output", str(tmp_path / "second")])
    found = training_curves.read_runs(collected)
    assert found["gmpo"]["entropy"] == [2, 3, 4]
    assert found["grpo"]["step"] == [1, 2, 3]
    assert [math.isnan(value) for value in found["grpo"]["entropy"]] == [False, True, False]
    assert training_curves.running_mean(found["grpo"]["entropy"]) == [2, 2, 2]
    for name in ("training_curves.csv", "training_curves.svg"):
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (training_curves, ["--runs", "gmpo=runs/gmpo, runs/grpo"], "--runs: 'runs/grpo' has no name; pass NAME=FOLDER"),
        (training_curves, ["--runs", "a=x,a=y"], "--runs: a is there twice"),
        (training_curves, ["--runs", "a=nowhere"], "--runs: 'nowhere' has no metrics.csv; pass folders of runs"),
        (weight_landscape, ["--advantage", "nan"], "--advantage: 'nan' is not a finite number other than 0"),
        (weight_landscape, ["--objectives", "real"], "--objectives: 'real' has no weights on a completion alone"),
        (mean_values, ["--objectives", "apmpo"], "--objectives: 'apmpo' has no value for a completion alone"),
        (mean_values, ["--objectives", "gmop"], "--objectives: 'gmop' cannot be made"),
        (power_weights, ["--write_log_ratios", "x.txt"], "--write_log_ratios: 'x.txt' is no CSV file"),
        (power_weights, ["--log_ratios", "one.csv"], "--log_ratios: one.csv has no completion of two tokens or more"),
        (training_curves, ["--runs", ","], "--runs: ',' has no name; pass one"),
        (training_curves, ["--runs", "a=other"], "--runs: other/metrics.csv has no column entropy, grad_norm, kl_old"),
        (training_curves, ["--runs", "a=begun"], "--runs: begun/metrics.csv has no training step"),
        (training_curves, ["--curves", "begun/metrics.csv"], "--curves: begun/metrics.csv has no column run;"),
        (mean_values, ["--objectives", ","], "--objectives: ',' has no name; pass one"),
        (weight_landscape, ["--objectives", ""], "--objectives: '' has no name; pass one"),
    ],
)
def test_arguments_that_would_fail_or_be_ignored_are_refused(script, arguments, message, tmp_path, monkeypatch, capsys):
    monkeypatch.chdir(tmp_path)
    Path("one.csv").write_text("completion,log_ratio\n0,0.1\n1,0.2\n")
    for folder, text in (("other", "step,reward\n1,0.5\n"), ("begun", ",".join(training_curves.METRICS) + "\n")):
        Path(folder).mkdir()
        (Path(folder) / "metrics.csv").write_text(text)
    with pytest.raises(SystemExit):
        script.main([*arguments, "--output", str(tmp_path)])
    assert message in capsys.readouterr().err
