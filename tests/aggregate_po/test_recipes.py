"""Each recipe on the worked completion, both signs of the advantage, and how recipes weigh completions."""

from dataclasses import replace

import pytest
import torch

from aggregate_po import PolicyBatch, PolicyObjective, PowerMean, StepTotals
from aggregate_po.recipes import (
    dapo,
    dr_grpo,
    gmpo,
    gmpo_no_clip,
    gmpo_sequence_clip,
    gmpo_without_length_norm,
    grpo,
    grpo_wide_clip,
    gspo,
    hmpo,
    holder_po,
    pmpo,
)
from aggregate_po.transforms import PessimisticClip
from tests.aggregate_po.worked_example import assert_objective, close, worked_batch

EACH = 0.27629273  # geometric mean over four

ORACLE = {
    "grpo +": (grpo(), 1, 1.02792539, [0, 0.15163266, 0, 0.27629273]),
    "grpo -": (grpo(), -1, -1.23717312, [-0.45552970, 0, -0.30535069, -0.27629273]),
    "grpo higher +": (grpo(0.2, 0.28), 1, 1.05327608, [0, 0.15163266, 0.30535069, 0.27629273]),
    "grpo higher -": (grpo(0.2, 0.28), -1, -1.23717312, [-0.45552970, 0, -0.30535069, -0.27629273]),
    "grpo wide +": (grpo_wide_clip(), 1, 1.10577608, [0, 0.15163266, 0.30535069, 0.27629273]),
    "grpo wide -": (grpo_wide_clip(), -1, -1.20467312, [-0.45552970, 0, -0.30535069, -0.27629273]),
    "dapo +": (dapo(), 1, 1.05327608, [0, 0.15163266, 0.30535069, 0.27629273]),
    "dapo -": (dapo(), -1, -1.23717312, [-0.45552970, 0, -0.30535069, -0.27629273]),
    "dr_grpo, constant 8, +": (dr_grpo(8), 1, 0.51396269, [0, 0.07581633, 0, 0.13814636]),
    "dr_grpo, constant 8, -": (dr_grpo(8), -1, -0.61858656, [-0.22776485, 0, -0.15267535, -0.13814636]),
    "gmpo +": (gmpo(), 1, 1.05127110, [0, 0.26281777, 0.26281777, 0.26281777]),
    "gmpo -": (gmpo(), -1, -1.13314845, [-0.28328711, 0, -0.28328711, -0.28328711]),
    # Mean log ratio with 0.6 and 0.2 held at 0.15, then with -0.5 held at -0.3: exp(-0.025), exp(0.15).
    "gmpo, bounds -0.3 and 0.15, +": (gmpo(0.3, 0.15), 1, 0.97530991, [0, 0.24382748, 0, 0.24382748]),
    "gmpo, bounds -0.3 and 0.15, -": (gmpo(0.3, 0.15), -1, -1.16183424, [-0.29045856, 0, -0.29045856, -0.29045856]),
    "gmpo no clip +": (gmpo_no_clip(), 1, 1.10517092, [EACH] * 4),
    "gmpo no clip -": (gmpo_no_clip(), -1, -1.10517092, [-EACH] * 4),
    "gmpo sequence clip +": (gmpo_sequence_clip(0.3), 1, 1.07788415, [0] * 4),
    "gmpo sequence clip -": (gmpo_sequence_clip(0.3), -1, -1.10517092, [-EACH] * 4),
    "gmpo without length norm +": (gmpo_without_length_norm(), 1, 1.22140276, [0] + [1.22140276] * 3),
    "gmpo without length norm -": (gmpo_without_length_norm(), -1, -1.64872127, [-1.64872127, 0] + [-1.64872127] * 2),
    "hmpo +": (hmpo(), 1, 0.98945991, [0, 0.40353727, 0.20039068, 0.22146595]),
    "hmpo -": (hmpo(), -1, -1.06264152, [-0.15493049, 0, -0.23112912, -0.25543719]),
    "holder_po, p=2, +": (holder_po(2.0), 1, 1.2, [0] * 4),
    "holder_po, p=2, -": (holder_po(2.0), -1, -1.26503200, [-0.65613299, -0.07270161, -0.29481956, -0.24137784]),
    "gspo, wide, +": (gspo(0.2, 0.2), 1, 1.10517092, [EACH] * 4),
    "gspo, wide, -": (gspo(0.2, 0.2), -1, -1.10517092, [-EACH] * 4),
    "gspo +": (gspo(), 1, 1.0004, [0] * 4),
    "gspo -": (gspo(), -1, -1.10517092, [-EACH] * 4),
    "pmpo +": (pmpo(), 1, 1.09784478, [0, 0.16712170, 0.30005889, 0.27599167]),
    "pmpo -": (pmpo(), -1, -1.19396958, [-0.42713228, 0, -0.30429629, -0.27956335]),
    "M_2 +": (PolicyObjective(PowerMean(2.0)), 1, 1.26503200, [0.65613299, 0.07270161, 0.29481956, 0.24137784]),
    "M_0.5 +": (PolicyObjective(PowerMean(0.5)), 1, 1.14763099, [0.36151763, 0.20857753, 0.29598560, 0.28155022]),
    "M_-1 +": (PolicyObjective(PowerMean(-1)), 1, 1.02012162, [0.14277995, 0.42893468, 0.21300266, 0.23540434]),
    "M_2 -": (PolicyObjective(PowerMean(2.0)), -1, -1.26503200, [-0.65613299, -0.07270161, -0.29481956, -0.24137784]),
    "M_0.5 -": (PolicyObjective(PowerMean(0.5)), -1, -1.14763099, [-0.36151763, -0.20857753, -0.29598560, -0.28155022]),
    "M_-1 -": (PolicyObjective(PowerMean(-1)), -1, -1.02012162, [-0.14277995, -0.42893468, -0.21300266, -0.23540434]),
    "M_0.5 log clip +": (
        PolicyObjective(PowerMean(0.5), PessimisticClip.log(0.4, 0.4)),
        1,
        1.07985639,
        [0, 0.20232493, 0.28711274, 0.27311008],
    ),
    "M_0.5 log clip -": (
        PolicyObjective(PowerMean(0.5), PessimisticClip.log(0.4, 0.4)),
        -1,
        -1.16911863,
        [-0.36488637, 0, -0.29874369, -0.28417379],
    ),
}


@pytest.mark.parametrize(("objective", "advantage", "value", "weights"), ORACLE.values(), ids=ORACLE.keys())
def test_value_and_weights_of_the_worked_completion(objective, advantage, value, weights):
    assert_objective(objective, advantage, value, weights)


def test_advantage_scales_value_and_weights():
    value, weights = -1.13314845, [-0.28328711, 0, -0.28328711, -0.28328711]
    assert_objective(gmpo(), -2.5, 2.5 * value, [2.5 * weight for weight in weights])


def test_advantage_zero_is_worth_nothing():
    assert_objective(grpo(), 0, 0, [0] * 4)


@pytest.mark.parametrize(
    ("objective", "short", "long"),
    [
        (grpo(), 1 / (2 * 2), 3 / (2 * 4)),
        (gmpo(), 1 / (2 * 2), 3 / (2 * 4)),
        (dapo(), 1 / 6, 3 / 6),
        (dr_grpo(10), 1 / (10 * 2), 3 / (10 * 2)),
        (gmpo_without_length_norm(), 1 / 2, 3 / 2),
    ],
    ids=["grpo", "gmpo", "dapo", "dr_grpo", "gmpo_without_length_norm"],
)
def test_weights_on_policy_follow_the_normalizer(objective, short, long):
    """Two completions of lengths 2 and 4, advantages 1 and 3, all ratios 1; in full double precision."""
    mask = torch.tensor([[1, 1, 0, 0], [1, 1, 1, 1]])
    batch = PolicyBatch(torch.zeros(2, 4, dtype=torch.float64), mask, torch.tensor([1.0, 3.0], dtype=torch.float64))
    total = objective.gradient_weights(torch.zeros(2, 4, dtype=torch.float64), batch).total
    close(total, [[short, short, 0, 0], [long] * 4], tolerance=1e-15)


@pytest.mark.parametrize(
    ("progress", "value"), [(0.0, 1.26503200), (0.5, 1.10517092), (0.75, 1.02012162)], ids=["p=2", "p=0", "p=-1"]
)
def test_holder_po_moves_its_exponent_from_two_to_minus_two(progress, value):
    log_probs, batch = worked_batch(-1)
    close(holder_po()(log_probs, replace(batch, totals=StepTotals(1, 4, progress=progress))), -value)


def test_holder_po_at_exponent_zero_is_gspo_and_with_a_token_clip_gmpo():
    log_probs, batch = worked_batch(1)
    torch.testing.assert_close(holder_po(0.0)(log_probs, batch), gspo(0.2, 0.2)(log_probs, batch))
    token_clipped = PolicyObjective(PowerMean(0.0), PessimisticClip.log(0.4, 0.4))
    torch.testing.assert_close(token_clipped(log_probs, batch), gmpo()(log_probs, batch))


def test_holder_po_at_exponent_one_is_not_grpo():
    """It clips the mean, 1.1888 here, and not the tokens."""
    log_probs, batch = worked_batch(1)
    close(holder_po(1.0)(log_probs, batch), 1.188805784)


def test_group_of_mixed_signs_may_be_larger_under_gmpo():
    """The mean inequality bounds each completion, not a sum with cancellation."""
    log_probs = torch.tensor([[2.0, 0.5], [1.25, 1.25]], dtype=torch.float64).log()
    batch = PolicyBatch(
        torch.zeros(2, 2, dtype=torch.float64), torch.ones(2, 2), torch.tensor([1.0, -1.0], dtype=torch.float64)
    )
    arithmetic = grpo(clip_low=1.0, clip_high=float("inf"))
    close(arithmetic(log_probs, batch), 0.0, tolerance=1e-15)
    close(gmpo_no_clip()(log_probs, batch), -0.125, tolerance=1e-15)
