"""Statistics of the study on ladders that are made up by hand."""

import itertools

import pytest

from experiments.estimate import Estimate
from experiments.study.design import LEARNING_RATES
from experiments.study.statistics import Run, edge, edges, load, paired_difference, tuned_learning_rate

FIRST, SECOND, THIRD, FOURTH = LEARNING_RATES[:4]


def ladder(objective, seed, collapsed, rewards=None, updates=4, start="", **measures):
    """Return the runs of a ladder, with `c` for a collapse and `.` for none."""
    rewards = rewards or [0.5] * len(collapsed)
    all_measures = [
        {"collapsed": kind == "c", "reward_area": reward, **measures}
        for kind, reward in zip(collapsed, rewards, strict=True)
    ]
    return [
        Run("addition", objective, updates, rate, seed, found, start)
        for rate, found in zip(LEARNING_RATES, all_measures, strict=False)
    ]


@pytest.mark.parametrize(
    ("collapsed", "expected"),
    [("..cc", SECOND), (".c.cc", FIRST), ("cc", 0.0), ("." * len(LEARNING_RATES), LEARNING_RATES[-1])],
)
def test_edge_is_the_last_rate_before_the_first_collapse(collapsed, expected):
    assert edge(ladder("gmpo", 0, collapsed)) == expected


def test_unfinished_ladders_do_not_count():
    runs = [*ladder("gmpo", 0, "..cc"), *ladder("gmpo", 1, ".cc"), *ladder("gmpo", 2, "...")]
    assert edges(runs) == {("gmpo", 4): [FIRST, SECOND]}
    # The highest rate of all ends a ladder, too.
    assert edges([*runs, *ladder("gmpo", 3, "....")]) == {("gmpo", 4): [FIRST, SECOND, FOURTH]}


def test_tuned_rate_has_the_best_mean_over_seeds_that_all_ran_it():
    runs = ladder("gmpo", 0, "...cc", [0.1, 0.4, 0.5, 0.3, 0.9]) + ladder("gmpo", 1, "..cc", [0.1, 0.4, 0.2, 0.0])
    assert tuned_learning_rate(runs, "gmpo", 4) == SECOND
    assert tuned_learning_rate(runs, "grpo", 4) is None


def test_differences_are_paired_where_neither_collapsed_with_any_seed():
    runs = [
        *ladder("gmpo", 0, "...cc", entropy=3.0),
        *ladder("gmpo", 1, "..cc", entropy=5.0),  # the third rate does not count
        *ladder("grpo", 0, "...cc", entropy=1.0),
        *ladder("grpo", 1, "...cc", entropy=1.0),
        *ladder("grpo", 2, "...cc", entropy=9.0),  # without a partner
    ]
    found = paired_difference(runs, "gmpo", "grpo", 4, "entropy")
    assert (found.mean, found.low, found.seeds) == (3.0, None, 2)
    assert paired_difference(runs, "gmpo", "grpo", 16, "entropy") is None


def test_runs_of_two_models_to_start_from_are_ladders_apart_and_not_paired():
    runs = [
        *ladder("gmpo", 0, "..cc", start="a", entropy=3.0),
        *ladder("gmpo", 0, "...cc", start="b", entropy=7.0),
        *ladder("grpo", 0, "..cc", start="b", entropy=1.0),
    ]
    assert edges(runs)["gmpo", 4] == [SECOND, THIRD]
    assert paired_difference(runs, "gmpo", "grpo", 4, "entropy").mean == 6.0
    assert paired_difference([*runs[:4], *runs[9:]], "gmpo", "grpo", 4, "entropy") is None


def test_interval_is_that_of_all_resamples():
    values = [0.0, 1.0, 5.0]
    means = sorted(sum(sample) / 3 for sample in itertools.product(values, repeat=3))
    found = Estimate.of(values)
    assert found.mean == 2.0
    assert (found.low, found.high) == (means[1], means[-2])  # 2.5 % of 27 at each end


def test_interval_of_many_seeds_takes_random_resamples():
    values = [float(number % 4) for number in range(16)]
    found = Estimate.of(values)
    assert found == Estimate.of(values)
    error = (1.25 / 16) ** 0.5
    assert found.low == pytest.approx(1.5 - 1.96 * error, abs=0.07)
    assert found.high == pytest.approx(1.5 + 1.96 * error, abs=0.07)


def test_last_run_of_a_setting_counts(tmp_path):
    path = tmp_path / "runs.csv"
    rows = ["addition,gmpo,4,5e-05,0,a,1,0.1", "addition,gmpo,4,5e-05,0,a,0,", "spell_backward,gmpo,4,5e-05,0,a,0,0.3"]
    rows.append("addition,gmpo,4,5e-05,0,b,1,0.2")
    path.write_text("\n".join(["task,objective,updates,learning_rate,seed,start,collapsed,reward_area", *rows]) + "\n")
    run, other = load(path, "addition")
    assert (run.start, other.start) == ("a", "b")
    assert not run.collapsed
    assert "reward_area" not in run.measures
