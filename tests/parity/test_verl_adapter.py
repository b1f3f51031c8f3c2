"""Objectives inside verl: its own losses with the same gradient, micro-batches, weights, estimators and refusals."""

import math
import re
import subprocess
import sys
import tomllib
from dataclasses import replace
from importlib import import_module
from pathlib import Path

import numpy as np
import pytest
import torch
from tensordict import TensorDict

from tests.peers import require_peers

require_peers("verl")

from verl.trainer.config import AlgoConfig, RolloutCorrectionConfig
from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY, get_adv_estimator_fn, get_policy_loss_fn
from verl.workers.config import ActorConfig, PolicyLossConfig
from verl.workers.utils.losses import ppo_loss

from aggregate_po import ArithmeticMean, GeometricMean, K3Penalty, LehmerMean, PolicyBatch, PolicyObjective, StepTotals
from aggregate_po.adapters.verl import NAME, ObjectiveLossConfig
from aggregate_po.adapters.verl_estimators import advantages_of, register_estimator
from aggregate_po.advantages import GroupedRewards, GroupNormalized, WhitenedReturns
from aggregate_po.recipes import ctpo, dapo, dr_grpo, gmpo, grpo, gspo, pmpo, real
from tests.parity.cases import CASES, assert_close, assert_parity, differentiate
from tests.parity.verl_losses import per_token, verl_loss

STEP = CASES["across the clip"]


def configuration(settings, totals, ranks=1, **actor):
    info = {"dp_size": ranks, "batch_num_tokens": totals.tokens, "global_batch_size": totals.completions}
    return ActorConfig(
        strategy="fsdp",
        rollout_n=1,
        ppo_micro_batch_size_per_gpu=1,
        policy_loss=settings,
        global_batch_info={**info, "loss_scale_factor": None},
        **actor,
    )


def adapted(log_probs, batch, objective, weights=None, correction="token", ranks=1):
    """Loss of a micro-batch, as verl calls it, and the metrics."""
    settings = ObjectiveLossConfig(objective=objective, correction=correction)
    return get_policy_loss_fn(NAME)(
        old_log_prob=batch.old_log_probs,
        log_prob=log_probs,
        advantages=per_token(batch.advantages, log_probs) * batch.response_mask,
        response_mask=batch.response_mask,
        loss_agg_mode="token-mean",
        config=configuration(settings, batch.totals, ranks),
        rollout_is_weights=weights,
    )


PAIRS = {
    "token-mean": ({"name": "vanilla", "clip_ratio_c": 1e9, "mode": "token-mean"}, dapo(0.2, 0.2)),
    "seq-mean-token-mean": ({"name": "vanilla", "clip_ratio_c": 1e9, "mode": "seq-mean-token-mean"}, grpo()),
    "seq-mean-token-sum-norm": (
        {"name": "vanilla", "clip_ratio_c": 1e9, "mode": "seq-mean-token-sum-norm", "length": 40},
        dr_grpo(40, 0.2, 0.2),
    ),
    "gspo": (
        {"name": "gspo", "mode": "seq-mean-token-mean", "clip_ratio_low": 3e-4, "clip_ratio_high": 4e-4},
        gspo(3e-4, 4e-4),
    ),
    "geo_mean": ({"name": "geo_mean", "clip_ratio_low": 0.4, "clip_ratio_high": 0.4}, gmpo()),
}


@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_the_loss_is_that_of_verl_and_ours(name, case):
    options, objective = PAIRS[name]

    def theirs(log_probs, batch):
        return verl_loss(log_probs, batch, **options)

    def ours(log_probs, batch):
        return adapted(log_probs, batch, objective)[0]

    assert_parity(theirs, objective, case)
    for one, other in zip(differentiate(ours, case), differentiate(theirs, case), strict=True):
        assert_close(one, other, 1e-10)


@pytest.mark.parametrize(
    "objective", [gmpo(), pmpo(), ctpo(), PolicyObjective(LehmerMean(2.0))], ids=["gmpo", "pmpo", "ctpo", "own"]
)
@pytest.mark.parametrize(("micro_batches", "ranks"), [(1, 1), (3, 1), (6, 1), (6, 2)])
def test_micro_batches_and_ranks_change_nothing(objective, micro_batches, ranks):
    expected = differentiate(lambda log_probs, batch: -objective(log_probs, batch), STEP)
    total, gradient = 0.0, torch.zeros_like(STEP.log_probs)
    for rows in torch.arange(len(STEP.log_probs)).chunk(micro_batches):
        part = type(STEP)(STEP.log_probs[rows], STEP.batch.select(rows))
        loss, slope = differentiate(lambda log_probs, batch: adapted(log_probs, batch, objective, ranks=ranks)[0], part)
        total, gradient[rows] = total + loss / ranks, slope / ranks  # verl averages gradients over ranks
    assert_close(total, expected[0], 1e-10)
    assert_close(gradient, expected[1], 1e-10)


def test_advantages_that_differ_within_a_completion_are_per_token():
    generator = torch.Generator().manual_seed(1)
    advantages = torch.randn(STEP.log_probs.shape, generator=generator, dtype=torch.float64) * STEP.batch.response_mask
    case = type(STEP)(STEP.log_probs, replace(STEP.batch, advantages=advantages))
    expected = differentiate(lambda log_probs, batch: -gmpo()(log_probs, batch), case)
    found = differentiate(lambda log_probs, batch: adapted(log_probs, batch, gmpo())[0], case)
    assert_close(found[1], expected[1], 1e-10)


@pytest.mark.parametrize("masked", [False, True])
def test_weights_per_token_are_those_of_verl(masked):
    generator = torch.Generator().manual_seed(2)
    weights = 0.5 + torch.rand(STEP.log_probs.shape, generator=generator, dtype=torch.float64)
    if masked:
        weights = torch.where(torch.rand(weights.shape, generator=generator) < 0.3, 0, weights)

    def theirs(log_probs, batch):
        settings = configuration(PolicyLossConfig(), batch.totals)
        return get_policy_loss_fn("vanilla")(
            batch.old_log_probs,
            log_probs,
            per_token(batch.advantages, log_probs),
            batch.response_mask,
            "seq-mean-token-mean",
            settings,
            weights,
        )[0]

    value, gradient = differentiate(lambda log_probs, batch: adapted(log_probs, batch, grpo(), weights)[0], STEP)
    expected = differentiate(theirs, STEP)
    assert_close(gradient, expected[1], 1e-10)
    if not masked:  # a masked token has ratio one here, and value 0 in verl
        assert_close(value, expected[0], 1e-10)


def test_weights_per_completion_multiply_its_value():
    by_row = torch.linspace(0.0, 2.0, len(STEP.log_probs), dtype=torch.float64)
    weights = by_row.unsqueeze(-1).expand_as(STEP.log_probs)
    _, plain = differentiate(lambda log_probs, batch: adapted(log_probs, batch, gspo())[0], STEP)
    _, found = differentiate(lambda log_probs, batch: adapted(log_probs, batch, gspo(), weights, "sequence")[0], STEP)
    assert_close(found, plain * by_row.unsqueeze(-1), 1e-10)
    with pytest.raises(ValueError, match="sequence_transform"):
        adapted(STEP.log_probs, STEP.batch, gspo(), weights)


def test_weights_that_differ_within_a_completion_are_not_of_completions():
    weights = torch.where(STEP.batch.response_mask, 2.0, 0.0).double()
    adapted(STEP.log_probs, STEP.batch, gmpo(), weights, "sequence")  # padding does not count
    row = int(STEP.batch.response_mask.sum(dim=1).argmax())
    weights[row, STEP.batch.response_mask[row].nonzero()[-1]] = 1.9
    with pytest.raises(ValueError, match=r"differ within a completion, but `correction` is 'sequence'; pass 'token'"):
        adapted(STEP.log_probs, STEP.batch, gmpo(), weights, "sequence")


def test_metrics_are_plain_numbers_by_the_names_of_the_library():
    _, metrics = adapted(STEP.log_probs, STEP.batch, gmpo())
    assert all(type(value) is float for value in metrics.values())
    assert 0 < metrics["actor/clip_ratio/region_mean"] < 1
    assert {"actor/ratio/mean", "actor/weights/ess_fraction", "actor/kl_old"} <= metrics.keys()


@pytest.mark.parametrize("correction", ["token", "sequence"])
@pytest.mark.parametrize("objective", [grpo(), pmpo(), gspo()], ids=["grpo", "pmpo", "gspo"])
def test_a_micro_batch_without_a_token_has_no_gradient_and_no_diagnostics(objective, correction):
    """All names of metrics stay, since verl refuses ranks that differ in the number of values."""
    masked = replace(STEP.batch, response_mask=torch.zeros_like(STEP.batch.response_mask))
    weights = None if correction == "token" else torch.zeros_like(STEP.log_probs)
    value, gradient = differentiate(
        lambda log_probs, batch: adapted(log_probs, batch, objective, weights, correction)[0],
        type(STEP)(STEP.log_probs, masked),
    )
    assert value == 0
    assert (gradient == 0).all()
    _, found = adapted(STEP.log_probs, masked, objective, weights, correction)
    assert found.keys() == adapted(STEP.log_probs, STEP.batch, objective)[1].keys()
    assert all(math.isnan(metric) for metric in found.values())


@pytest.mark.parametrize(
    ("settings", "error", "message"),
    [
        ({"objective": "holder_po"}, ValueError, "verl does not pass to a loss: `totals.progress` is None.*. Choose"),
        ({"objective": "apmpo"}, ValueError, "verl does not pass to a loss: `totals.reward_mean` is None.*. Choose"),
        (
            {"objective": "grpo_guard", "arguments": {"steps": 3}},
            ValueError,
            "verl does not pass to a loss: `scale` is None, but RatioNorm reads it of each token. Choose",
        ),
        ({"objective": grpo(penalties=[K3Penalty(0.1)])}, ValueError, "reads a reference.*actor.use_kl_loss"),
        ({"objective": real()}, ValueError, "compares whole groups, which verl splits"),
        ({"objective": "gmpo", "arguments": {"clip": 1}}, ValueError, "`arguments`"),
        ({"objective": gmpo(), "arguments": {"log_clip": 1}}, ValueError, "`objective` is no name"),
        ({"objective": ArithmeticMean()}, TypeError, "pass a PolicyObjective"),
        ({"correction": "both"}, ValueError, "`correction` is 'both'"),
        (
            {"clip_cov_ratio": 0.5},
            ValueError,
            "`clip_cov_ratio` is 0.5; pass nothing in its place.*: the objective replaces",
        ),
        (
            {"rollout_correction": RolloutCorrectionConfig(rollout_is="token")},
            ValueError,
            "`rollout_correction` is RolloutCorrectionConfig.*; set `algorithm.rollout_correction`.* leave it at",
        ),
        ({"loss_mode": "gspo"}, ValueError, "`loss_mode` is 'gspo', but the objective is the loss"),
    ],
    ids=range(12),
)
def test_what_verl_cannot_give_is_refused_at_once(settings, error, message):
    with pytest.raises(error, match=message):
        ObjectiveLossConfig(**settings)


ACTOR = {
    "clip_ratio": (0.5, "`clip_low` and `clip_high` for most"),
    "clip_ratio_low": (0.05, "`clip_low` and `clip_high` for most"),
    "clip_ratio_high": (0.28, "`clip_low` and `clip_high` for most"),
    "clip_ratio_c": (1.5, r"grpo_dual_clip with `max_ratio`, or a NegativeCap"),
    "tau_pos": (3.0, "sapo with `tau_positive`"),
    "tau_neg": (3.0, "sapo with `tau_negative`"),
    "loss_scale_factor": (7, r"dr_grpo with `max_completion_length`, or a ConstantLength"),
}


@pytest.mark.parametrize("name", ACTOR)
def test_an_option_of_the_actor_that_the_objective_replaces_is_refused(name):
    value, remedy = ACTOR[name]
    config = configuration(ObjectiveLossConfig(objective="gmpo"), STEP.batch.totals, **{name: value})
    arguments = STEP.batch.old_log_probs, STEP.log_probs, per_token(STEP.batch.advantages, STEP.log_probs)
    with pytest.raises(
        ValueError, match=rf"`actor.{name}` is {value}; pass .*{remedy}.*, and leave it at .*: the objective"
    ):
        get_policy_loss_fn(NAME)(*arguments, STEP.batch.response_mask, config=config)


@pytest.mark.parametrize(
    "actor",
    [
        {"clip_ratio_low": None, "clip_ratio_high": None},
        {"loss_scale_factor": 7, "use_kl_loss": True},
        {"loss_scale_factor": 7, "entropy_coeff": 0.1},
    ],
    ids=["none", "KL loss", "entropy bonus"],
)
def test_options_of_the_actor_that_only_its_own_terms_read_are_allowed(actor):
    config = configuration(ObjectiveLossConfig(objective="gmpo"), STEP.batch.totals, **actor)
    arguments = STEP.batch.old_log_probs, STEP.log_probs, per_token(STEP.batch.advantages, STEP.log_probs)
    get_policy_loss_fn(NAME)(*arguments, STEP.batch.response_mask, config=config)


def test_an_objective_is_named_with_its_arguments_or_by_import_path():
    assert (
        ObjectiveLossConfig(objective="gmpo", arguments={"log_clip": 0.3}).objective.token_transform.log_clip_low == 0.3
    )
    assert isinstance(ObjectiveLossConfig(objective="aggregate_po.GeometricMean").objective.aggregator, GeometricMean)


def test_the_name_of_the_loss_is_that_of_the_objective_whatever_the_configuration_of_verl_says():
    for name in ({}, {"loss_mode": "vanilla"}, {"loss_mode": NAME}):
        assert ObjectiveLossConfig(objective="gmpo", **name).loss_mode == NAME


def test_a_loss_without_totals_or_configuration_is_refused():
    arguments = STEP.batch.old_log_probs, STEP.log_probs, per_token(STEP.batch.advantages, STEP.log_probs)
    loss = get_policy_loss_fn(NAME)
    empty = StepTotals(completions=6, tokens=None)
    with pytest.raises(ValueError, match="has no batch_num_tokens"):
        loss(*arguments, STEP.batch.response_mask, config=configuration(ObjectiveLossConfig(), empty))
    with pytest.raises(TypeError, match=r"set its `_target_` to aggregate_po.adapters.verl.ObjectiveLossConfig"):
        loss(*arguments, STEP.batch.response_mask, config=configuration(PolicyLossConfig(), STEP.batch.totals))
    with pytest.raises(TypeError, match=r"`actor.policy_loss` is a NoneType; set its `_target_`"):
        loss(*arguments, STEP.batch.response_mask)


def jagged(table, lengths):
    return torch.nested.as_nested_tensor(
        [row[:length] for row, length in zip(table, lengths, strict=True)], layout=torch.jagged
    )


def test_the_loss_that_verl_computes_from_its_own_data():
    lengths = [4, 2, 3]
    mask = torch.arange(4) < torch.tensor(lengths).unsqueeze(-1)
    generator = torch.Generator().manual_seed(4)
    old = -torch.rand(3, 4, generator=generator, dtype=torch.float64)
    new = (old + 0.3 * torch.randn(3, 4, generator=generator, dtype=torch.float64)).requires_grad_()
    advantages = torch.tensor([1.0, -0.5, 2.0], dtype=torch.float64)
    # verl shifts log-probabilities: that of a token stands at the token before it, and the prompt has two tokens.
    rows = [
        torch.cat([row.new_zeros(1), row[:length], row.new_zeros(1)]) for row, length in zip(new, lengths, strict=True)
    ]
    tokens = torch.ones(3, 4, dtype=torch.long)
    data = TensorDict(
        {
            "prompts": jagged(tokens, [2, 2, 2]),
            "responses": jagged(tokens, lengths),
            "response_mask": jagged(mask, lengths),
            "old_log_probs": jagged(old, lengths),
            "advantages": jagged(advantages.unsqueeze(-1).expand(3, 4), lengths),
        },
        batch_size=[3],
    )
    counts = {"dp_size": 2, "batch_num_tokens": 20, "global_batch_size": 6}
    for name, value in counts.items():
        data.set_non_tensor(name, value)
    config = configuration(ObjectiveLossConfig(objective="gmpo"), StepTotals(0, 0))
    loss, metrics = ppo_loss(config, {"log_probs": torch.nested.as_nested_tensor(rows, layout=torch.jagged)}, data)
    (gradient,) = torch.autograd.grad(loss, new)
    batch = PolicyBatch(old, mask, advantages, StepTotals(completions=6, tokens=20))
    value, expected = differentiate(
        lambda log_probs, batch: -2 * gmpo()(log_probs, batch), type(STEP)(new.detach(), batch)
    )
    assert_close(loss.detach(), value, 1e-10)
    assert_close(gradient, expected, 1e-10)
    assert "actor/ratio/mean" in metrics


REWARDS = torch.tensor([0.0, 1.0, 0.5, 2.0, 1.0, 1.0, 0.0, 3.0, 1.0], dtype=torch.float64)
UIDS = np.array(["b", "a", "b", "c", "a", "c", "c", "b", "a"], dtype=object)


def rollout():
    mask = torch.arange(4) < torch.tensor([3, 4, 1, 2, 4, 3, 2, 4, 1]).unsqueeze(-1)
    rewards = torch.zeros(9, 4, dtype=torch.float64)
    rewards[:, 0] = REWARDS
    return rewards, mask


def test_an_estimator_is_that_of_verl_on_groups_in_any_order():
    rewards, mask = rollout()
    found, returns = get_adv_estimator_fn("aggregate_po.GroupNormalized")(
        token_level_rewards=rewards, response_mask=mask, index=UIDS, config=None
    )
    expected, _ = get_adv_estimator_fn("grpo")(token_level_rewards=rewards.clone(), response_mask=mask, index=UIDS)
    assert_close(found, expected, 1e-5)  # the constants in the divisor differ
    assert torch.equal(found, returns)


def test_estimators_are_registered_by_their_names():
    assert {f"aggregate_po.{name}" for name in ("GroupCentered", "LeaveOneOut", "BetaNormalized")} <= set(
        ADV_ESTIMATOR_REGISTRY
    )
    assert "aggregate_po.StepValues" not in ADV_ESTIMATOR_REGISTRY
    register_estimator("mine", GroupNormalized(delta=1.0))
    rewards, mask = rollout()
    found, _ = get_adv_estimator_fn("mine")(token_level_rewards=rewards, response_mask=mask, index=UIDS)
    assert torch.equal(found, advantages_of(GroupNormalized(delta=1.0), rewards, mask, UIDS))


@pytest.mark.parametrize(
    ("name", "value", "remedy"),
    [
        ("norm_adv_by_std_in_grpo", False, "leave it at True, and choose an estimator that does not divide"),
        ("gamma", 0.5, r"leave it at 1.0, and choose .*register_estimator.*WhitenedReturns\(discount=0.5\)"),
        ("lam", 0.95, "leave it at 1.0, and choose gae of verl"),
        ("gdpo_reward_keys", ["form", "accuracy"], "leave it at None, and choose gdpo of verl"),
        ("gdpo_reward_weights", [1.0, 2.0], "leave it at None, and choose gdpo of verl"),
    ],
)
def test_an_option_of_verls_own_estimators_is_refused(name, value, remedy):
    rewards, mask = rollout()
    estimate = get_adv_estimator_fn("aggregate_po.WhitenedReturns")
    estimate(token_level_rewards=rewards, response_mask=mask, index=UIDS, config=AlgoConfig())
    config = AlgoConfig(**{name: value})
    message = rf"`algorithm.{name}` is {re.escape(str(value))}, .*'aggregate_po.WhitenedReturns'.*{remedy}"
    with pytest.raises(ValueError, match=message):
        estimate(token_level_rewards=rewards, response_mask=mask, index=UIDS, config=config)


def test_advantages_of_tokens_pass_over_the_output_of_a_tool():
    mask = torch.tensor([[1, 1, 0, 0, 1, 1], [1, 1, 1, 1, 0, 0]])
    rewards = torch.zeros(2, 6)
    rewards[0, 5] = 1.0
    estimator = WhitenedReturns(discount=0.5)
    expected = estimator(GroupedRewards(torch.tensor([1.0, 0.0]), 2, lengths=torch.tensor([4, 4])))
    found = advantages_of(estimator, rewards, mask, ["a", "a"])
    assert torch.equal(found[0, [0, 1, 4, 5]], expected[0])
    assert torch.equal(found[1, :4], expected[1])
    assert found[0, 5] > found[0, 4] > 0 == found[0, 2]


def test_groups_of_different_sizes_are_named():
    rewards, mask = rollout()
    with pytest.raises(ValueError, match="2 completions of the prompt 'c', but 3 of 'b'"):
        advantages_of(GroupNormalized(), rewards[:8], mask[:8], list("bcbaacba"))


def test_verl_finds_the_module_by_its_entry_point():
    project = tomllib.loads((Path(__file__).parents[2] / "pyproject.toml").read_text())["project"]
    module = import_module(project["entry-points"]["verl.plugins"]["aggregate_po"])
    assert module.policy_loss is get_policy_loss_fn(NAME)


def test_verl_loads_the_module_whenever_it_is_imported():
    """In a process that imports nothing of this library itself."""
    program = """
import verl
from verl.trainer.ppo.core_algos import POLICY_LOSS_REGISTRY
print("aggregate_po" in POLICY_LOSS_REGISTRY)
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=True)
    assert done.stdout.split()[-1] == "True"
