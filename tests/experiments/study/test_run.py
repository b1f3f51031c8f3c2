"""The runs of the study: that they resume, take objectives by import path, and measure what they say."""

import csv
import math
import re
from dataclasses import replace
from types import SimpleNamespace

import pytest

from aggregate_po import GeometricMean
from experiments import workers
from experiments.study import design, fidelity, run
from experiments.study.design import CORE, FURTHER, ladders
from experiments.study.tasks import TASKS, addition, spell_backward
from experiments.study.training import by_rollout, measures
from experiments.tables import append_rows, compress, read_rows


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


def test_gradient_norms_that_are_no_numbers_hide_no_others():
    first, *others = rollouts([0.1, 0.2, 0.3])
    norms = [math.nan, 7.0, 2.0]
    rows = [{**row, "grad_norm_max": norm} for row, norm in zip([first, *others], norms, strict=True)]
    assert measures(rows)["grad_norm_max"] == 7.0


def test_a_half_line_is_neither_read_nor_mixed_with_the_next_one(tmp_path):
    path = tmp_path / "runs.csv"
    rows = [{"objective": name, "reward": "0.125", "seconds": "83.5"} for name in ("gmpo", "grpo", "pmpo")]
    append_rows(path, rows[:2])
    whole = path.read_bytes()
    for cut in (4, 12, len("grpo,0.125,83.5")):  # also within the last cell, and before the end of the line
        path.write_bytes(whole[: whole.index(b"grpo") + cut])
        assert read_rows(path) == rows[:1]
        append_rows(path, rows[2:])
        assert read_rows(path) == [rows[0], rows[2]]


def test_a_mixed_line_of_two_runs_is_not_read(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("objective,seed,reward\ngmpo,0,0.5\ngrpo,0,gmpo,1,0.25\ngmpo,2\n")
    assert read_rows(path) == [{"objective": "gmpo", "seed": "0", "reward": "0.5"}]


def test_rows_with_other_columns_are_not_appended(tmp_path):
    append_rows(tmp_path / "runs.csv", [{"objective": "gmpo", "reward": "0.5"}])
    with pytest.raises(ValueError, match="other columns than objective, collapsed"):
        append_rows(tmp_path / "runs.csv", [{"objective": "gmpo", "collapsed": "0"}])


def test_compressed_rows_are_read_before_those_appended_later(tmp_path):
    path = tmp_path / "rollouts.csv"
    rows = [{"objective": name, "reward": f"0.{number}"} for number, name in enumerate(("gmpo", "grpo", "pmpo"))]
    for row in rows:
        append_rows(path, [row])
        compress(path)
        assert not path.exists()
    assert read_rows(path) == rows
    append_rows(path, rows[:1])  # as an interrupted call leaves it
    assert read_rows(path) == [*rows, rows[0]]
    compress(path)
    assert read_rows(path) == rows
    assert [file.name for file in tmp_path.iterdir()] == ["rollouts.csv.gz"]


def test_the_same_rows_are_compressed_to_the_same_bytes(tmp_path):
    files = [tmp_path / name for name in ("a.csv", "b.csv")]
    for file in files:
        append_rows(file, [{"objective": "gmpo", "reward": "0.5"}])
        compress(file)
    first, second = (file.with_name(f"{file.name}.gz").read_bytes() for file in files)
    assert first == second


def test_rows_with_other_columns_or_none_are_not_compressed(tmp_path):
    path = tmp_path / "rollouts.csv"
    with pytest.raises(ValueError, match="no rows to compress"):
        compress(path)
    append_rows(path, [{"objective": "gmpo", "reward": "0.5"}])
    compress(path)
    append_rows(path, [{"objective": "gmpo", "length": "7"}])
    with pytest.raises(ValueError, match="other columns than"):
        compress(path)
    assert len(read_rows(path)) == 2


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--seeds", "one"], "'one' is not a whole number from 0"),
        (["--seeds", "0,1,0"], "0 is there twice"),
        (["--updates", "4,"], "'' is not a whole number from 1"),
        (["--updates", "4,3"], "3, which does not divide 16"),
        (["--updates", "0"], "'0' is not a whole number from 1"),
        (["--learning_rates", ""], "'' is not a number above 0"),
        (["--learning_rates", "1e-4,nan"], "'nan' is not a number above 0"),
        (["--learning_rates", "1e-4,0.0001"], "is there twice"),
        (["--objectives", "gmpo,nosuch"], "'nosuch' cannot be made"),
        (["--objectives", "gmpo,gmpo"], "gmpo is there twice"),
        (["--rollouts", "0"], "'0' is not a whole number from 1"),
        (["--workers", "-1"], "'-1' is not a whole number from 1"),
    ],
)
def test_arguments_that_mean_nothing_are_refused_before_any_run(arguments, words, tmp_path, capsys):
    with pytest.raises(SystemExit):
        run.main([*arguments, "--output", str(tmp_path / "results")])
    assert words in capsys.readouterr().err
    assert not (tmp_path / "results").exists()


def test_runs_of_another_length_are_not_mixed(tmp_path, capsys):
    about = {"task": "addition", "objective": "gmpo", "updates": "4", "learning_rate": "5e-05", "seed": "0"}
    unfinished = {**about, "seed": "1"}  # interrupted before its line was written, or while it was
    append_rows(tmp_path / "rollouts.csv", [{**about, "rollout": str(n), "reward": "0.5"} for n in range(3)])
    append_rows(tmp_path / "rollouts.csv", [{**unfinished, "rollout": "0", "reward": "0.5"}])
    append_rows(tmp_path / "runs.csv", [{**about, "sampled": "0.5", "collapsed": "0"}])
    with pytest.raises(SystemExit):
        run.main(["--rollouts", "5", "--output", str(tmp_path)])
    assert "runs of [3] rollouts" in capsys.readouterr().err


def test_an_interrupted_study_says_how_it_goes_on(tmp_path, monkeypatch):
    def interrupted(task):
        raise KeyboardInterrupt

    monkeypatch.setitem(TASKS, "addition", lambda: SimpleNamespace(start="abc"))
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda kind: InProcess)
    monkeypatch.setattr(run, "_climb", interrupted)
    with pytest.raises(SystemExit, match="interrupted; the same command goes on"):
        run.main(["--output", str(tmp_path)])


@pytest.mark.slow
@pytest.mark.parametrize("task", [addition, spell_backward])
def test_shortened_study_runs_and_goes_on_where_it_was(task, tmp_path, monkeypatch):
    held_out = [task().held_out[number] for number in range(8)]
    short = replace(task(), model=replace(task().model, steps=2), held_out=held_out)
    monkeypatch.setitem(TASKS, task.__name__, lambda: short)
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda kind: InProcess)
    options = ["--task", task.__name__, "--seeds", "0", "--rollouts", "2", "--output", str(tmp_path)]
    options += ["--updates", "2", "--learning_rates", "2e-4"]
    run.main(["--objectives", "gmpo", *options])
    run.main(["--objectives", "gmpo,tests.experiments.study.test_run.OwnMean", *options])
    with (tmp_path / "runs.csv").open() as file:
        made = list(csv.DictReader(file))
    assert [row["objective"] for row in made] == ["gmpo", "tests.experiments.study.test_run.OwnMean"]
    assert {row["highest_rate"] for row in made} == {"0.0002"}
    with (tmp_path / "rollouts.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [row["rollout"] for row in rows] == ["0", "1", "0", "1"]
    assert all(0 <= float(row["reward"]) <= 1 for row in rows)


@pytest.mark.slow
def test_runs_from_another_model_are_kept_and_not_continued(tmp_path, monkeypatch, capsys):
    """As another processor makes it; here from fewer steps."""
    held_out = [addition().held_out[number] for number in range(8)]
    monkeypatch.setattr(workers.multiprocessing, "get_context", lambda kind: InProcess)
    options = ["--objectives", "gmpo", "--seeds", "0", "--rollouts", "2", "--output", str(tmp_path)]
    starts = []
    for steps, said in ((2, 0), (1, 1), (2, 1)):
        short = replace(addition(), model=replace(addition().model, steps=steps), held_out=held_out)
        monkeypatch.setitem(TASKS, "addition", lambda short=short: short)
        run.main([*options, "--updates", "2", "--learning_rates", "1e-4"])
        starts.append(short.start)
        assert ("began from another model" in capsys.readouterr().out) == said
    assert starts[0] == starts[2] != starts[1]
    assert [row["start"] for row in read_rows(tmp_path / "runs.csv")] == starts[:2]
    assert [row["start"] for row in read_rows(tmp_path / "rollouts.csv")] == [
        one for one in starts[:2] for _ in range(2)
    ]


@pytest.mark.parametrize("main", [run.main, fidelity.main], ids=["run", "fidelity"])
def test_objectives_of_the_reader_need_a_folder_of_their_own(main, capsys):
    with pytest.raises(SystemExit):
        main(["--objectives", "gmpo,tests.experiments.study.test_run.OwnMean"])
    assert "pass a folder of your own as `--output`" in capsys.readouterr().err


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


@pytest.mark.parametrize("script", [run, fidelity])
def test_help_says_what_each_option_is_and_where_results_go(script, capsys):
    with pytest.raises(SystemExit):
        script.main(["--help"])
    options = capsys.readouterr().out.split("options:")[1]
    described = [entry for entry in re.split(r"\n  -", options)[1:] if re.search(r"\s{2,}[A-Z]\w+|show this", entry)]
    assert len(described) == len(re.findall(r"\n  -", options))
    assert f"{run.FOLDER} without it" in " ".join(options.split())
