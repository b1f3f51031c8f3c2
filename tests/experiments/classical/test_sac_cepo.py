"""Soft actor-critic and its cross-entropy variant: the bandit with two modes, and a short run on Pendulum."""

import csv
import math
from pathlib import Path

import pytest
import torch

from experiments.classical.sac_cepo import IMPROVEMENTS, STARTS, Job, bandit_means, bandit_quality, train
from experiments.classical.shared.curves import curve_of

TABLE = Path(__file__).resolve().parents[3] / "docs" / "assets" / "classical" / "sac_cepo.csv"

GLOBAL, LOCAL = 0.45, -0.3


def test_the_bandit_has_two_modes():
    actions = torch.linspace(-1, 1, 20_001).double()
    rewards = bandit_quality(actions, actions.unsqueeze(-1))
    inner = (rewards[1:-1] > rewards[:-2]) & (rewards[1:-1] > rewards[2:])
    peaks = actions[1:-1][inner].tolist()
    assert peaks == pytest.approx([LOCAL, GLOBAL], abs=1e-3)
    at_modes = bandit_quality(None, torch.tensor([[LOCAL], [GLOBAL]]))
    assert at_modes.tolist() == pytest.approx([0.6, 1], abs=1e-4)
    assert bandit_quality(None, torch.tensor([0.6])).item() == pytest.approx(math.exp(-0.5), abs=1e-4)


def test_the_gradient_is_stuck_where_the_search_reaches_the_global_mode():
    gradient, search = (bandit_means(IMPROVEMENTS[name](), 200, seed=0) for name in ("SAC", "SAC-CEPO"))
    stuck, free = (STARTS - LOCAL).abs() < 0.15, STARTS > 0.3
    assert (stuck.sum(), free.sum()) == (3, 6)
    assert (gradient[stuck] - LOCAL).abs().max() < 0.05
    assert (gradient[free] - GLOBAL).abs().max() < 0.05
    assert (search - GLOBAL).abs().max() < 0.1


@pytest.mark.parametrize("name", IMPROVEMENTS)
def test_a_run_is_evaluated_every_thousand_steps(name):
    ((mean_return, deviation),) = train(Job(name, seed=0, steps=1000))
    assert -2000 < mean_return < -500
    assert 0 < deviation < 3


def test_the_committed_runs_are_equally_fast_and_only_the_gradient_is_stuck():
    with TABLE.open(newline="") as file:
        table = [{name: cell or math.nan for name, cell in row.items()} for row in csv.DictReader(file)]
    for name in IMPROVEMENTS:
        returns, means = (curve_of(table, panel, name) for panel in ("return", "bandit"))
        assert returns["y"][2] < -1200
        assert min(returns["y"][6:9]) > -160
        below = [mean for start, mean in zip(means["x"], means["y"], strict=True) if -0.75 < start < -0.05]
        expected = LOCAL if name == "SAC" else GLOBAL
        assert below == pytest.approx([expected] * 7, abs=0.05)
