"""Each recipe on the worked completion, both signs of the advantage, and how recipes weigh completions."""

from dataclasses import replace

import pytest
import torch

from aggregate_po import LehmerMean, PolicyBatch, PolicyObjective, PowerMean, StepTotals, TokenRatios
from aggregate_po.recipes import (
    apmpo,
    cispo,
    dapo,
    dppo_kl,
    dppo_tv,
    dr_grpo,
    dro,
    drpo,
    espo,
    fspo,
    gmpo,
    gmpo_no_clip,
    gmpo_sequence_clip,
    gmpo_without_length_norm,
    gpg,
    grpo,
    grpo_dual_clip,
    grpo_off_policy_mask,
    grpo_wide_clip,
    gspo,
    gspo_token,
    hmpo,
    holder_po,
    luspo,
    p_gspo,
    pmpo,
    r2vpo,
    sapo,
    spo,
    sspo,
    sspo_arctan,
    tic_grpo,
    vespo,
)
from aggregate_po.transforms import PessimisticClip
from tests.aggregate_po.worked_example import LOG_RATIO, assert_objective, close, worked_batch

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
    "gspo_token, wide, +": (gspo_token(0.2, 0.2), 1, 1.10517092, [EACH] * 4),
    "gspo_token +": (gspo_token(), 1, 1.0004, [0] * 4),
    "luspo, wide, -": (luspo(0.2, 0.2), -1, -4 * 1.10517092, [-1.10517092] * 4),
    "luspo +": (luspo(), 1, 4 * 1.0025, [0] * 4),
    "p_gspo +": (p_gspo(), 1, 1.19018661, [0.51805881] * 4),
    "p_gspo -": (p_gspo(), -1, -1.19018661, [-0.51805881] * 4),
    "p_gspo, square root, +": (p_gspo(0.5), 1, 1.2, [0] * 4),
    "p_gspo, square root, wide, +": (p_gspo(0.5, clip_high=0.3), 1, 1.22140276, [0.61070138] * 4),
    "p_gspo, square root, -": (p_gspo(0.5), -1, -1.22140276, [-0.61070138] * 4),
    # The sum of the log ratios is 0.4, and the band 0.1 * sqrt(4) = 0.2.
    "fspo +": (fspo(0.1), 1, 1.22140276, [0] * 4),
    "fspo -": (fspo(0.1), -1, -1.49182470, [-1.49182470] * 4),
    "fspo, wide, +": (fspo(0.21), 1, 1.49182470, [1.49182470] * 4),
    "tic_grpo +": (tic_grpo(), 1, 1.2, [0] * 4),
    "tic_grpo, wide, +": (tic_grpo(0.5), 1, 1.491824698, [1.491824698] * 4),
    "tic_grpo -": (tic_grpo(), -1, -1.491824698, [-1.491824698] * 4),
    "sapo +": (sapo(), 1, 2.17896253, [0.38646665, 0.14591197, 0.30163904, 0.27553012]),
    "sapo -": (sapo(), -1, -2.08279044, [-0.38019475, -0.14534195, -0.30126200, -0.27545211]),
    "sspo +": (sspo(), 1, 2.13895363, [0.29748489, 0.19366628, 0.29056119, 0.27996457]),
    "sspo -": (sspo(), -1, -2.04116448, [-0.28963553, -0.19558791, -0.28935307, -0.27974713]),
    "sspo_arctan +": (sspo_arctan(), 1, 1.09796561, [0.20183191, 0.21959312, 0.26393404, 0.27177367]),
    "sspo_arctan, sharp, +": (sspo_arctan(5.0), 1, 1.06757538, [0.02668938, 0.03681294, 0.13344692, 0.21351508]),
    "sspo_arctan, sharp, -": (sspo_arctan(5.0), -1, -1.06757538, [-0.02668938, -0.03681294, -0.13344692, -0.21351508]),
    "cispo, two bounds, +": (cispo(1.28, 0.8), 1, 1.10164342, [0.32, 0.2, 0.30535069, 0.27629273]),
    "cispo +": (cispo(), 1, 1.188805784, [0.45552970, 0.15163266, 0.30535069, 0.27629273]),
    "cispo, bound 1.5, -": (cispo(1.5), -1, -1.10827609, [-0.375, -0.15163266, -0.30535069, -0.27629273]),
    "vespo +": (vespo(), 1, 0.50891509, [0.50891509 / 4] * 4),
    "vespo -": (vespo(), -1, -1.24153759, [-1.24153759 / 4] * 4),
    "r2vpo, no bound, +": (
        r2vpo(bound=0, multiplier=0.1),
        1,
        1.16653635,
        [0.38062979, 0.16356523, 0.29182959, 0.27048114],
    ),
    "r2vpo -": (r2vpo(0.01, multiplier=0.1), -1, -1.21007522, [-0.53042961, -0.1397001, -0.31887179, -0.28210432]),
    "spo +": (spo(), 1, 0.63206982, [-1.41696795, 0.44994669, -0.03267673, 0.13100293]),
    "spo -": (spo(), -1, -1.74554175, [-2.32802735, 0.14668136, -0.64337811, -0.42158253]),
    # The cost has the weight of the advantage, so an advantage of 3 is three times one of 1.
    "spo, advantage 3": (spo(), 3, 1.89620946, [-4.25090385, 1.34984007, -0.09803018, 0.3930088]),
    "espo +": (espo(), 1, 1.188805784, [0.45552970, 0.15163266, 0.30535069, 0.27629273]),
    "gpg -": (gpg(), -1, -1, [-0.25] * 4),
    # Less half of beta times the mean of 0.36, 0.25, 0.04, 0.01.
    "dro +": (dro(0.5), 1, 1 - 0.25 * 0.165, [0.175, 0.3125, 0.225, 0.2375]),
    "grpo_dual_clip, bound 1.5, -": (
        grpo_dual_clip(max_ratio=1.5),
        -1,
        -(1.5 + 0.8 + 1.22140276 + 1.10517092) / 4,
        [0, 0, -0.30535069, -0.27629273],
    ),
    "grpo_off_policy_mask -": (grpo_off_policy_mask(-0.11), -1, -1.23717312, [0] * 4),
    "grpo_off_policy_mask, kept": (
        grpo_off_policy_mask(-0.09),
        -1,
        -1.23717312,
        [-0.45552970, 0, -0.30535069, -0.27629273],
    ),
    # Old probabilities 0.2231, 0.7788, 0.0498, 0.4724; new 0.4066, 0.4724, 0.0608, 0.5220.
    "dppo_tv +": (dppo_tv(0.1), 1, 1.188805784, [0, 0.15163266, 0.30535069, 0.27629273]),
    "dppo_tv, bound 1.5, -": (dppo_tv(max_ratio=1.5), -1, -1.10827609, [-0.375, 0, -0.30535069, -0.27629273]),
    # Divergences of the binary choices 0.0754, 0.1971, 0.0011, 0.0050 nats.
    "dppo_kl +": (dppo_kl(max_divergence_high=0.05), 1, 1.188805784, [0, 0.15163266, 0.30535069, 0.27629273]),
    "dppo_kl -": (dppo_kl(max_divergence_low=0.15), -1, -1.188805784, [-0.4555297, 0, -0.30535069, -0.27629273]),
    "pmpo +": (pmpo(), 1, 1.09784478, [0, 0.16712170, 0.30005889, 0.27599167]),
    "pmpo -": (pmpo(), -1, -1.19396958, [-0.42713228, 0, -0.30429629, -0.27956335]),
    "M_2 +": (PolicyObjective(PowerMean(2.0)), 1, 1.26503200, [0.65613299, 0.07270161, 0.29481956, 0.24137784]),
    "M_0.5 +": (PolicyObjective(PowerMean(0.5)), 1, 1.14763099, [0.36151763, 0.20857753, 0.29598560, 0.28155022]),
    "M_-1 +": (PolicyObjective(PowerMean(-1)), 1, 1.02012162, [0.14277995, 0.42893468, 0.21300266, 0.23540434]),
    "M_2 -": (PolicyObjective(PowerMean(2.0)), -1, -1.26503200, [-0.65613299, -0.07270161, -0.29481956, -0.24137784]),
    "M_0.5 -": (PolicyObjective(PowerMean(0.5)), -1, -1.14763099, [-0.36151763, -0.20857753, -0.29598560, -0.28155022]),
    "M_-1 -": (PolicyObjective(PowerMean(-1)), -1, -1.02012162, [-0.14277995, -0.42893468, -0.21300266, -0.23540434]),
    "L_2 +": (PolicyObjective(LehmerMean(2.0)), 1, 1.34614584, [0.88058879, -0.01697498, 0.28168250, 0.20084952]),
    "L_0.5 +": (PolicyObjective(LehmerMean(0.5)), 1, 1.10414853, [0.27929427, 0.28299488, 0.27110208, 0.27075730]),
    "L_2 -": (PolicyObjective(LehmerMean(2.0)), -1, -1.34614584, [-0.88058879, 0.01697498, -0.28168250, -0.20084952]),
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


@pytest.mark.parametrize(
    ("advantage", "value", "weights"),
    [
        (1, 1.04208572, [0.26827993, 0.42011529, 0.13633698, 0.23270579]),
        (-1, -1.33552585, [-0.64277946, 0.11685, -0.47436440, -0.31987967]),
    ],
    ids=["+", "-"],
)
def test_drpo_weighs_the_penalty_by_the_probability_of_the_token(advantage, value, weights):
    """Probabilities 0.1, 0.9, 0.5 and 0.3; squares of r - 1 are 0.67587932, 0.15481812, 0.04901918, 0.01106092."""
    old = torch.tensor([[0.1, 0.9, 0.5, 0.3]], dtype=torch.float64).log()
    log_probs = (old + LOG_RATIO).requires_grad_()
    batch = PolicyBatch(old, torch.ones(1, 4), torch.tensor([advantage], dtype=torch.float64))
    result = drpo(0.2)(log_probs, batch)
    result.backward()
    close(result, value)
    close(log_probs.grad, [weights])
    close(drpo(0.2).gradient_weights(log_probs, batch).total, [weights])


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
        (luspo(), 1 / 2, 3 / 2),
        (tic_grpo(), 1 / 2, 3 / 2),
        (cispo(), 1 / 6, 3 / 6),
        (vespo(), 1 / 6, 3 / 6),
        (sapo(), 1 / (2 * 2), 3 / (2 * 4)),
        (gspo_token(), 1 / (2 * 2), 3 / (2 * 4)),
    ],
    ids=["grpo", "gmpo", "dapo", "dr_grpo", "gmpo_no_n", "luspo", "tic_grpo", "cispo", "vespo", "sapo", "gspo_token"],
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


def test_p_gspo_at_exponent_one_is_gspo_and_at_zero_a_clipped_product():
    log_probs, batch = worked_batch(1)
    torch.testing.assert_close(p_gspo(1.0, 3e-4, 4e-4)(log_probs, batch), gspo()(log_probs, batch))
    torch.testing.assert_close(p_gspo(0.0, 1.0, 0.2)(log_probs, batch), tic_grpo()(log_probs, batch))


def test_holder_po_at_exponent_zero_is_gspo_and_with_a_token_clip_gmpo():
    log_probs, batch = worked_batch(1)
    torch.testing.assert_close(holder_po(0.0)(log_probs, batch), gspo(0.2, 0.2)(log_probs, batch))
    token_clipped = PolicyObjective(PowerMean(0.0), PessimisticClip.log(0.4, 0.4))
    torch.testing.assert_close(token_clipped(log_probs, batch), gmpo()(log_probs, batch))


@pytest.mark.parametrize(("reward", "exponent"), [(0.0, 1.0), (0.25, 0.81873075), (0.5, 0.67032005), (1.0, 0.44932896)])
def test_apmpo_lowers_its_exponent_as_rewards_rise(reward, exponent):
    """Here without its clip, so that the oracle is the power mean of that order."""
    log_probs, batch = worked_batch(-1)
    totals = StepTotals(1, 4, reward_mean=reward, reward_std=0.5)
    objective = apmpo(clip_low=1.0)
    close(objective.aggregator.exponents(TokenRatios.of(LOG_RATIO, totals=totals)), [exponent])
    expected = PolicyObjective(PowerMean(exponent))(log_probs, batch)
    close(objective(log_probs, replace(batch, totals=totals)), expected)


def test_apmpo_widens_its_upper_bound_with_steady_rewards():
    """Mean over deviation 1: the bound is 1.35231883, and the exponent 0.67032005."""
    log_probs, batch = worked_batch(1)
    totals = StepTotals(1, 4, reward_mean=0.5, reward_std=0.5)
    ratios = torch.tensor([1.35231883, 0.60653066, 1.22140276, 1.10517092], dtype=torch.float64)
    expected = (ratios**0.67032005).mean() ** (1 / 0.67032005)
    close(apmpo()(log_probs, replace(batch, totals=totals)), expected)
