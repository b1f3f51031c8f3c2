"""The scripts of the laboratory, shortened, with an objective of the reader's own."""

import csv
import itertools

import pytest
import torch

from aggregate_po.advantages import GroupNormalized
from aggregate_po.recipes import gmpo, grpo
from experiments.exact import bias_variance
from experiments.exact.learning import learning_curve
from experiments.exact.policies import Sequences
from experiments.exact.problems import random_problem


def test_the_table_has_every_objective_at_every_distance(tmp_path, capsys):
    names = "grpo,gmpo,tests.third_party.AsinhMean"
    bias_variance.main(
        ["--objectives", names, "--length", "2", "--problems", "2", "--group_size", "3", "--output", str(tmp_path)]
    )
    with (tmp_path / "bias_variance.csv").open(newline="") as file:
        table = list(csv.DictReader(file))
    assert {row["objective"] for row in table} == set(names.split(","))
    assert len(table) == 3 * len(bias_variance.DISTANCES)
    for row in table:
        if float(row["distance"]) == 0:
            assert float(row["cosine"]) == pytest.approx(1)
    picture = (tmp_path / "bias_variance.svg").read_text()
    assert picture.count("AsinhMean") == 1
    assert "tests.third_party.AsinhMean" in capsys.readouterr().out


def test_distances_are_those_of_the_logits():
    problem = random_problem(Sequences.of(3, 2), 0.4, seed=3)
    assert (problem.logits - problem.old_logits).square().mean().sqrt().item() == pytest.approx(0.4)
    assert 0 < problem.rewards.mean() < 1


@pytest.mark.parametrize("objective", [grpo(), gmpo()], ids=["grpo", "gmpo"])
def test_a_policy_that_follows_the_estimate_learns(objective):
    sequences = Sequences.of(2, 3)
    rewards = torch.zeros(len(sequences), dtype=torch.float64)
    rewards[5] = 1
    curve = learning_curve(sequences, rewards, objective, GroupNormalized(), 4, 30, 2, 1.0)
    assert curve[0] == pytest.approx(1 / 8)
    assert all(later > earlier for earlier, later in itertools.pairwise(curve))
    assert curve[-1] > 0.5
