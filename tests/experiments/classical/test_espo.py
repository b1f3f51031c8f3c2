"""Clip against early stop: the variants, and what the committed table says of the claims."""

import csv
import math
from pathlib import Path

import pytest

from experiments.classical import espo
from experiments.classical.control.ratio_range import SHARES
from experiments.classical.shared.curves import curve_of

TABLE = Path(__file__).resolve().parents[3] / "docs" / "assets" / "classical" / "espo.csv"
CLIP, FREE, STOP = espo.VARIANTS


@pytest.fixture(scope="module")
def committed():
    with TABLE.open(newline="") as file:
        return [{name: cell or math.nan for name, cell in row.items()} for row in csv.DictReader(file)]


def test_the_variants_are_clip_surrogate_and_surrogate_with_a_stop():
    clips = {name: objective().token_transform is not None for name, (objective, _) in espo.VARIANTS.items()}
    assert clips == {"clip at 0.2": True, "no clip": False, "no clip, stop at 0.25": False}
    assert [bound for _, bound in espo.VARIANTS.values()] == [None, None, 0.25]


def test_a_run_measures_each_rollout_and_its_epochs():
    measured, returns = espo.train(espo.Job("Pendulum-v1", CLIP, seed=0, rollouts=1))
    assert [len(rollout) for rollout in measured] == [20]
    assert all(len(epoch) == len(SHARES) + 1 for epoch in measured[0])
    assert len(returns) == 1
    assert -1700 < returns[0] < -700  # of a policy that is hardly trained


@pytest.mark.parametrize("task", espo.TASKS)
def test_the_clip_does_not_bound_the_ratios(committed, task):
    """They leave the bounds of the clip in the median rollout, as the paper claims, and most steps stay inside."""
    extremes, most = (curve_of(committed, f"{task} {panel}", CLIP) for panel in ("extremes", "98%"))
    assert extremes["high"][-1] > 1.25
    assert extremes["low"][-1] < 0.76
    assert 0.7 < most["low"][-1] < 1 < most["high"][-1] < 1.3


@pytest.mark.parametrize("task", espo.TASKS)
def test_the_stop_bounds_the_deviation_that_grows_without_it(committed, task):
    free, stop, clip = (curve_of(committed, f"{task} deviation", name)["y"] for name in (FREE, STOP, CLIP))
    assert free[-1] > 0.4
    assert stop[-1] < 1.3 * espo.BOUND < free[-1]
    assert clip[-1] < 0.1


@pytest.mark.parametrize("task", espo.TASKS)
def test_the_clip_has_the_higher_return_in_the_end(committed, task):
    """Unlike the paper's claim, so that the page says so."""
    ends = {name: curve_of(committed, f"{task} return", name) for name in espo.VARIANTS}
    assert ends[CLIP]["low"][-1] > ends[STOP]["high"][-1] > ends[STOP]["low"][-1] > ends[FREE]["y"][-1]
