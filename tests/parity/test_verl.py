"""verl: its twelve registered losses in every reduction, and its KL penalties."""

from dataclasses import replace

import pytest
import torch

from tests.peers import require_peers

require_peers("trl", "verl")

from trl.experimental.gmpo import GMPOTrainer
from verl.trainer.config import RolloutCorrectionConfig
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY, agg_loss

from aggregate_po import (
    ConstantLength,
    K1Penalty,
    K2Penalty,
    K3Penalty,
    PolicyBatch,
    PolicyObjective,
    Product,
    SequenceMean,
    TokenMean,
)
from aggregate_po.normalizers import LengthWeighted
from aggregate_po.recipes import (
    cispo,
    dppo_kl,
    dppo_tv,
    dro,
    espo,
    gmpo,
    gpg,
    grpo,
    grpo_dual_clip,
    gspo,
    gspo_token,
    sapo,
)
from aggregate_po.transforms import StraightThrough, TwoSidedClip
from tests.parity.cases import (
    CASES,
    Case,
    assert_close,
    assert_parity,
    by_hand,
    gradient_of,
    loss_of,
    replaced,
    value_of,
)
from tests.parity.pairs import Pair
from tests.parity.trl_losses import trl_run
from tests.parity.verl_losses import verl_kl_loss, verl_loss, verl_run

STEP = CASES["across the clip"]
WIDE = {"clip_ratio_low": 0.2, "clip_ratio_high": 0.28}

MODES = {
    "token-mean": TokenMean(),
    "seq-mean-token-mean": SequenceMean(),
    "seq-mean-token-sum": LengthWeighted(),
    "seq-mean-token-sum-norm": ConstantLength(40),
}


PAIRS = {
    "vanilla": Pair({"name": "vanilla", "clip_ratio_c": 2.0, **WIDE}, grpo_dual_clip(0.2, 0.28, 2.0)),
    "dppo_tv": Pair(
        {"name": "dppo_tv", "clip_ratio_low": 0.1, "clip_ratio_high": 0.05, "clip_ratio_c": 2.5},
        dppo_tv(max_increase=0.05, max_decrease=0.1, max_ratio=2.5),
        values=False,
    ),
    "dppo_kl": Pair(
        {"name": "dppo_kl", "clip_ratio_low": 0.02, "clip_ratio_high": 0.05, "clip_ratio_c": 2.5},
        dppo_kl(max_divergence_low=0.02, max_divergence_high=0.05, max_ratio=2.5),
        values=False,
    ),
    "gspo": Pair({"name": "gspo", "clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4}, gspo_token()),
    "gspo, wide": Pair({"name": "gspo", **WIDE}, gspo_token(0.2, 0.28)),
    "gpg": Pair({"name": "gpg"}, gpg(), values=False),
    "dro": Pair({"name": "dro", "options": {"dro_beta": 0.5}}, dro(0.5), values=False),
    "cispo": Pair({"name": "cispo", **WIDE}, cispo(max_ratio=1.28, min_ratio=0.8), values=False),
    # No covariance lies between equal bounds, and a coefficient of 0 makes the selected tokens like the others.
    "clip_cov, nothing selected": Pair(
        {"name": "clip_cov", "options": {"clip_cov_lb": 1.0, "clip_cov_ub": 1.0}, **WIDE}, grpo(0.2, 0.28)
    ),
    "kl_cov, coefficient 0": Pair({"name": "kl_cov", "options": {"ppo_kl_coef": 0.0}}, espo()),
}


def verl(name, **settings):
    return lambda log_probs, batch: verl_loss(log_probs, batch, name, **settings)


def verl_gmpo(**settings):
    return verl("geo_mean", **{"clip_ratio_low": 0.4, "clip_ratio_high": 0.4, **settings})


def bypass(**correction):
    return verl("bypass_mode", options={"rollout_correction": RolloutCorrectionConfig(**correction)})


def kl(estimator):
    return lambda log_probs, batch: verl_kl_loss(log_probs, batch, estimator)


def test_every_registered_loss_is_here():
    tested = {pair.settings["name"] for pair in PAIRS.values()} | {"sapo", "geo_mean", "bypass_mode"}
    assert tested == set(POLICY_LOSS_REGISTRY) - {"aggregate_po"}  # that of the adapter


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("pair", PAIRS.values(), ids=PAIRS.keys())
def test_loss_and_gradient(pair, mode, case):
    objective = replaced(pair.objective, normalizer=MODES[mode])
    assert_parity(verl(mode=mode, length=40, **pair.settings), objective, case, values=pair.values)


def test_sapo(case):
    assert_parity(verl("sapo"), sapo(), case)


def test_gspo_of_one_advantage_per_completion_is_gspo(case):
    assert_parity(verl("gspo", mode="seq-mean-token-mean", **WIDE), gspo(0.2, 0.28), case)


@pytest.mark.parametrize(("low", "high"), [(0.4, 0.4), (0.3, 0.15)])
def test_geo_mean(low, high, case):
    assert_parity(verl_gmpo(clip_ratio_low=low, clip_ratio_high=high), gmpo(low, high), case)


@pytest.mark.parametrize(
    "name", ["vanilla", "dppo_tv", "dppo_kl", "gspo, wide", "gpg", "dro", "cispo", "clip_cov, nothing selected"]
)
@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
def test_advantages_per_token(name, mode, case):
    pair = PAIRS[name]
    objective = replaced(pair.objective, normalizer=MODES[mode])
    assert_parity(verl(mode=mode, **pair.settings), objective, case.with_token_advantages(), values=pair.values)


@pytest.mark.parametrize("mode", MODES)
@pytest.mark.parametrize("size", [1, 4])
def test_micro_batches_add_up_to_the_step(mode, size):
    """With a completion that has no token, which counts in no reduction but the one of `geo_mean`."""
    step, objective = STEP.without(row=3), replaced(grpo_dual_clip(), normalizer=MODES[mode])
    peer = verl("vanilla", mode=mode, length=40)
    gradients = [gradient_of(peer, part) for part in step.micro_batches(size)]
    assert_close(torch.cat(gradients), gradient_of(loss_of(objective), step), 1e-10)


@pytest.mark.parametrize("mode", ["token-mean", "seq-mean-token-mean"])
@pytest.mark.parametrize(
    ("estimator", "penalty"),
    [("k1", K1Penalty(0.1)), ("k2", K2Penalty(0.1)), ("k3", K3Penalty(0.1)), ("low_var_kl", K3Penalty(0.1))],
    ids=["k1", "k2", "k3", "low_var_kl"],
)
def test_kl_penalty(estimator, penalty, mode, case):
    def peer(log_probs, batch):
        policy_loss = verl_loss(log_probs, batch, "vanilla", mode=mode)
        return policy_loss + 0.1 * verl_kl_loss(log_probs, batch, estimator, mode)

    assert_parity(peer, replaced(grpo_dual_clip(), normalizer=MODES[mode], penalties=[penalty]), case)


def test_bypass_mode_with_a_clip_is_vanilla(case):
    assert_parity(bypass(loss_type="ppo_clip"), replaced(grpo_dual_clip(), normalizer=TokenMean()), case)


@pytest.mark.parametrize(
    ("rollout_is", "objective"), [(None, gpg()), ("token", cispo(max_ratio=1.5))], ids=["no correction", "token"]
)
def test_bypass_mode_without_a_clip(rollout_is, objective, case):
    """A truncated importance weight on the log-probability is CISPO."""
    peer = bypass(loss_type="reinforce", rollout_is=rollout_is, rollout_is_threshold=1.5)
    assert_parity(peer, objective, case, values=False)


def test_bypass_mode_with_the_weight_of_the_completion(case):
    weight = StraightThrough(TwoSidedClip(0.0, 1.5))
    correction = RolloutCorrectionConfig(loss_type="reinforce", rollout_is="sequence", rollout_is_threshold=1.5)
    peer = verl("bypass_mode", mode="seq-mean-token-sum", options={"rollout_correction": correction})
    assert_parity(peer, PolicyObjective(Product(), sequence_transform=weight), case, values=False)


# --- where verl departs ----------------------------------------------------------------------------------------------


def test_vanilla_caps_the_cost_of_a_negative_advantage():
    """At a ratio of 3, by default; the GRPO of the paper, and of `grpo`, does not."""
    step = by_hand([[1.6]], [-1.0])
    ratio = torch.tensor(1.6).double().exp()
    assert_close(value_of(verl("vanilla"), step), torch.tensor(3.0).double(), 1e-10)
    assert_close(value_of(loss_of(grpo()), step), ratio, 1e-6)
    assert gradient_of(verl("vanilla"), step).item() == 0
    assert_close(gradient_of(loss_of(grpo()), step), ratio.reshape(1, 1), 1e-6)


@pytest.mark.parametrize(("name", "ours"), [("dppo_tv", dppo_tv), ("dppo_kl", dppo_kl)])
def test_dppo_truncates_at_the_bound_of_dual_clip(name, ours):
    """The 20 in the code is for configurations without `clip_ratio_c`; the configuration always has one, 3."""
    step = by_hand([[2.0]], [-1.0])
    assert gradient_of(verl(name), step).item() == 3
    assert_parity(verl(name, clip_ratio_c=20.0), ours(), step, values=False)
    assert_close(gradient_of(loss_of(ours()), step), torch.tensor([[2.0]]).double().exp(), 1e-10)


def test_gspo_weighs_completions_by_their_length_by_default():
    """The actor's reduction is a token mean unless it is told otherwise; the paper's is a mean of completions."""
    assert_parity(verl("gspo", **WIDE), replaced(gspo(0.2, 0.28), normalizer=TokenMean()), STEP)
    difference = gradient_of(verl("gspo", **WIDE), STEP) - gradient_of(loss_of(gspo(0.2, 0.28)), STEP)
    assert difference.abs().max() > 0.02


def test_gspo_is_flat_beyond_a_log_ratio_of_10():
    step = by_hand([[12.0]], [-1.0])
    assert gradient_of(verl("gspo"), step).item() == 0
    assert_close(gradient_of(loss_of(gspo_token()), step), torch.tensor([[12.0]]).double().exp(), 1e-10)


def test_sapo_ignores_the_reduction():
    token_mean = gradient_of(verl("sapo", mode="token-mean"), STEP)
    assert torch.equal(token_mean, gradient_of(verl("sapo", mode="seq-mean-token-mean"), STEP))
    ours = gradient_of(loss_of(replaced(sapo(), normalizer=TokenMean())), STEP)
    assert (token_mean - ours).abs().max() > 0.02


def test_cispo_raises_small_ratios():
    """The bounds are those of the clip, on both sides; the paper has no lower one."""
    step = by_hand([[-2.0]], [1.0])
    assert gradient_of(verl("cispo"), step).item() == pytest.approx(-0.8)
    assert gradient_of(loss_of(cispo()), step).item() == pytest.approx(-torch.tensor(-2.0).exp().item())


def test_sums_over_a_constant_follow_the_padding_by_default():
    mode = "seq-mean-token-sum-norm"
    wider = Case(
        torch.nn.functional.pad(STEP.log_probs, (0, 12)),
        PolicyBatch(
            torch.nn.functional.pad(STEP.batch.old_log_probs, (0, 12)),
            torch.nn.functional.pad(STEP.batch.response_mask, (0, 12)),
            STEP.batch.advantages,
        ),
    )
    assert_close(value_of(verl("vanilla", mode=mode), wider), value_of(verl("vanilla", mode=mode), STEP) / 2, 1e-10)
    ours = loss_of(replaced(grpo_dual_clip(), normalizer=ConstantLength(12)))
    assert_close(value_of(ours, wider), value_of(ours, STEP), 1e-10)


@pytest.mark.parametrize("micro_batches", [1, 2, 4, 8])
def test_the_gradient_of_geo_mean_grows_with_the_number_of_micro_batches(micro_batches):
    step = CASES["far outside"]
    parts = step.micro_batches(8 // micro_batches)
    theirs = torch.cat([gradient_of(verl_gmpo(), part) for part in parts])
    ours = torch.cat([gradient_of(loss_of(gmpo()), part) for part in parts])
    assert_close(ours, gradient_of(loss_of(gmpo()), step), 1e-10)
    assert_close(theirs, ours * micro_batches, 1e-10)


def test_geo_mean_counts_completions_without_tokens():
    masked = STEP.without(row=3)
    assert_close(gradient_of(verl_gmpo(), masked), gradient_of(loss_of(gmpo()), masked) * 5 / 6, 1e-10)


def test_geo_mean_ignores_the_reduction():
    assert value_of(verl_gmpo(mode="token-mean"), STEP) == value_of(verl_gmpo(mode="seq-mean-token-sum"), STEP)


def test_geo_mean_is_infinite_where_a_ratio_is():
    extreme = by_hand([[800.0], [0.1]], [-1.0, 1.0])
    assert not torch.isfinite(value_of(verl_gmpo(), extreme))
    assert not torch.isfinite(gradient_of(verl_gmpo(), extreme)).all()
    assert torch.isfinite(value_of(loss_of(gmpo()), extreme))
    assert torch.isfinite(gradient_of(loss_of(gmpo()), extreme)).all()


def test_geo_mean_averages_advantages_per_token():
    """Each token is clipped by its own sign and then weighted by the mean; here each keeps its own advantage."""
    mixed = STEP.with_token_advantages()
    assert torch.isfinite(value_of(verl_gmpo(), mixed))
    assert not torch.allclose(gradient_of(verl_gmpo(), mixed), gradient_of(loss_of(gmpo()), mixed))


def test_clip_fractions_of_gmpo_mean_different_things():
    """Of 22 tokens, three lose their gradient; a fourth is outside the bounds on the side that is free."""
    up, down = [0.5, 0.6, -0.5] + [0.0] * 8, [-0.7] + [0.0] * 10
    step = by_hand([up, down], [1.0, -1.0])
    _, verl_metrics = verl_run(step.log_probs, step.batch, "geo_mean", clip_ratio_low=0.4, clip_ratio_high=0.4)
    both_signs = verl_metrics["actor/pg_clipfrac"] + verl_metrics["actor/pg_clipfrac_lower"]
    settings = {"trainer": GMPOTrainer, "epsilon_low": 0.4, "epsilon_high": 0.4}
    _, trl_metrics = trl_run(step.log_probs, step.batch, **settings)
    clipped = gmpo().gradient_weights(step.log_probs, step.batch).clipped
    assert both_signs == pytest.approx(4 / 22)
    assert trl_metrics["clip_ratio/region_mean"] == pytest.approx(3 / 22)
    assert clipped.sum() / step.batch.totals.tokens == pytest.approx(3 / 22)


def test_a_length_is_that_plus_1e_8():
    """Single precision, of a count of booleans plus a fraction, loses the 1e-8; a float64 mask shows it."""
    token = torch.ones(1, 1, dtype=torch.float64)
    assert agg_loss(token, token.bool(), "seq-mean-token-mean") == 1
    assert agg_loss(token, token, "seq-mean-token-mean") == 1 / (1 + 1e-8)


def test_k3_is_flat_where_it_exceeds_10():
    step = by_hand([[-3.0]], [0.0])
    theirs = kl("k3")
    ours = loss_of(replaced(gpg(), penalties=[K3Penalty(1.0)]))
    assert value_of(theirs, step) == 10
    assert gradient_of(theirs, step).item() == 0
    assert value_of(ours, step).item() == pytest.approx(torch.tensor(3.0).double().expm1() - 3)
    assert gradient_of(ours, step).item() == pytest.approx(1 - torch.tensor(3.0).double().exp())


def test_a_plus_after_the_estimator_gives_it_the_gradient_of_k2():
    k2, k3 = (loss_of(replaced(gpg(), penalties=[penalty])) for penalty in (K2Penalty(1.0), K3Penalty(1.0)))
    step = Case(STEP.log_probs, replace(STEP.batch, advantages=torch.zeros_like(STEP.batch.advantages)))
    assert_close(gradient_of(kl("k3+"), step), gradient_of(k2, step), 1e-10)
    assert_close(value_of(kl("k3+"), step), value_of(k3, step), 1e-10)


@pytest.mark.parametrize("micro_batches", [1, 2, 4, 8])
@pytest.mark.parametrize(
    ("name", "options", "objective"),
    [
        ("kl_cov", {"ppo_kl_coef": 1.0}, espo()),
        ("clip_cov", {"clip_cov_lb": -100.0, "clip_cov_ub": 100.0}, grpo()),
    ],
    ids=["kl_cov", "clip_cov"],
)
def test_a_covariance_selects_tokens_in_each_micro_batch(name, options, objective, micro_batches):
    """At least one in each, by rank or by lot among its own tokens: no part that sees a completion can say that."""
    step = CASES["far outside"]
    step = Case(step.log_probs, replace(step.batch, advantages=torch.tensor([1.0, -1.0] * 4, dtype=torch.float64)))
    parts = step.micro_batches(8 // micro_batches)
    theirs = torch.cat([gradient_of(verl(name, options=options), part) for part in parts])
    ours = gradient_of(loss_of(replaced(objective, normalizer=TokenMean())), step)
    assert ((theirs - ours).abs() > 1e-10).sum() == micro_batches
