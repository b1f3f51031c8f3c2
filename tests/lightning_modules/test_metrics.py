"""The metrics of an optimizer step, on numbers worked by hand."""

import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from lightning import Trainer

from aggregate_po import GradientWeights, PolicyBatch
from aggregate_po.recipes import dapo, gmpo, grpo, gspo, pmpo
from lightning_modules.metrics import GradientWeightMetrics, UpdateMetrics


def worked_case():
    """Two completions of two and three tokens; ratios 2, 1/2 and 1, 1, 4; padding that must not count."""
    mask = torch.tensor([[True, True, False], [True, True, True]])
    log_ratio = torch.tensor([[2.0, 0.5, 999.0], [1.0, 1.0, 4.0]]).log()
    old = torch.full((2, 3), -1.5)
    batch = PolicyBatch(old, mask, torch.tensor([1.0, -1.0]))
    column = torch.ones(2, 1)
    weights = GradientWeights(
        completion=column,
        advantages=torch.tensor([[1.0], [-1.0]]),
        magnitude=column,
        concentration=torch.tensor([[0.5, 0.5, 0.0], [1.0, 0.0, 0.0]]),
        gate=torch.ones(2, 3),
        penalty=torch.zeros(2, 3),
        clipped=torch.tensor([[True, False, False], [False, True, True]]),
        overflow=torch.tensor([[False, True, False], [False, False, False]]),
    )
    return weights, old + log_ratio, batch


EXPECTED = {
    "ratio/min": 0.5,
    "ratio/max": 4.0,
    "ratio/mean": (2 + 0.5 + 1 + 1 + 4) / 5,
    "kl_old": -math.log(4) / 5,
    "clip_ratio/low_mean": 2 / 5,
    "clip_ratio/high_mean": 1 / 5,
    "clip_ratio/region_mean": 3 / 5,
    "weights/overflow": 1 / 5,
    "weights/ess_fraction": (2 / 2 + 1 / 3) / 2,
    "weights/entropy": math.log(2) / 2,
}
QUANTILES = {"ratio/quantile_05": 0.5, "ratio/quantile_50": 1.0, "ratio/quantile_95": 4.0}
NOTHING = dict.fromkeys([*EXPECTED, *QUANTILES], math.nan)


def metrics_of(*updates):
    metrics = GradientWeightMetrics()
    for update in updates:
        metrics.update(*update)
    return {name: float(value) for name, value in metrics.compute().items()}


def test_metrics_worked_by_hand():
    metrics = metrics_of(worked_case())
    assert {name: metrics.pop(name) for name in QUANTILES} == pytest.approx(QUANTILES, rel=0.03)
    assert metrics == pytest.approx(EXPECTED, rel=1e-6)


def test_quantiles_of_the_ratio():
    """Of a normal log ratio, to 2 % of the log; and exactly 1 where nothing has moved."""
    generator = torch.Generator().manual_seed(0)
    log_probs = 0.1 * torch.randn(200, 100, generator=generator)
    batch = PolicyBatch(torch.zeros(200, 100), torch.ones(200, 100), torch.ones(200))
    metrics = metrics_of((grpo().gradient_weights(log_probs, batch), log_probs, batch))
    for name, fraction in (("05", 0.05), ("50", 0.5), ("95", 0.95)):
        expected = log_probs.flatten().quantile(fraction).exp()
        assert metrics[f"ratio/quantile_{name}"] == pytest.approx(float(expected), rel=0.004)
    still = metrics_of((grpo().gradient_weights(0 * log_probs, batch), 0 * log_probs, batch))
    assert [still[f"ratio/quantile_{name}"] for name in ("05", "50", "95")] == [1.0, 1.0, 1.0]


def test_exponents_that_a_rule_chose():
    log_probs = torch.tensor([[0.5, -0.5, 0.3], [0.1, 0.2, 0.9], [0.0, 0.0, 0.0]])
    mask = torch.tensor([[1, 1, 1], [1, 1, 1], [0, 0, 0]])
    batch = PolicyBatch(torch.zeros(3, 3), mask, torch.tensor([1.0, 1.0, 1.0]))
    evaluated = pmpo().evaluate(log_probs.requires_grad_(), batch)
    exponents = evaluated.exponents[:2].tolist()
    assert exponents[0] != exponents[1]
    metrics = GradientWeightMetrics()
    metrics.update(evaluated.weights, log_probs, batch, evaluated.exponents)
    found = {name: float(value) for name, value in metrics.compute().items() if name.startswith("exponent/")}
    assert found == pytest.approx(
        {
            "exponent/mean": sum(exponents) / 2,
            "exponent/min": min(exponents),
            "exponent/max": max(exponents),
        }
    )
    assert gmpo().evaluate(log_probs, batch).exponents is None


def test_clips_count_as_low_or_high_by_the_sign_of_the_advantage():
    weights, log_probs, batch = worked_case()
    swapped = metrics_of((replace(weights, advantages=-weights.advantages), log_probs, batch))
    assert swapped["clip_ratio/low_mean"] == pytest.approx(1 / 5)
    assert swapped["clip_ratio/high_mean"] == pytest.approx(2 / 5)
    neither = metrics_of((replace(weights, advantages=torch.zeros(2, 1)), log_probs, batch))
    assert neither["clip_ratio/region_mean"] == 0


def test_clips_of_a_real_objective():
    """Ratios above 1.2 are clipped where the advantage is positive, below 0.8 where it is negative."""
    log_probs = torch.tensor([[1.5, 0.5, 1.0], [1.5, 0.5, 0.7]]).log()
    batch = PolicyBatch(torch.zeros(2, 3), torch.ones(2, 3), torch.tensor([1.0, -1.0]))
    metrics = metrics_of((grpo().gradient_weights(log_probs, batch), log_probs, batch))
    assert metrics["clip_ratio/high_mean"] == pytest.approx(1 / 6)
    assert metrics["clip_ratio/low_mean"] == pytest.approx(2 / 6)
    assert metrics["clip_ratio/region_mean"] == pytest.approx(3 / 6)


def test_overflow_of_a_real_objective():
    log_probs = torch.tensor([[0.0, 25.0, -25.0, 0.0]])
    batch = PolicyBatch(torch.zeros(1, 4), torch.ones(1, 4), torch.tensor([1.0]))
    metrics = metrics_of((gmpo().gradient_weights(log_probs, batch), log_probs, batch))
    assert metrics["weights/overflow"] == 0.5
    assert metrics["kl_old"] == 0


@pytest.mark.parametrize("size", [1.0, 80.0, 800.0])
def test_metrics_of_finite_numbers_are_finite(size):
    log_probs = torch.tensor([[0.0, size, -size / 2, 0.0]])
    batch = PolicyBatch(torch.zeros(1, 4), torch.ones(1, 4), torch.tensor([1.0]))
    metrics = metrics_of((gmpo().gradient_weights(log_probs, batch), log_probs, batch))
    assert [name for name, value in metrics.items() if not math.isfinite(value)] == []


@given(
    st.sampled_from([grpo(), dapo(), gspo(), gmpo(), pmpo()]),
    st.integers(0, 2**32),
    st.lists(st.integers(0, 2), min_size=7, max_size=7),
)
def test_any_split_into_updates_gives_the_same_metrics(objective, seed, parts):
    generator = torch.Generator().manual_seed(seed)
    log_ratio = torch.randn(7, 5, generator=generator)
    mask = torch.rand(7, 5, generator=generator) < 0.7
    batch = PolicyBatch(torch.full((7, 5), -2.0), mask, torch.randn(7, generator=generator))
    log_probs = batch.old_log_probs + log_ratio
    together = metrics_of((objective.gradient_weights(log_probs, batch), log_probs, batch))
    updates = []
    for part in range(3):
        rows = torch.tensor([index for index, owner in enumerate(parts) if owner == part], dtype=torch.long)
        if len(rows):
            part = PolicyBatch(batch.old_log_probs[rows], mask[rows], batch.advantages[rows], batch.totals)
            updates.append((objective.gradient_weights(log_probs[rows], part), log_probs[rows], part))
    assert metrics_of(*updates) == pytest.approx(together, rel=1e-5, abs=1e-6)


def empty_case():
    _, log_probs, batch = worked_case()
    nothing = PolicyBatch(batch.old_log_probs, torch.zeros(2, 3), batch.advantages)
    return gmpo().gradient_weights(log_probs, nothing), log_probs, nothing


def test_a_step_without_tokens():
    assert metrics_of(empty_case()) == pytest.approx(NOTHING, nan_ok=True)


def test_an_empty_micro_batch_changes_nothing():
    assert metrics_of(empty_case(), worked_case(), empty_case()) == pytest.approx(metrics_of(worked_case()), rel=1e-6)


def test_reset_begins_a_new_step():
    metrics = GradientWeightMetrics()
    metrics.update(*worked_case())
    metrics.reset()
    metrics.update(*empty_case())
    again = {name: float(value) for name, value in metrics.compute().items()}
    assert again == pytest.approx(NOTHING, nan_ok=True)


def test_divergence_from_the_reference():
    """It is k3 of the log-probabilities, unless the batch has the divergence itself, as denoising steps have."""
    log_probs, none = torch.tensor([[math.log(2.0), 0.0, 9.0]]), torch.zeros(1, 3)
    mask = torch.tensor([[True, True, False]])
    batch = PolicyBatch(none, mask, torch.ones(1), ref_log_probs=none)

    def kl(batch):
        metrics = UpdateMetrics()
        metrics.update(torch.tensor(0.0), none, log_probs, batch)
        return metrics.compute(Trainer(accelerator="cpu", logger=False, enable_checkpointing=False))["kl"]

    assert kl(batch) == pytest.approx((0.5 + math.log(2.0) - 1) / 2)
    assert kl(replace(batch, ref_divergence=torch.tensor([[0.25, 0.75, 9.0]]))) == 0.5
