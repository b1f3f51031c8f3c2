"""Statistics of the study on ladders that are made up by hand."""

import itertools

import pytest

from experiments.estimate import Estimate
from experiments.study.design import LEARNING_RATES
from experiments.study.statistics import (
    Run,
    edge,
    edges,
    load,
    paired_difference,
    paired_differences,
    tuned_learning_rate,
)

FIRST, SECOND, THIRD, FOURTH = LEARNING_RATES[:4]


def ladder(objective, seed, collapsed, rewards=None, start="", rates=LEARNING_RATES, **measures):
    """Return the runs of a ladder at 4 updates, with `c` for a collapse and `.` for none."""
    rewards = rewards or [0.5] * len(collapsed)
    all_measures = [
        {"collapsed": kind == "c", "reward_area": reward, "sampled": 0.5, **measures}
        for kind, reward in zip(collapsed, rewards, strict=True)
    ]
    return [
        Run("addition", objective, 4, rate, seed, found, start, max(rates))
        for rate, found in zip(rates, all_measures, strict=False)
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
    # The highest rate of a ladder ends it, too.
    short = ladder("gmpo", 3, "....", rates=LEARNING_RATES[:4])
    assert edges([*runs, *short]) == {("gmpo", 4): [FIRST, SECOND, FOURTH]}


def test_the_learning_rates_of_another_objective_change_neither_ladders_nor_pairs():
    rates = LEARNING_RATES[:4]
    runs = [
        *ladder("gmpo", 0, "....", rates=rates, entropy=3.0),
        *ladder("grpo", 0, "...c", rates=rates, entropy=1.0),
    ]
    own = ladder("mypackage.MyMean", 0, "...cc", rates=(FIRST / 5, SECOND, THIRD, FOURTH, 1.0), entropy=9.0)
    assert edges(runs) == {("gmpo", 4): [FOURTH], ("grpo", 4): [THIRD]}
    assert edges([*runs, *own]) == {**edges(runs), ("mypackage.MyMean", 4): [THIRD]}
    for measured in (runs, [*runs, *own]):
        assert paired_difference(measured, "gmpo", "grpo", 4, "entropy").mean == 2.0
    # Both were run at the second and the third rate.
    found = paired_differences([*runs, *own], "mypackage.MyMean", "grpo", 4, "entropy")
    assert found == {(0, ""): {SECOND: 8.0, THIRD: 8.0}}


def test_a_ladder_that_is_made_longer_is_unfinished_until_its_new_end():
    runs = ladder("gmpo", 0, "....", rates=LEARNING_RATES[:4])
    longer = ladder("gmpo", 0, ".....")[-1:]
    assert edges([*runs, *longer]) == {}


def test_tuned_rate_has_the_best_mean_over_seeds_that_all_ran_it():
    runs = ladder("gmpo", 0, "...cc", [0.1, 0.4, 0.5, 0.3, 0.9]) + ladder("gmpo", 1, "..cc", [0.1, 0.4, 0.2, 0.0])
    assert tuned_learning_rate(runs, "gmpo", 4) == SECOND
    assert tuned_learning_rate(runs, "grpo", 4) is None


def test_a_rate_at_which_gradients_ended_a_run_is_not_tuned():
    runs = ladder("gmpo", 0, "..cc", [0.1, 0.4, 0.2, 0.0]) + ladder("gmpo", 1, ".ccc", [0.1, 0.9, 0.2, 0.0])
    del runs[5].measures["sampled"]
    assert tuned_learning_rate(runs, "gmpo", 4) == THIRD


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
    rows = [
        "addition,gmpo,4,5e-05,0,a,0.0011,1,0.1",
        "addition,gmpo,4,5e-05,0,a,0.0011,0,",
        "spell_backward,gmpo,4,5e-05,0,a,0.0011,0,0.3",
        "addition,gmpo,4,5e-05,0,b,0.0011,1,0.2",
    ]
    columns = "task,objective,updates,learning_rate,seed,start,highest_rate,collapsed,reward_area"
    path.write_text("\n".join([columns, *rows]) + "\n")
    run, other = load(path, "addition")
    assert (run.start, other.start) == ("a", "b")
    assert not run.collapsed
    assert "reward_area" not in run.measures


def test_runs_that_do_not_say_how_far_their_ladder_goes_are_refused(tmp_path):
    path = tmp_path / "runs.csv"
    path.write_text("task,objective,updates,learning_rate,seed,collapsed\naddition,gmpo,4,5e-05,0,1\n")
    with pytest.raises(ValueError, match=r"runs\.csv has no column `highest_rate`; make the runs again"):
        load(path, "addition")
