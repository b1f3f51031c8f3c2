"""Tables and plots of the study: on results that are made up by hand, and on those of the documentation."""

import csv
from pathlib import Path

import pytest

from experiments.study import pairs, plots, report
from experiments.study.design import LEARNING_RATES
from experiments.study.run import FOLDER
from experiments.study.statistics import load
from experiments.study.tasks import TASKS
from experiments.study.training import measures

ROOT = Path(__file__).resolve().parents[3]


def write(path, rows):
    with path.open("w", newline="") as file:
        writer = csv.DictWriter(file, list(rows[0]))
        writer.writeheader()
        writer.writerows(rows)


@pytest.fixture
def results(tmp_path):
    """Two objectives at 16 updates: `grpo` collapses above the second learning rate, `gmpo` above the third."""
    rollout = dict.fromkeys(["entropy", "kl", "log_ratio_90", "clipped", "ess_fraction", "grad_norm"], 0.5)
    rollout |= {"log_ratio_min": -1.0, "log_ratio_max": 1.0, "grad_norm_max": 2.0, "skipped_steps": 0.0}
    runs, rollouts = [], []
    for objective, stable, entropy in (("grpo", 2, 0.5), ("gmpo", 3, 0.75)):
        for seed in (0, 1, 2):
            for number, rate in enumerate(LEARNING_RATES[: stable + 2]):
                rewards = [0.1, 0.2, 0.3 + number / 10] if number < stable else [0.1, 0.0, 0.0]
                rows = [{**rollout, "reward": reward, "entropy": entropy} for reward in rewards]
                about = {"task": "addition", "objective": objective, "updates": 16, "learning_rate": rate, "seed": seed}
                highest = {"highest_rate": LEARNING_RATES[-1]}
                runs.append({**about, **highest, "sampled": 0.25 + seed / 4, **measures(rows)})
                rollouts += [{**about, "rollout": count, **row} for count, row in enumerate(rows)]
    write(tmp_path / "runs.csv", runs)
    write(tmp_path / "rollouts.csv", rollouts)
    path = {"checkpoint": 0, "drift": "grpo", "updates": 4, "norm_ratio": 1.0, "log_ratio_std": 0.1}
    own = {**path, "path": 0, "objective": "mypackage.MyMean", "noise_to_signal": 2.0}
    fidelity = [
        {**own, "cosine": 0.1},
        {**own, "cosine": 0.5},  # the same path again: the last one counts
        {**path, "path": 0, "objective": "gmpo", "cosine": 0.9, "noise_to_signal": 1.0},
        {**path, "path": 0, "objective": "grpo", "cosine": 0.8, "noise_to_signal": 3.0},
        {**path, "path": 1, "objective": "gmpo", "cosine": 0.7, "noise_to_signal": ""},  # no signal above the noise
    ]
    write(tmp_path / "fidelity.csv", fidelity)
    return tmp_path


def test_tables_have_the_numbers_worked_by_hand(results):
    found = report.tables(results)
    assert found["edges"].splitlines()[2:] == ["| `grpo` | 8.4e-05 |", "| `gmpo` | 0.00014 |"]
    # The best mean reward is at the largest stable rate; the interval is that of 0.25, 0.5 and 0.75.
    assert found["tuned"].splitlines()[3] == "| `gmpo` | 0.00014 | 0.5 (0.333 to 0.667) |"
    (difference,) = found["differences at 16 updates"].splitlines()[2:]
    assert difference.startswith("| `gmpo` - `grpo` | 0 (0 to 0) | 0 (0 to 0) | 0.25 (0.25 to 0.25) |")
    assert found["fidelity"].splitlines()[2:] == [
        "| `grpo` | 0.80 | 3.00 |",
        "| `gmpo` | 0.80 (0.70 to 0.90) | 1.00 |",
        "| `mypackage.MyMean` | 0.50 | 2.00 |",
    ]
    assert found["differences of fidelity"].splitlines()[2:] == [
        "| `gmpo` - `grpo` | 0.10 | 1 of 1 paths | -2.00 | 1 of 1 paths |",
        "| `mypackage.MyMean` - `grpo` | -0.30 | 0 of 1 paths | -1.00 | 1 of 1 paths |",
        "| `mypackage.MyMean` - `gmpo` | -0.40 | 0 of 1 paths | 1.00 | 0 of 1 paths |",
    ]


def test_tables_say_which_cells_have_fewer_seeds(results):
    change(results / "runs.csv", lambda rows: [row for row in rows if row["objective"] == "grpo" or row["seed"] == "1"])
    found = report.tables(results)
    assert found["edges"].splitlines()[2:] == ["| `grpo` | 8.4e-05 |", "| `gmpo` | 0.00014, 1 seed |"]
    assert found["tuned"].splitlines()[3] == "| `gmpo` | 0.00014 | 0.5, 1 seed |"
    change(results / "runs.csv", lambda rows: [*rows, *({**row, "objective": "hmpo"} for row in rows)])
    first, second = report.tables(results)["differences at 16 updates"].splitlines()[2:]
    assert first.startswith("| `gmpo` - `grpo` |")
    assert second.startswith("| `hmpo` - `gmpo` |")


def test_an_edge_outside_of_a_ladder_is_relative_to_that_ladder(results):
    rates = [2e-4, 4e-4]

    def with_own(rows):
        last = [row for row in rows if row["objective"] == "grpo"][-2:]  # both collapsed
        pairs = zip(last, rates, strict=True)
        return [*rows, *({**row, "objective": "mine.M", "learning_rate": rate} for row, rate in pairs)]

    change(results / "runs.csv", with_own)
    assert report.tables(results)["edges"].splitlines()[-1] == "| `mine.M` | < 0.0002, 1 seed |"


def test_pairs_and_survivors_are_counted_at_each_learning_rate(results, capsys):
    pairs.main(["--results", str(results)])
    lines = capsys.readouterr().out.splitlines()
    assert "| objective | 5e-05 | 8.4e-05 | 0.00014 | 0.00024 | 0.0004 |" in lines
    assert "| `grpo` | 3 of 3 | 3 of 3 | 0 of 3 | 0 of 3 |  |" in lines
    (entropy,) = {line.split(" | ")[4] for line in lines if line.startswith("| `gmpo` - `grpo` | all |")}
    assert entropy == "0.25, 6 of 6"
    (at_one,) = {line.split(" | ")[4] for line in lines if line.startswith("| `gmpo` - `grpo` | 5e-05 |")}
    assert at_one == "0.25, 3 of 3"


def change(path, changed):
    with path.open(newline="") as file:
        rows = changed(list(csv.DictReader(file)))
    write(path, rows)


def test_plots_show_every_objective(results, tmp_path):
    plots.main(["--results", str(results), "--output", str(tmp_path / "made")])
    names = (("study_edges", 2), ("study_curves", 2), ("study_runs", 2), ("study_fidelity", 3))
    for name, objectives in names:
        picture = (tmp_path / "made" / f"{name}.svg").read_text()
        assert "gmpo" in picture
        with (tmp_path / "made" / f"{name}.csv").open() as file:
            assert len({row["objective"] for row in csv.DictReader(file)}) == objectives


def test_edges_and_fidelity_of_further_objectives_are_in_the_data_alone(results, tmp_path):
    for name in ("runs", "fidelity"):
        path = results / f"{name}.csv"
        with path.open() as file:
            rows = list(csv.DictReader(file))
        write(path, [*rows, *({**row, "objective": "kpo"} for row in rows if row["objective"] == "gmpo")])
    plots.main(["--results", str(results), "--output", str(tmp_path / "made")])
    for name in ("study_edges", "study_fidelity"):
        assert "kpo" in (tmp_path / "made" / f"{name}.csv").read_text()
        picture = (tmp_path / "made" / f"{name}.svg").read_text()
        assert "gmpo" in picture
        assert "kpo" not in picture


def test_the_tick_of_a_single_number_of_updates_is_in_the_middle(results, tmp_path, monkeypatch):
    limits = []
    monkeypatch.setattr(plots, "save", lambda canvas, *_: limits.append(canvas.axes[0].get_xlim()))
    plots.plot_edges({"addition": load(results / "runs.csv", "addition")}, tmp_path, ["svg"])
    assert limits == [(8, 32)]


def test_edges_of_all_tasks_stand_next_to_each_other(results, tmp_path):
    runs = (results / "runs.csv").read_text()
    (results / "runs.csv").write_text(runs + runs.partition("\n")[2].replace("addition", "spell_backward"))
    plots.main(["--results", str(results), "--output", str(tmp_path / "made")])
    with (tmp_path / "made" / "study_edges.csv").open() as file:
        rows = list(csv.DictReader(file))
    assert [(row["task"], row["objective"]) for row in rows] == [
        (task, objective) for task in ("addition", "spell_backward") for objective in ("grpo", "gmpo")
    ]
    assert "spell_backward" in (tmp_path / "made" / "study_edges.svg").read_text()


@pytest.mark.parametrize("script", [plots, report])
def test_results_that_are_missing_are_refused(results, tmp_path, script, capsys):
    for folder, task in ((tmp_path / "none", "addition"), (results, "spell_backward")):
        if script is plots:  # of all tasks
            (results / "fidelity.csv").unlink(missing_ok=True)
        with pytest.raises(SystemExit):
            script.main(["--results", str(folder), "--task", task])
        message = capsys.readouterr().err
        assert (
            f"`--results` is {str(folder)!r}, which has no results of the task {task!r}; pass the `--output`" in message
        )


@pytest.mark.parametrize("script", [plots, report, pairs])
def test_a_task_that_is_unknown_is_refused(results, script, capsys):
    with pytest.raises(SystemExit):
        script.main(["--results", str(results), "--task", "subtraction"])
    assert "argument --task: invalid choice: 'subtraction'" in capsys.readouterr().err


def test_curves_have_the_range_over_seeds(results, tmp_path):
    def spread(rows):
        return [{**row, "reward": float(row["reward"]) + int(row["seed"])} for row in rows]

    change(results / "rollouts.csv", spread)
    plots.main(["--results", str(results), "--output", str(tmp_path / "made")])
    with (tmp_path / "made" / "study_curves.csv").open() as file:
        (first, *_) = [row for row in csv.DictReader(file) if row["measure"] == "reward"]
    assert (first["low"], first["mean"], first["high"]) == ("0.1", "1.1", "2.1")


def test_every_run_is_in_the_plot_and_its_data(results, tmp_path):
    plots.main(["--results", str(results), "--output", str(tmp_path / "made")])
    with (tmp_path / "made" / "study_runs.csv").open() as file:
        rows = list(csv.DictReader(file))
    with (results / "runs.csv").open() as file:
        assert len(rows) == len(list(csv.DictReader(file)))
    assert sum(row["collapsed"] == "1" for row in rows) == 2 * 2 * 3


def test_report_prints_its_tables(results, capsys):
    report.main(["--results", str(results)])
    assert "| `grpo` | 8.4e-05 |" in capsys.readouterr().out


@pytest.mark.parametrize("task", TASKS)
def test_page_shows_the_tables_of_the_results(task):
    page = (ROOT / "docs" / "study.md").read_text(encoding="utf-8")
    tables = report.tables(ROOT / FOLDER, task)
    assert tables
    missing = [name for name, text in tables.items() if text not in page]
    assert missing == [], "put in the tables that `python -m experiments.study.report` prints"
