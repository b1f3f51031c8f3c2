"""TRL: its eight loss types at both levels of the ratio, its KL penalty, its masks, and GMPO."""

import pytest
import torch

from tests.peers import require_peers

require_peers("trl")

from trl.experimental.gmpo import GMPOConfig, GMPOTrainer

from aggregate_po import ImportanceWeighted, K3Penalty
from aggregate_po.recipes import (
    cispo,
    dapo,
    dr_grpo,
    gmpo,
    grpo,
    grpo_dual_clip,
    grpo_off_policy_mask,
    gspo,
    luspo,
    sapo,
    vespo,
)
from tests.parity.cases import CASES, assert_close, assert_parity, by_hand, gradient_of, loss_of, value_of
from tests.parity.pairs import SHARED_PAIRS, TOKEN_PAIRS, TRL_PAIRS
from tests.parity.trl_losses import DEFAULTS, trl_loss, trl_run

PAIRS = {**SHARED_PAIRS, **TRL_PAIRS}
STEP = CASES["across the clip"]
OUTSIDE = CASES["far outside"]


def trl(loss_type="grpo", **settings):
    return lambda log_probs, batch: trl_loss(log_probs, batch, loss_type=loss_type, **settings)


def trl_gmpo(**settings):
    return trl(trainer=GMPOTrainer, **{"epsilon_low": 0.4, "epsilon_high": 0.4, **settings})


@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_loss_and_gradient(pair, case):
    assert_parity(trl(**pair.settings), pair.objective, case, values=pair.values)


@pytest.mark.parametrize("pair", TOKEN_PAIRS.values(), ids=TOKEN_PAIRS.keys())
def test_advantages_per_token(pair, case):
    assert_parity(trl(**pair.settings), pair.objective, case.with_token_advantages(), values=pair.values)


@pytest.mark.parametrize(
    ("settings", "objective"),
    [
        ({}, gmpo()),
        ({"epsilon_low": 0.3, "epsilon_high": 0.15}, gmpo(0.3, 0.15)),
        ({"beta": 0.04}, gmpo(penalties=[K3Penalty(0.04)])),
    ],
)
def test_gmpo(settings, objective, case):
    assert_parity(trl_gmpo(**settings), objective, case)


@pytest.mark.parametrize("threshold", [0.0, 0.1, 10.0])
def test_off_policy_sequence_mask(threshold, case):
    """TRL leaves a masked completion out of the value too; here it keeps the ratio that it has."""
    peer = trl("grpo", off_policy_mask_threshold=threshold)
    assert_parity(peer, grpo_off_policy_mask(threshold), case, values=False)


def test_a_masked_completion_has_a_value_here_and_none_in_trl():
    stale = by_hand([[-1.0, -1.0]], [-1.0])
    assert value_of(trl("grpo", off_policy_mask_threshold=0.5), stale) == 0
    assert_close(value_of(loss_of(grpo_off_policy_mask(0.5)), stale), torch.tensor(0.8, dtype=torch.float64), 1e-10)


def test_defaults():
    gate, kernel = sapo().token_transform, vespo().token_transform.transforms[1].transform
    assert (gate.tau_positive, gate.tau_negative) == (
        DEFAULTS["sapo_temperature_pos"],
        DEFAULTS["sapo_temperature_neg"],
    )
    assert tuple(vars(kernel).values()) == tuple(
        DEFAULTS[name] for name in ("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg")
    )
    assert grpo().token_transform.clip_low == DEFAULTS["epsilon"]
    assert gmpo().token_transform.log_clip_low == GMPOConfig.epsilon


@pytest.mark.parametrize("size", [1, 2, 3, 4])
@pytest.mark.parametrize(
    ("loss_type", "objective"),
    [("dapo", dapo()), ("cispo", cispo()), ("vespo", vespo())],
    ids=["dapo", "cispo", "vespo"],
)
def test_token_means_of_the_step_do_not_depend_on_its_micro_batches(loss_type, objective, size):
    parts = STEP.micro_batches(size)
    epsilon_high = {"dapo": 0.28, "cispo": 5.0, "vespo": 0.2}[loss_type]
    peer = trl(loss_type, accumulation=len(parts), epsilon_high=epsilon_high)
    accumulated = torch.cat([gradient_of(peer, part) for part in parts])
    assert_close(accumulated, gradient_of(loss_of(objective), STEP), 1e-10)


# --- where TRL departs -----------------------------------------------------------------------------------------------


def test_bnpo_is_a_token_mean_of_each_micro_batch():
    """The "bnpo" of TRL divides by the tokens of the micro-batch; there is no beta normalization in it."""
    objective, parts = dapo(0.2, 0.2), STEP.micro_batches(2)
    peer = trl("bnpo", accumulation=len(parts))
    ours = torch.cat([gradient_of(loss_of(objective), part) for part in parts])
    theirs = torch.cat([gradient_of(peer, part) for part in parts])
    assert_close(ours, gradient_of(trl("bnpo"), STEP), 1e-10)
    tokens = torch.tensor([part.batch.response_mask.sum() for part in parts])
    too_much = tokens.sum() / (len(parts) * tokens.repeat_interleave(2).unsqueeze(-1).double())
    assert_close(theirs, ours * too_much, 1e-10)
    assert too_much.max() > 1.3


@pytest.mark.parametrize(
    ("peer", "objective"),
    [
        (trl("grpo"), grpo()),
        (trl("dr_grpo", max_completion_length=40), dr_grpo(40)),
        (trl("luspo", importance_sampling_level="sequence"), luspo(0.2, 0.2)),
        (trl_gmpo(), gmpo()),
    ],
    ids=["grpo", "dr_grpo", "luspo", "gmpo"],
)
def test_a_completion_without_tokens_counts_in_the_mean(peer, objective):
    """As truncated completions are, if they are masked: six completions of which five are trained count as six."""
    masked = STEP.without(row=3)
    assert_close(gradient_of(peer, masked), gradient_of(loss_of(objective), masked) * 5 / 6, 1e-10)


def test_cispo_bounds_the_ratio_itself():
    """`epsilon_high=0.28` means a ratio of 0.28, where it means 1.28 for every other loss."""
    assert_parity(trl("cispo", epsilon_high=0.28), cispo(max_ratio=0.28), STEP, values=False)


def test_delta_below_the_clip_bounds_positive_advantages_and_frees_negative_ones():
    step = by_hand([[0.15], [0.15], [0.2]], [1.0, -1.0, -1.0])
    theirs = gradient_of(trl("grpo", delta=1.1, epsilon_high=0.2), step)
    ours = gradient_of(loss_of(grpo_dual_clip(max_ratio=1.1)), step)
    assert (theirs == 0).squeeze().tolist() == [True, False, True]
    assert (ours == 0).squeeze().tolist() == [False, True, True]


def test_the_default_kl_penalty_is_weighted_by_the_ratio():
    """Also on policy, where its gradient is that of half the square, `K2Penalty`."""

    assert DEFAULTS["use_bias_correction_kl"]
    assert_parity(trl("grpo", beta=0.04), grpo(penalties=[ImportanceWeighted(K3Penalty(0.04))]), STEP)
    assert_parity(trl("grpo", beta=0.04, use_bias_correction_kl=False), grpo(penalties=[K3Penalty(0.04)]), STEP)


def test_sapo_temperatures_are_rounded_to_single_precision():
    rounded = torch.tensor(1.05).item()
    assert_parity(trl("sapo"), sapo(1.0, rounded), STEP)
    difference = gradient_of(trl("sapo"), OUTSIDE) - gradient_of(loss_of(sapo()), OUTSIDE)
    assert 1e-11 < difference.abs().max() < 1e-8


def test_sapo_loses_digits_in_float32_where_its_gate_saturates():
    single = OUTSIDE.to(torch.float32)
    exact = gradient_of(trl("sapo"), single.to(torch.float64))

    def error(loss):
        trained = exact != 0
        return ((gradient_of(loss, single) - exact)[trained] / exact[trained]).abs().max()

    assert error(trl("sapo")) > 1e-4
    assert error(loss_of(sapo())) < 2e-6


def test_vespo_stops_at_a_ratio_of_1e_8():
    """Far below what any gradient can show: the kernel is there about 1e-15."""
    far = by_hand([[-10.0, -9.5]], [1.0])
    theirs, ours = gradient_of(trl("vespo"), far), gradient_of(loss_of(vespo()), far)
    assert_close(theirs / ours, torch.full_like(ours, 1e-8**2 / torch.tensor(-39.0).double().exp()), 1e-6)
    assert theirs.abs().max() < 1e-14


@pytest.mark.parametrize(
    ("peer", "objective"),
    [
        (trl("grpo"), grpo()),
        (trl("grpo", importance_sampling_level="sequence"), gspo()),
        (trl_gmpo(), gmpo()),
    ],
    ids=["grpo", "gspo", "gmpo"],
)
@pytest.mark.parametrize("advantage", [-1.0, 0.0])
def test_an_extreme_ratio_is_infinite(peer, objective, advantage):
    """One token of ratio e^100 in single precision, with a sign that the clip leaves free, and with none."""
    extreme = by_hand([[100.0], [0.1]], [advantage, 1.0], dtype=torch.float32)
    assert not torch.isfinite(value_of(peer, extreme))
    assert not torch.isfinite(gradient_of(peer, extreme)).all()
    assert torch.isfinite(value_of(loss_of(objective), extreme))
    assert torch.isfinite(gradient_of(loss_of(objective), extreme)).all()


def test_gmpo_ignores_the_correction_of_the_sampler():
    """The correction is off without `use_vllm`; with it, a weight of one half halves every loss but GMPO's."""
    weights = {"importance_sampling_ratio": torch.tensor(0.5)}
    for peer, factor in [(trl, 0.5), (trl_gmpo, 1.0)]:
        plain = value_of(peer(), STEP)
        corrected = peer(use_vllm=True, vllm_importance_sampling_correction=True, inputs=weights)
        switched_off = peer(use_vllm=True, vllm_importance_sampling_correction=False, inputs=weights)
        assert_close(value_of(corrected, STEP), factor * plain, 1e-10)
        assert value_of(switched_off, STEP) == plain
        assert value_of(peer(inputs=weights), STEP) == plain


@pytest.mark.parametrize(
    ("settings", "objective"),
    [({}, grpo()), ({"trainer": GMPOTrainer}, gmpo(0.2))],
    ids=["grpo", "gmpo"],
)
def test_clip_fraction_counts_tokens_that_lose_their_gradient(settings, objective, case):
    _, metrics = trl_run(case.log_probs, case.batch, loss_type="grpo", **settings)
    clipped = objective.gradient_weights(case.log_probs, case.batch).clipped
    assert metrics["clip_ratio/region_mean"] == pytest.approx(float(clipped.sum() / case.batch.totals.tokens), rel=1e-6)
