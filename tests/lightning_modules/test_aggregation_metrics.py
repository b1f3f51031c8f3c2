"""Distributions over an optimizer step, against a plain computation over lists."""

import math
from dataclasses import fields, replace

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aggregate_po import Evaluated, GradientWeights, PolicyBatch
from aggregate_po.recipes import dapo, fipo, gmpo, grpo, gspo, pmpo, real
from lightning_modules.aggregation_metrics import AggregationMetrics
from lightning_modules.metrics import GradientWeightMetrics

ROWS, TIME = 12, 14
OBJECTIVES = {
    "gmpo": gmpo(),
    "pmpo, with exponents": pmpo(),
    "gspo, of completions": gspo(),
    "grpo, advantages of tokens": grpo(),
    "fipo, with suffix weights": fipo(),
    "dapo": dapo(),
    "real, of groups": real(),
}


def case(name, seed=0):
    """A batch with holes, an empty completion, and log ratios beyond the clip and the bound."""
    generator = torch.Generator().manual_seed(seed)
    mask = torch.rand(ROWS, TIME, generator=generator) < 0.8
    mask[3] = False
    log_ratio = 0.4 * torch.randn(ROWS, TIME, generator=generator)
    log_ratio[5, 2:4] = torch.tensor([30.0, -50.0])
    by_token = (TIME,) if "tokens" in name else ()
    advantages = torch.randn(ROWS, *by_token, generator=generator)
    advantages[7] = 0
    old = -3 + torch.randn(ROWS, TIME, generator=generator)
    batch = PolicyBatch(old, mask, advantages, groups=torch.arange(ROWS) // 4)
    log_probs = old + log_ratio
    return OBJECTIVES[name].evaluate(log_probs, batch), log_probs, batch


def selected(step, rows):
    """Some of the completions of a step, with what the objective gave them."""
    evaluated, log_probs, batch = step
    weights = {one.name: getattr(evaluated.weights, one.name)[rows] for one in fields(GradientWeights)}
    exponents = None if evaluated.exponents is None else evaluated.exponents[rows]
    part = Evaluated(evaluated.value, GradientWeights(**weights), evaluated.observed, exponents)
    return part, log_probs[rows], batch.select(rows)


def metrics_of(*steps):
    metrics = AggregationMetrics()
    for evaluated, log_probs, batch in steps:
        metrics.update(evaluated, log_probs, batch)
    return metrics.compute()


class Direct:
    """The same metrics, from lists of numbers: quantiles and shares are exact."""

    def __init__(self):
        self.numbers, self.absolute = {}, []
        self.clips = {side: [[] for _ in range(10)] for side in ("low", "high")}

    def note(self, name, sign, value):
        for split in ("", *({-1: ("negative/",), 0: (), 1: ("positive/",)}[int(sign)])):
            self.numbers.setdefault(f"{name}/{split}", []).append(float(value))

    def update(self, evaluated, log_probs, batch):
        weights = evaluated.weights
        self.by_token = weights.advantages.shape[1] > 1
        self.log_ratio = (log_probs.double() - batch.old_log_probs.double()).numpy()
        for row in range(len(batch.response_mask)):
            times = batch.response_mask[row].nonzero().flatten().tolist()
            if times:
                own = [float(weights.advantages[row, time if self.by_token else 0]) for time in times]
                exponent = None if evaluated.exponents is None else evaluated.exponents[row]
                self.completion(weights, row, times, np.sign(sum(own)), exponent)
                for place, (time, advantage) in enumerate(zip(times, own, strict=True)):
                    self.token(weights, row, time, advantage, 10 * place // len(times))

    def completion(self, weights, row, times, sign, exponent):
        shares = np.abs(weights.concentration[row, times].double().numpy())
        shares = shares / max(shares.sum(), 1e-300)
        self.note("weights/completion", sign, weights.completion[row, 0])
        self.note("weights/magnitude", sign, weights.magnitude[row, 0])
        self.note("weights/ess_fraction", sign, shares.sum() ** 2 / max((shares**2).sum(), 1e-300) / len(times))
        self.note("weights/entropy", sign, -sum(one * math.log(one) for one in shares if one > 0))
        if exponent is not None:
            self.note("exponent", sign, exponent)
        if not self.by_token:
            self.note("weights/advantage", sign, weights.advantages[row, 0])

    def token(self, weights, row, time, advantage, tenth):
        sign = np.sign(advantage)
        self.note("weights/concentration", sign, weights.concentration[row, time])
        self.note("weights/gate", sign, weights.gate[row, time])
        self.note("log_ratio", sign, self.log_ratio[row, time])
        if self.by_token:
            self.note("weights/advantage", sign, advantage)
        self.absolute.append((sign, abs(float(weights.total[row, time]))))
        for side, expected in (("low", -1), ("high", 1)):
            self.clips[side][tenth].append(bool(weights.clipped[row, time]) and sign == expected)

    def metrics(self):
        found = {}
        for name, values in self.numbers.items():
            found |= {f"{name}mean": np.mean(values), f"{name}min": min(values), f"{name}max": max(values)}
            for fraction in (0.05, 0.5, 0.95):
                quantile = np.quantile(values, fraction, method="inverted_cdf")
                found[f"{name}quantile_{100 * fraction:02.0f}"] = quantile
        for side, tenths in self.clips.items():
            names = [f"clip_ratio/{side}_position_{number:02}" for number in range(1, 11)]
            found |= {name: np.mean(tenth) if tenth else math.nan for name, tenth in zip(names, tenths, strict=True)}
        for split, sign in (("", None), ("/negative", -1), ("/positive", 1)):
            sizes = sorted((size for own, size in self.absolute if sign is None or own == sign), reverse=True)
            count = 0.01 * len(sizes)
            top = sum(sizes[: int(count)]) + (count - int(count)) * sizes[int(count)]
            found[f"weights/top_1_percent_share{split}"] = top / sum(sizes)
        return found


def direct(*steps):
    """Metrics of micro-batches together."""
    computed = Direct()
    for step in steps:
        computed.update(*step)
    return computed.metrics()


def assert_near(found, expected):
    """Within the accuracies that are documented."""
    assert found.keys() == expected.keys() - set(KNOWN)
    for metric, value in found.items():
        tolerance = 0.051 if "top_1" in metric else 0.026 if "quantile" in metric else 1e-6
        assert value == pytest.approx(expected[metric], rel=tolerance, abs=2e-7, nan_ok=True), metric


KNOWN = ["weights/ess_fraction/mean", "weights/entropy/mean", "log_ratio/mean"]
KNOWN += ["exponent/mean", "exponent/min", "exponent/max"]


@pytest.mark.parametrize("name", OBJECTIVES)
def test_the_metrics_are_those_of_a_direct_computation(name):
    step = case(name)
    found = metrics_of(step)
    assert_near(found, direct(step))
    assert any(value for metric, value in found.items() if "_position_" in metric) == (name != "real, of groups")
    assert ("exponent/quantile_50" in found) == ("exponents" in name)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_what_is_left_out_is_among_the_metrics_of_every_run(name):
    step = case(name)
    evaluated, log_probs, batch = step
    metrics = GradientWeightMetrics()
    metrics.update(evaluated.weights, log_probs, batch, evaluated.exponents)
    logged, expected = metrics.compute(), direct(step)
    assert float(logged["weights/ess_fraction"]) == pytest.approx(expected["weights/ess_fraction/mean"], rel=1e-5)
    assert float(logged["weights/entropy"]) == pytest.approx(expected["weights/entropy/mean"], rel=1e-5)
    assert -float(logged["kl_old"]) == pytest.approx(expected["log_ratio/mean"], rel=1e-5)
    for metric in ("exponent/mean", "exponent/min", "exponent/max"):
        assert (metric in logged) == (metric in expected)
        if metric in logged:
            assert float(logged[metric]) == pytest.approx(expected[metric], rel=1e-5)


@given(st.sampled_from([*OBJECTIVES]), st.integers(0, 2**32), st.lists(st.integers(0, 2), min_size=ROWS, max_size=ROWS))
def test_any_split_gives_the_same_metrics(name, seed, owners):
    step = case(name, seed)
    parts = [[row for row, owner in enumerate(owners) if owner == part] for part in range(3)]
    split = metrics_of(*(selected(step, torch.tensor(part)) for part in parts if part))
    assert split == pytest.approx(metrics_of(step), rel=1e-9, abs=1e-12, nan_ok=True)


def test_the_metrics_of_processes_add_up():
    """Reduced as torchmetrics reduces states over ranks."""
    step = case("pmpo, with exponents")
    ranks = [AggregationMetrics(), AggregationMetrics()]
    for rank, rows in zip(ranks, (torch.arange(5), torch.arange(5, ROWS)), strict=True):
        rank.update(*selected(step, rows))
    merged = ranks[0]
    for name, reduction in merged._reductions.items():
        setattr(merged, name, reduction(torch.stack([getattr(rank, name) for rank in ranks])))
    assert merged.compute() == pytest.approx(metrics_of(step), rel=1e-9, abs=1e-12, nan_ok=True)


def test_metrics_worked_by_hand():
    """Two completions of ten and five tokens of weights 1 to 10 and -1; the last tokens of the first are clipped."""
    mask = torch.arange(10) < torch.tensor([[10], [5]])
    batch = PolicyBatch(torch.zeros(2, 10), mask, torch.tensor([1.0, -1.0]))
    ones, clipped = torch.ones(2, 1), torch.zeros(2, 10, dtype=torch.bool)
    clipped[0, 8:], clipped[1, 0] = True, True
    concentration = torch.stack([torch.arange(1.0, 11.0), torch.ones(10)])
    signs = torch.tensor([[1.0], [-1.0]])
    weights = GradientWeights(
        ones, signs, ones, concentration, mask.float(), torch.zeros(2, 10), clipped, overflow=torch.zeros_like(mask)
    )
    found = metrics_of((Evaluated(torch.tensor(0.0), weights, torch.zeros(0)), torch.zeros(2, 10), batch))
    assert found["weights/concentration/positive/mean"] == 5.5
    assert found["weights/concentration/negative/max"] == 1
    assert found["weights/concentration/max"] == 10
    assert found["weights/concentration/positive/quantile_50"] == pytest.approx(5, rel=0.025)
    # The last tenth of the first completion has one token; the second has one in every other tenth.
    assert [found[f"clip_ratio/high_position_{n:02}"] for n in (8, 9, 10)] == [0, 0.5, 1]
    assert [found[f"clip_ratio/low_position_{n:02}"] for n in (1, 2)] == [0.5, 0]
    assert found["weights/top_1_percent_share"] == pytest.approx(0.15 * 10 / 60)
    assert found["weights/top_1_percent_share/positive"] == pytest.approx(0.1 * 10 / 55)
    assert found["weights/top_1_percent_share/negative"] == pytest.approx(0.01)


def test_a_step_without_tokens_and_numbers_that_are_not_finite():
    evaluated, log_probs, batch = case("gmpo")
    empty = replace(batch, response_mask=torch.zeros(ROWS, TIME, dtype=torch.bool))
    nothing = gmpo().evaluate(log_probs, empty), log_probs, empty
    found = metrics_of(nothing)
    assert found.keys() == metrics_of(case("gmpo")).keys()
    assert all(math.isnan(value) for value in found.values())
    assert metrics_of(nothing, (evaluated, log_probs, batch), nothing) == metrics_of((evaluated, log_probs, batch))
    log_probs[0, 0], batch.response_mask[0, 0] = math.nan, True
    broken = metrics_of((evaluated, log_probs, batch))
    assert math.isnan(broken["log_ratio/max"])
    assert math.isfinite(broken["weights/gate/max"])
    metrics = AggregationMetrics()
    metrics.update(evaluated, log_probs, batch)
    metrics.reset()
    metrics.update(*nothing)
    assert all(math.isnan(value) for value in metrics.compute().values())
