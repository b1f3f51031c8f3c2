"""Objectives as a loss function of NeMo RL, against a stand-in with its signatures and its loss by hand; float64."""

import pickle
import sys
from dataclasses import replace

import pytest
import torch

from aggregate_po import (
    EntropyBonus,
    K3Penalty,
    LagrangePenalty,
    LehmerMean,
    PolicyObjective,
    TokenCorrection,
    TokenMean,
)
from aggregate_po.recipes import apmpo, ctpo, dapo, gmpo, grpo, gspo, holder_po, pmpo, real
from tests.parity import nemo_rl_stand_in
from tests.parity.cases import CASES, assert_close, differentiate
from tests.parity.nemo_rl_stand_in import ClippedPGLossConfig, ClippedPGLossFn

STEP = CASES["across the clip"]


@pytest.fixture(scope="module")
def adapter():
    """The class of the adapter, imported next to the stand-in."""
    with pytest.MonkeyPatch.context() as patch:
        nemo_rl_stand_in.install(patch)
        from aggregate_po.adapters.nemo_rl import ObjectiveLossFn

        yield ObjectiveLossFn
        sys.modules.pop("aggregate_po.adapters.nemo_rl")


def shifted(values):
    """Values with one more column in front, for the first token, which nothing predicts."""
    return torch.cat([torch.full_like(values[:, :1], 7), values], dim=1)


def data_of(batch, sampler=None, invalid=()):
    """Data of a micro-batch as NeMo RL has them; `invalid` are rows that do not count."""
    mask = batch.response_mask.double()
    advantages = batch.advantages if batch.advantages.ndim == 2 else batch.advantages.unsqueeze(1).expand_as(mask)
    valid = torch.ones(len(mask), dtype=torch.float64)
    valid[list(invalid)] = 0
    return {
        "token_mask": torch.cat([torch.zeros_like(mask[:, :1]), mask], dim=1),
        "sample_mask": valid,
        "advantages": shifted(advantages),
        "prev_logprobs": shifted(batch.old_log_probs),
        "generation_logprobs": shifted(batch.old_log_probs if sampler is None else sampler),
        "reference_policy_logprobs": shifted(batch.ref_log_probs),
    }


def counts(batch, invalid=()):
    kept = [row for row in range(len(batch.response_mask)) if row not in invalid]
    return torch.tensor(float(len(kept))), batch.response_mask[kept].sum()


def loss_of(function, sampler=None, totals=None, invalid=()):
    """A loss of NeMo RL as a function of log-probabilities and a batch."""

    def loss(log_probs, batch):
        rows = slice(None) if sampler is None else slice(0, len(log_probs))
        given = None if sampler is None else sampler[rows]
        return function(
            next_token_logprobs=log_probs,
            data=data_of(batch, given, invalid),
            global_valid_seqs=(totals or counts(batch, invalid))[0],
            global_valid_toks=(totals or counts(batch, invalid))[1],
        )[0]

    return loss


def config(objective_by_tokens=False, **options):
    return ClippedPGLossConfig(
        **{"token_level_loss": objective_by_tokens, "reference_policy_kl_penalty": 0.0, **options}
    )


PAIRS = {
    "tokens": (dapo(0.2, 0.2), {"token_level_loss": True}, {}),
    "completions": (grpo(), {"token_level_loss": False}, {}),
    "gspo": (
        gspo(3e-4, 4e-4),
        {"token_level_loss": False},
        {"sequence_level_importance_ratios": True, "ratio_clip_min": 3e-4, "ratio_clip_max": 4e-4},
    ),
}


@pytest.mark.parametrize("invalid", [(), (1, 4)], ids=["all", "some"])
@pytest.mark.parametrize("name", PAIRS)
@pytest.mark.parametrize("case", CASES.values(), ids=CASES)
def test_loss_and_gradient_are_those_of_the_formula(adapter, name, case, invalid):
    objective, shared, theirs = PAIRS[name]
    invalid = tuple(row for row in invalid if row < len(case.log_probs) - 1)
    expected = differentiate(loss_of(ClippedPGLossFn(config(**shared, **theirs)), invalid=invalid), case)
    found = differentiate(loss_of(adapter(config(**shared), objective), invalid=invalid), case)
    for one, other in zip(found, expected, strict=True):
        assert_close(one, other, 1e-10)


@pytest.mark.parametrize("micro_batches", [1, 3, 6])
@pytest.mark.parametrize(
    "objective",
    [
        gmpo(),
        pmpo(),
        ctpo(),
        PolicyObjective(LehmerMean(2.0), normalizer=TokenMean()),
        gmpo(penalties=[K3Penalty(0.04), EntropyBonus(0.01)]),
    ],
    ids=["gmpo", "pmpo", "ctpo", "own", "penalties"],
)
def test_micro_batches_change_nothing(adapter, objective, micro_batches):
    value, gradient = differentiate(lambda log_probs, batch: -objective(log_probs, batch), STEP)
    function = adapter(config(isinstance(objective.normalizer, TokenMean)), objective)
    total, found = 0.0, torch.zeros_like(gradient)
    for rows in torch.arange(len(STEP.log_probs)).chunk(micro_batches):
        part = type(STEP)(STEP.log_probs[rows], STEP.batch.select(rows))
        loss, found[rows] = differentiate(loss_of(function, totals=counts(STEP.batch)), part)
        total = total + loss
    assert_close(total, value, 1e-10)
    assert_close(found, gradient, 1e-10)


@pytest.mark.parametrize("by_tokens", [True, False])
def test_totals_may_follow_once_the_step_is_complete(adapter, by_tokens):
    """A trainer may pass ones and divide the gradients by the count that `loss_type` names."""
    objective = dapo(0.2, 0.2) if by_tokens else gmpo()
    function = adapter(config(by_tokens), objective)
    expected = differentiate(lambda log_probs, batch: -objective(log_probs, batch), STEP)[1]
    ones = (torch.tensor(1.0), torch.tensor(1.0))
    found = differentiate(loss_of(function, totals=ones), STEP)[1]
    assert function.loss_type == ("token_level" if by_tokens else "sequence_level")
    assert_close(found / counts(STEP.batch)[int(by_tokens)], expected, 1e-10)


def test_correction_of_the_sampler(adapter):
    generator = torch.Generator().manual_seed(3)
    noise = torch.randn(STEP.log_probs.shape, generator=generator, dtype=torch.float64)
    sampler = STEP.batch.old_log_probs + 0.3 * noise
    theirs = ClippedPGLossFn(config(use_importance_sampling_correction=True))
    ours = adapter(config(), grpo(), correction=TokenCorrection(max_weight=1e6))
    expected = differentiate(loss_of(theirs, sampler), STEP)
    for one, other in zip(differentiate(loss_of(ours, sampler), STEP), expected, strict=True):
        assert_close(one, other, 1e-10)


def test_tokens_that_sampling_filters_have_no_gradient(adapter):
    kept = torch.rand(STEP.log_probs.shape, generator=torch.Generator().manual_seed(4)) < 0.7
    function, totals = adapter(config(), gmpo()), counts(STEP.batch)

    def loss(log_probs, batch):
        data = {**data_of(batch), "curr_logprobs_keep_mask": kept.double()}
        return function(log_probs, data, *totals)[0]

    gradient = differentiate(loss, STEP)[1]
    assert (gradient[~kept] == 0).all()
    assert gradient[kept & STEP.batch.response_mask].abs().sum() > 0


def test_on_policy_ratios_need_no_old_log_probs(adapter):
    function = adapter(config(force_on_policy_ratio=True), gmpo())
    value, gradient = differentiate(loss_of(function), STEP)
    on_policy = type(STEP)(STEP.log_probs, replace(STEP.batch, old_log_probs=STEP.log_probs))
    expected = differentiate(lambda log_probs, batch: -gmpo()(log_probs, batch), on_policy)
    assert_close(value, expected[0], 1e-10)
    assert_close(gradient, expected[1], 1e-10)


def test_a_reference_that_was_skipped_is_an_error(adapter):
    function = adapter(config(), gmpo(penalties=[K3Penalty(0.1)]))
    data = data_of(STEP.batch) | {"reference_policy_logprobs": torch.zeros(len(STEP.log_probs), 13)}
    with pytest.raises(ValueError, match=r"`reference_policy_logprobs` are all 0.*to False"):
        function(STEP.log_probs, data, *counts(STEP.batch))


def test_a_reference_beside_filtered_tokens_is_an_error(adapter):
    data = data_of(STEP.batch) | {"curr_logprobs_keep_mask": torch.ones_like(STEP.log_probs)}
    function = adapter(config(), gmpo(penalties=[K3Penalty(0.1)]))
    with pytest.raises(ValueError, match=r"K3Penalty.*whose penalty reads a reference, but.*set `top_p` to 1"):
        function(STEP.log_probs, data, *counts(STEP.batch))


def test_metrics_are_those_of_nemo_rl(adapter):
    loss, metrics = adapter(config(), gmpo())(STEP.log_probs, data_of(STEP.batch), *counts(STEP.batch))
    assert metrics == {"loss": loss.item(), "num_valid_samples": 6, "token_mult_prob_error": 1.0}


def test_the_objective_travels_to_a_worker():
    assert repr(pickle.loads(pickle.dumps(pmpo()))) == repr(pmpo())


@pytest.mark.parametrize(
    ("options", "objective", "error", "message"),
    [
        ({"ratio_clip_max": 0.28}, grpo(), ValueError, "`ratio_clip_max` is 0.28, but the objective is the loss"),
        ({"reference_policy_kl_penalty": 0.01}, grpo(), ValueError, "`reference_policy_kl_penalty` is 0.01.*to 0.0"),
        ({"use_importance_sampling_correction": True}, grpo(), ValueError, "`use_importance_sampling_correction`"),
        (
            {"token_level_loss": True},
            grpo(),
            ValueError,
            r"`token_level_loss` is True.*SequenceMean\(\).* to False",
        ),
        ({}, dapo(), ValueError, r"`token_level_loss` is False.*TokenMean\(\); set it to True"),
        ({}, real(), ValueError, "compares whole groups, which NeMo RL splits"),
        ({}, holder_po(), ValueError, "NeMo RL does not pass to a loss: `totals.progress` is None.*. Choose"),
        ({}, apmpo(), ValueError, "NeMo RL does not pass to a loss: `totals.reward_mean` is None.*. Choose"),
        (
            {},
            grpo(penalties=[LagrangePenalty(EntropyBonus(1.0), bound=0.0, step_size=0.1)]),
            ValueError,
            "whose penalty adapts after each optimizer step, of which NeMo RL",
        ),
        ({}, "gmpo", TypeError, "pass a PolicyObjective"),
    ],
    ids=range(10),
)
def test_refusals(adapter, options, objective, error, message):
    with pytest.raises(error, match=message):
        adapter(config(**options), objective)
