"""Statistics of the flow-matching experiment on numbers worked by hand, and its page."""

import math
from pathlib import Path

import pytest
import torch

from experiments.flow import report
from experiments.flow.run import FOLDER
from experiments.flow.statistics import (
    Evaluation,
    StepMean,
    at_rollout,
    clip_share,
    gold_at_proxy,
    gradient_spread,
    load_curves,
    mean_log_ratio,
    mean_normalized,
    over_seeds,
    paired_difference,
    pooled,
    upper_clip_bound,
)
from experiments.tables import append_rows

ROOT = Path(__file__).resolve().parents[3]
RISING = [Evaluation(0, -2.0, 0.0), Evaluation(5, -1.0, -1.0), Evaluation(10, -0.5, -3.0)]
SUMS = {"later": 4, "positive": 1, "log_ratio": -2.0, "centered_squares": 1.0, "divergence": 1.0, "normalized": 0.5}


@pytest.mark.parametrize(("proxy", "gold"), [(-2.0, 0.0), (-1.5, -0.5), (-1.0, -1.0), (-0.75, -2.0), (-0.4, None)])
def test_gold_at_a_proxy_is_linear_between_evaluations(proxy, gold):
    assert gold_at_proxy(RISING, proxy) == gold


def test_gold_at_a_proxy_is_that_of_the_first_time():
    falling = [*RISING, Evaluation(15, -1.0, -7.0), Evaluation(20, -0.5, -9.0)]
    assert gold_at_proxy(falling, -0.75) == -2.0
    assert at_rollout(RISING, 5) == RISING[1]
    assert at_rollout(RISING, 6) is None


def test_differences_are_paired_by_seed():
    def curve(gold):
        return [Evaluation(0, -2.0, gold)]

    first, second = {seed: curve(1.0 + seed) for seed in range(3)}, {seed: curve(2.0 * seed) for seed in range(3)}
    found = paired_difference(first, second, lambda points: points[0].gold)
    assert (found.mean, found.low, found.high, found.seeds) == (0.0, pytest.approx(-2 / 3), pytest.approx(2 / 3), 3)
    assert over_seeds(first, lambda points: points[0].gold).mean == 2.0
    assert over_seeds(first, lambda points: None if points[0].gold == 1 else 0.0) is None  # a seed is without


def test_means_of_a_step_are_worked_by_hand():
    log_ratio = mean_log_ratio(SUMS)
    assert (log_ratio.mean, log_ratio.half) == (-0.5, pytest.approx(1.959964 / 4))
    assert log_ratio.contains(-0.25)
    assert not log_ratio.contains(0.0)
    assert mean_normalized({**SUMS, "normalized_squares": 4.0}) == StepMean(0.125, pytest.approx(1.959964 / 2))
    clipped = {**SUMS, "clipped_high": 1, "clipped_low": 2}
    assert clip_share(clipped, "high") == 1.0
    assert clip_share(clipped, "low") == pytest.approx(2 / 3)
    assert pooled([SUMS, SUMS])["log_ratio"] == -4.0
    steps = {1: {"gradient": 1.0, "trained": 2}, 2: {"gradient": 3.0, "trained": 2}, 3: {"gradient": 0.0, "trained": 0}}
    assert gradient_spread(steps) == 3.0


def test_no_divergence_makes_the_upper_clip_act_more_often_than_its_bound():
    clip, noise = 0.02, torch.randn(40_000, 8, generator=torch.Generator().manual_seed(0)).double()
    shares = []
    for divergence in (0.005, 0.02, 0.08):
        shift = math.sqrt(2 * divergence)  # of each latent dimension, in units of the scale
        log_ratio = -divergence - shift * noise.mean(dim=1)
        shares.append((log_ratio > clip).double().mean().item())
    bound = upper_clip_bound(8, clip)
    assert shares[1] == pytest.approx(bound, abs=0.01)
    assert max(shares[0], shares[2]) < bound - 0.02


def test_a_run_that_is_not_complete_does_not_count(tmp_path):
    for seed in ("0", "1"):
        row = {"objective": "flow_grpo", "seed": seed, "rollout": "0", "proxy": "-2", "gold": "-1"}
        append_rows(tmp_path / "evaluations.csv", [row])
    append_rows(tmp_path / "runs.csv", [{"objective": "flow_grpo", "seed": "1", "rollouts": "2"}])
    assert load_curves(tmp_path) == {"flow_grpo": {1: [Evaluation(0, -2.0, -1.0)]}}


def test_page_shows_the_tables_of_the_results():
    page = (ROOT / "docs" / "flow.md").read_text(encoding="utf-8")
    tables = report.tables(ROOT / FOLDER)
    assert tables
    missing = [name for name, text in tables.items() if text not in page]
    assert missing == [], "put in the tables that `python -m experiments.flow.report` prints"
