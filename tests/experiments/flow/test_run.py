"""The flow-matching experiment, shortened: that it resumes, and what it measures, reports and shows."""

import csv

import pytest
import torch

from experiments import workers
from experiments.flow import design, plots, report, run
from experiments.flow.statistics import gradient_spread, load_curves, load_samples, load_steps, mean_log_ratio
from experiments.tables import read_rows
from lightning_modules.flow import FlowSDE, uniform_times
from tests.experiments.study.test_run import InProcess

OBJECTIVES = "flow_grpo,grpo_guard,window"


@pytest.fixture(scope="module")
def results(tmp_path_factory):
    """Results of two rollouts."""
    folder = tmp_path_factory.mktemp("results")
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(workers.multiprocessing, "get_context", lambda kind: InProcess)
        run.main(["--objectives", OBJECTIVES, "--seeds", "0", "--rollouts", "2", "--output", str(folder)])
    return folder


def test_a_run_that_is_there_is_not_repeated(results, monkeypatch):
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda kind: InProcess)
    monkeypatch.setattr(run, "train", None)
    before = {path.name: path.read_bytes() for path in results.iterdir()}
    run.main(["--objectives", OBJECTIVES, "--seeds", "0", "--rollouts", "2", "--output", str(results)])
    assert {path.name: path.read_bytes() for path in results.iterdir()} == before
    assert [row["objective"] for row in read_rows(results / "runs.csv")] == OBJECTIVES.split(",")


def test_a_run_is_evaluated_before_and_after_training(results):
    curves = load_curves(results)
    assert list(curves) == OBJECTIVES.split(",")
    starts = {name: curves[name][0][0] for name in curves}
    assert len({(point.proxy, point.gold) for point in starts.values()}) == 1
    for name, seeds in curves.items():
        assert [point.rollout for point in seeds[0]] == [0, 2]
        assert seeds[0][0].proxy != seeds[0][1].proxy
        points = load_samples(results, name)
        assert {rollout: len(found) for rollout, found in points.items()} == {0: 128, 2: 128}


def test_gradients_of_steps_are_spread_as_their_transitions_say(results):
    times = uniform_times(design.STEPS, design.SHIFT)
    coefficients = FlowSDE().coefficients(times[:-1], times[1:])
    steps = load_steps(results)
    for name, sizes in {
        "flow_grpo": coefficients.velocity.abs() / coefficients.scale,
        "grpo_guard": coefficients.velocity.abs() / -times.diff(),
    }.items():
        assert gradient_spread(steps[name][0]) == pytest.approx((sizes.max() / sizes.min()).item(), rel=1e-4)


def test_log_ratios_are_those_of_the_second_update(results):
    steps = load_steps(results)["flow_grpo"][0]
    update = design.GROUP_SIZE * design.PROMPTS_PER_ROLLOUT / design.UPDATES_PER_ROLLOUT
    for sums in steps.values():
        assert sums["later"] == sums["trained"] == 2 * update
        assert sums["divergence"] > 0
        # The variance of the log ratio is twice the divergence over the number of latent dimensions, which is 2.
        assert 0.4 < sums["centered_squares"] / sums["divergence"] < 2.5
        assert mean_log_ratio(sums).half > 0
    trained = {step: sums["trained"] for step, sums in load_steps(results)["window"][0].items()}
    assert trained == {step: 2 * update * (step <= 2) for step in range(1, design.STEPS + 1)}


def test_results_are_reported_and_shown(results, tmp_path, capsys):
    report.main(["--results", str(results)])
    text = capsys.readouterr().out
    assert "| `grpo_guard` - `flow_grpo` |" in text
    plots.main(["--results", str(results), "--output", str(tmp_path)])
    for name in ("flow_samples", "flow_curves", "flow_steps"):
        assert "grpo_guard" in (tmp_path / f"{name}.svg").read_text()
        with (tmp_path / f"{name}.csv").open(newline="") as file:
            assert {row["objective"] for row in csv.DictReader(file)} >= {"flow_grpo", "grpo_guard"}


@pytest.mark.parametrize("script", [plots, report])
def test_results_that_are_missing_are_refused(tmp_path, script, capsys):
    with pytest.raises(SystemExit):
        script.main(["--results", str(tmp_path)])
    assert f"`--results` is {str(tmp_path)!r}, which has no results; pass the `--output`" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--objectives", "flow_grpo,nosuch"], "'nosuch' cannot be made"),
        (["--objectives", "window,window"], "window is there twice"),
        (["--seeds", "one"], "'one' is not a whole number from 0"),
        (["--rollouts", "0"], "'0' is not a whole number from 1"),
        (["--workers", "-1"], "'-1' is not a whole number from 1"),
    ],
)
def test_arguments_that_mean_nothing_are_refused_before_any_run(arguments, words, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run.main([*arguments, "--output", str(tmp_path / "results")])
    assert words in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_results_are_not_mixed(results, capsys):
    with pytest.raises(SystemExit):
        run.main(["--rollouts", "3", "--output", str(results)])
    assert f"`--rollouts` is 3, but {results} has runs of 2 rollouts" in capsys.readouterr().err
    with pytest.raises(SystemExit):
        run.main(["--objectives", "gmpo"])
    assert "`--objectives` has gmpo, which is not of the experiment" in capsys.readouterr().err


def test_runs_from_another_model_are_not_mixed(results, monkeypatch, capsys):
    """As another processor makes it."""
    monkeypatch.setattr(run, "weights_digest", lambda weights: "another")
    with pytest.raises(SystemExit):
        run.main(["--objectives", OBJECTIVES, "--seeds", "0,1", "--rollouts", "2", "--output", str(results)])
    start = read_rows(results / "runs.csv")[0]["start"]
    assert f"runs began from the model {start}; this machine makes another, so" in capsys.readouterr().err


def test_every_objective_of_the_design_can_be_made():
    names = [variant.name for variant in design.VARIANTS]
    assert len(set(names)) == len(names)
    for variant in design.VARIANTS:
        variant.objective()
        assert design.variant(variant.name) is variant
    assert torch.equal(design.VARIANTS[4].window.mask(3, 0), torch.tensor([True, True, False]))
