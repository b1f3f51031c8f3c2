"""The runs of the study: that they resume, take objectives by import path, and measure what they say."""

import csv
import math
from dataclasses import replace

import pytest

from aggregate_po import GeometricMean
from experiments.study import design, run
from experiments.study.design import CORE, FURTHER, ladders
from experiments.study.tasks import TASKS, addition, spell_backward
from experiments.study.training import by_rollout, measures


class OwnMean(GeometricMean):
    """A mean that the study knows by its import path alone."""


def rollouts(rewards):
    names = ["entropy", "kl", "log_ratio_min", "log_ratio_max", "log_ratio_90", "clipped", "ess_fraction"]
    others = dict.fromkeys([*names, "grad_norm", "grad_norm_max", "skipped_steps"], 0.0)
    return [{"reward": reward, **others} for reward in rewards]


@pytest.mark.parametrize(
    ("rewards", "collapsed"),
    [
        ([0.1] + [0.3] * 9, False),
        ([0.1] + [0.5] * 9 + [0.2] * 5, True),  # below half of the best
        ([0.3] + [0.2] * 9, True),  # below the first
        ([0.1] + [0.5] * 9 + [0.3] * 5, False),
    ],
)
def test_collapse_is_the_loss_of_half_of_the_best_or_no_gain(rewards, collapsed):
    assert measures(rollouts(rewards))["collapsed"] == collapsed


def test_a_rollout_has_the_extremes_of_its_updates():
    def step(low, high, norm):
        quantiles = {"ratio/quantile_05": low, "ratio/quantile_95": high}
        means = dict.fromkeys(["completions/mean_length", "entropy", "kl", "clip_ratio/region_mean"], 1.0)
        others = {"weights/ess_fraction": 0.5, "skipped_steps": 0.0}
        return {"ratio/min": low, "ratio/max": high, "grad_norm": norm, "reward": 0.25, **quantiles, **means, **others}

    (row,) = by_rollout([step(0.5, 2.0, 3.0), step(0.25, 1.0, 5.0)], updates=2)
    assert row["log_ratio_min"] == math.log(0.25)
    assert row["log_ratio_max"] == math.log(2.0)
    assert row["log_ratio_90"] == pytest.approx(math.log(4.0))
    assert (row["grad_norm"], row["grad_norm_max"], row["reward"]) == (4.0, 5.0, 0.25)


def test_every_objective_of_the_design_has_a_ladder_for_each_seed_at_4_and_16_updates():
    jobs = [ladder.jobs for ladder in ladders("addition")]
    for variant in (*CORE, *FURTHER):
        variant.objective()
        own = {(job.updates, job.seed) for ladder in jobs for job in ladder if job.variant is variant}
        assert {(updates, seed) for updates in (4, 16) for seed in design.SEEDS} <= own
    assert all([job.learning_rate for job in ladder] == list(design.LEARNING_RATES) for ladder in jobs)


@pytest.mark.slow
@pytest.mark.parametrize("task", [addition, spell_backward])
def test_shortened_study_runs_and_goes_on_where_it_was(task, tmp_path, monkeypatch):
    held_out = [task().held_out[number] for number in range(8)]
    short = replace(task(), model=replace(task().model, steps=2), held_out=held_out)
    monkeypatch.setitem(TASKS, task.__name__, lambda: short)
    monkeypatch.setattr(run.multiprocessing, "get_context", lambda kind: InProcess)
    options = ["--task", task.__name__, "--seeds", "0", "--rollouts", "2", "--output", str(tmp_path)]
    options += ["--updates", "2", "--learning_rates", "1e-4"]
    run.main(["--objectives", "gmpo", *options])
    run.main(["--objectives", "gmpo,tests.experiments.study.test_run.OwnMean", *options])
    with (tmp_path / "runs.csv").open() as file:
        names = [row["objective"] for row in csv.DictReader(file)]
    assert names == ["gmpo", "tests.experiments.study.test_run.OwnMean"]
    with (tmp_path / "rollouts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["rollout"] for row in rows] == ["0", "1", "0", "1"]
    assert all(0 <= float(row["reward"]) <= 1 for row in rows)


class InProcess:
    """Stands for a pool of processes, in which the test's changes to the design would be lost."""

    @staticmethod
    def Pool(workers, initializer, maxtasksperchild):
        initializer()
        return InProcess()

    def __enter__(self):
        return self

    def __exit__(self, *error):
        return None

    @staticmethod
    def imap_unordered(function, queue, chunksize):
        return map(function, queue)
