"""Corrections for a sampler that is not quite the policy: oracles, properties, and the effect on an expectation."""

import itertools
import math
from dataclasses import replace

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st

from aggregate_po import (
    ArithmeticMean,
    CorrectionWeights,
    ESSMatching,
    GeometricMean,
    PessimisticClip,
    PolicyBatch,
    PolicyObjective,
    PowerMean,
    SequenceCorrection,
    StepTotals,
    TokenCorrection,
    TokenRatios,
    effective_sample_size,
)
from aggregate_po.corrections import log_mismatch
from aggregate_po.recipes import gmpo, gspo
from tests.aggregate_po.worked_example import LOG_RATIO, OLD_LOG_PROBS, close, worked_batch
from tests.contracts.strategies import COMPOSITIONS, assert_rows_close, batches, differentiate, generators, scale_of

LOG_WEIGHTS = torch.tensor([[0.3, -0.2, 1.5, 0.0]], dtype=torch.float64)
MASK = torch.ones(1, 4, dtype=torch.bool)
CORRECTED = {name: part for name, part in COMPOSITIONS.items() if part.group_objective is None}
TOKEN_LEVEL = {name: part for name, part in CORRECTED.items() if part.sequence_transform is None}


def weights_of(correction, log_weights=LOG_WEIGHTS, mask=MASK):
    return correction(log_weights, torch.zeros_like(log_weights), mask)


def corrected(batch, correction, rollout_log_probs):
    return replace(batch, correction=correction(batch.old_log_probs, rollout_log_probs, batch.response_mask))


# The weights


def test_truncated_token_weights():
    close(weights_of(TokenCorrection()).log_token.exp(), [[1.34985881, 0.81873075, 2, 1]])
    close(weights_of(TokenCorrection(1.2, 0.9)).log_token.exp(), [[1.2, 0.9, 1.2, 1]])
    assert weights_of(TokenCorrection()).kept is None


def test_masked_token_weights():
    weights = weights_of(TokenCorrection(2.0, 0.5, "mask"))
    close(weights.log_token.exp(), [[1.34985881, 0.81873075, 1, 1]])
    assert weights.kept.tolist() == [[True, True, False, True]]


@pytest.mark.parametrize(
    ("correction", "weight"),
    [
        (SequenceCorrection(math.inf), 4.95303242),
        (SequenceCorrection(3.0), 0.0),
        (SequenceCorrection(5.0), 4.95303242),
        (SequenceCorrection(3.0, outside="truncate"), 3.0),
        (SequenceCorrection(8.0, 6.0), 0.0),
        (SequenceCorrection(8.0, 6.0, "truncate"), 6.0),
    ],
    ids=str,
)
def test_weight_of_a_completion(correction, weight):
    close(weights_of(correction).log_sequence.exp(), [weight])


def test_a_geometric_mean_takes_the_geometric_mean_of_the_token_weights():
    batch = replace(worked_batch(1.0)[1], correction=weights_of(TokenCorrection(math.inf)))
    value = PolicyObjective(GeometricMean())(OLD_LOG_PROBS, batch)
    close(value, 1.49182470)
    close(effective_sample_size(LOG_WEIGHTS.exp()) / 4, [0.62056603])


def test_log_probs_that_are_missing_leave_the_correction():
    rollout = torch.tensor([[-1.0, math.nan, -math.inf, -2.0]])
    old = torch.tensor([[-1.5, -1.0, -1.0, -2.0]])
    assert log_mismatch(old, rollout, torch.tensor([[1, 1, 1, 0]])).tolist() == [[-0.5, 0.0, 0.0, 0.0]]
    weights = TokenCorrection(2.0, 0.9, "mask")(old, rollout, torch.ones(1, 4))
    assert weights.kept.tolist() == [[False, True, True, True]]


def test_mismatch_is_bounded():
    """A sampler that is far off gives large weights, not infinite ones."""
    old, rollout = torch.tensor([[-1.0, -900.0]]), torch.tensor([[-900.0, -1.0]])
    assert log_mismatch(old, rollout, torch.ones(1, 2)).tolist() == [[20.0, -20.0]]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: TokenCorrection(outside="drop"), r'^`outside` is \'drop\'; pass "truncate" or "mask"'),
        (lambda: SequenceCorrection(1.0, 2.0), r"^`min_weight` is 2.0 and `max_weight` 1.0; pass two weights in this"),
        (lambda: TokenCorrection(math.nan), r"`max_weight` nan"),
    ],
)
def test_arguments_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


# The objective


def test_token_weights_multiply_the_tokens_of_an_arithmetic_mean():
    """Ratios times weights, and a masked token as ratio one without gradient."""
    log_probs, batch = worked_batch(1.0)
    truncated = replace(batch, correction=weights_of(TokenCorrection()))
    products = LOG_RATIO.exp() * torch.tensor([1.34985881, 0.81873075, 2, 1]).double()
    close(PolicyObjective(ArithmeticMean())(log_probs, truncated), products.mean())
    close(PolicyObjective(ArithmeticMean()).gradient_weights(log_probs, truncated).total, products / 4)
    masked = replace(batch, correction=weights_of(TokenCorrection(2.0, 0.5, "mask")))
    products[0, 2] = 1.0
    close(PolicyObjective(ArithmeticMean())(log_probs, masked), products.mean())
    weights = PolicyObjective(ArithmeticMean()).gradient_weights(log_probs, masked)
    close(weights.total, products * torch.tensor([1, 1, 0, 1]) / 4)
    assert not weights.clipped.any()


def test_a_weight_of_the_completion_multiplies_what_its_clip_leaves():
    log_probs, batch = worked_batch(1.0)
    batch = replace(batch, correction=weights_of(SequenceCorrection(math.inf)))
    close(gspo()(log_probs, batch), 1.0004 * 4.95303242)
    close(gspo(0.2, 0.2).gradient_weights(log_probs, batch).total, [[0.27629273 * 4.95303242] * 4], tolerance=1e-6)
    dropped = replace(batch, correction=weights_of(SequenceCorrection()))
    value, gradient, weights = differentiate(gmpo(), log_probs, dropped)
    assert value == 0
    assert gradient.tolist() == weights.total.tolist() == [[0.0] * 4]


def test_a_weight_per_token_cannot_pass_a_clip_of_the_completion():
    log_probs, batch = worked_batch(1.0)
    batch = replace(batch, correction=weights_of(TokenCorrection()))
    with pytest.raises(
        ValueError, match=r"^`correction` has a weight per token, but .*; pass a SequenceCorrection, which"
    ):
        gspo()(log_probs, batch)


def test_the_exponent_is_chosen_without_the_correction():
    tokens = TokenRatios.of(LOG_RATIO)
    for correction in (TokenCorrection(), TokenCorrection(2.0, 0.5, "mask")):
        moved = tokens.corrected(weights_of(correction))
        assert not torch.equal(moved.log_ratio, tokens.log_ratio)
        close(moved.uncorrected, tokens.log_ratio, tolerance=1e-15)
        rule = ESSMatching(target=lambda fraction, share: 0.95)
        close(PowerMean(rule).exponents(moved), PowerMean(rule).exponents(tokens), tolerance=1e-12)


def test_shapes_are_checked():
    with pytest.raises(ValueError, match=r"^`correction.log_token` has time=3, but `response_mask` has time=4"):
        replace(worked_batch(1.0)[1], correction=CorrectionWeights(log_token=torch.zeros(1, 3)))


CORRECTIONS = [
    TokenCorrection(),
    TokenCorrection(1.5, 0.7, "mask"),
    SequenceCorrection(),
    SequenceCorrection(math.inf),
    SequenceCorrection(2.0, 0.5, "truncate"),
]


def random_correction(case, correction, generator):
    log_probs, batch = case
    noise = torch.randn(log_probs.shape, generator=generator, dtype=torch.float64)
    return log_probs, corrected(batch, correction, batch.old_log_probs + 0.3 * noise)


@pytest.mark.parametrize("name", CORRECTED)
@given(case=batches(), correction=st.sampled_from(CORRECTIONS), generator=generators())
def test_weights_equal_autograd_under_every_correction(name, case, correction, generator):
    if name not in TOKEN_LEVEL and isinstance(correction, TokenCorrection):
        return
    log_probs, batch = random_correction(case, correction, generator)
    _, gradient, weights = differentiate(CORRECTED[name], log_probs, batch)
    assert_rows_close(weights.total, gradient, rtol=1e-9, scale=scale_of(weights))
    assert torch.isfinite(gradient).all()


def combined(fields, shape, generator, dtype):
    """Correction weights with some of their fields; masked tokens and completions among them."""
    log_token = 0.5 * torch.randn(shape, generator=generator, dtype=torch.float64)
    kept = torch.rand(shape, generator=generator) < 0.7
    log_sequence = 0.5 * torch.randn(shape[:1], generator=generator, dtype=torch.float64)
    log_sequence[0] = -math.inf
    given = {"log_token": log_token.to(dtype), "kept": kept, "log_sequence": log_sequence.to(dtype)}
    return CorrectionWeights(**{name: given[name] for name in fields})


FIELDS = ("log_token", "kept", "log_sequence")
COMBINATIONS = [some for count in range(4) for some in itertools.combinations(FIELDS, count)]


@pytest.mark.parametrize("fields", COMBINATIONS, ids="+".join)
@pytest.mark.parametrize("name", CORRECTED)
@given(case=batches(), generator=generators())
@settings(max_examples=8)
def test_weights_equal_autograd_under_every_combination_of_fields(name, fields, case, generator):
    """In both precisions; a composition that clips completions takes no weight per token."""
    objective = CORRECTED[name]
    for dtype, rtol in ((torch.float64, 1e-9), (torch.float32, 1e-2)):
        log_probs, batch = case.log_probs.detach().to(dtype), case.batch.to(dtype)
        batch = replace(batch, correction=combined(fields, log_probs.shape, generator, dtype))
        if "log_token" in fields and name not in TOKEN_LEVEL:
            with pytest.raises(ValueError, match=r"^`correction` has a weight per token"):
                objective(log_probs, batch)
            continue
        value, gradient, weights = differentiate(objective, log_probs, batch)
        assert torch.isfinite(value)
        assert torch.isfinite(gradient).all()
        assert_rows_close(weights.total, gradient, rtol=rtol, scale=1 + 1e3 * scale_of(weights))
        penalized = weights.penalty != 0
        if "kept" in fields:
            assert ((weights.total == 0) | batch.correction.kept | penalized).all()


@pytest.mark.parametrize("fields", COMBINATIONS, ids="+".join)
@pytest.mark.parametrize("per_token", [False, True], ids=["per completion", "per token"])
def test_value_of_every_combination_of_fields(fields, per_token):
    """An arithmetic mean written out: ratio times weight, ratio one where masked, all times the completion's weight."""
    log_probs, batch = worked_batch(1.0)
    advantages = torch.tensor([[1.0, -2.0, 0.5, 3.0]], dtype=torch.float64)
    log_token, kept = LOG_WEIGHTS, torch.tensor([[True, True, False, True]])
    given = {"log_token": log_token, "kept": kept, "log_sequence": torch.tensor([0.7], dtype=torch.float64)}
    correction = CorrectionWeights(**{name: given[name] for name in fields})
    batch = replace(batch, advantages=advantages if per_token else batch.advantages, correction=correction)
    terms = LOG_RATIO.exp() * (log_token.exp() if "log_token" in fields else 1)
    trained = torch.where(kept, terms, 0) if "kept" in fields else terms
    terms = torch.where(kept, terms, 1) if "kept" in fields else terms
    completion = math.exp(0.7) if "log_sequence" in fields else 1.0
    expected = completion * (terms * (advantages if per_token else 1)).mean()
    objective = PolicyObjective(ArithmeticMean())
    close(objective(log_probs, batch), expected)
    slopes = completion * trained * (advantages if per_token else 1) / 4
    close(objective.gradient_weights(log_probs, batch).total, slopes)


@pytest.mark.parametrize("some", COMBINATIONS, ids="+".join)
@pytest.mark.parametrize("others", COMBINATIONS, ids="+".join)
def test_joined_corrections_act_as_both(some, others):
    """On an arithmetic mean the weights of each multiply, and a token is trained that both keep."""
    log_probs, batch = worked_batch(1.0)
    log_token, log_sequence = torch.full((1, 4), 0.25).double(), torch.tensor([0.7], dtype=torch.float64)
    one = {"log_token": LOG_WEIGHTS, "kept": torch.tensor([[True, True, False, True]]), "log_sequence": log_sequence}
    two = {"log_token": log_token, "kept": torch.tensor([[True, False, True, True]]), "log_sequence": 2 * log_sequence}
    one, two = ({name: given[name] for name in names} for given, names in ((one, some), (two, others)))
    joined = CorrectionWeights(**one).joined(CorrectionWeights(**two))
    kept = one.get("kept", torch.ones(1, 4)) * two.get("kept", torch.ones(1, 4))
    ratios = (LOG_RATIO + one.get("log_token", 0) + two.get("log_token", 0)).exp()
    factor = (torch.zeros(1).double() + one.get("log_sequence", 0) + two.get("log_sequence", 0)).exp()
    objective, batch = PolicyObjective(ArithmeticMean()), replace(batch, correction=joined)
    close(objective(log_probs, batch), (factor * torch.where(kept.bool(), ratios, 1).mean()).squeeze())
    close(objective.gradient_weights(log_probs, batch).total, factor * kept * ratios / 4)
    for name in FIELDS:
        assert (getattr(joined, name) is None) == (name not in (*some, *others))


def test_a_mask_of_tokens_alone_masks_them_in_value_and_gradient():
    """The geometric mean of 4 tokens of which one is masked: exp of the sum of the others over 4."""
    log_probs, batch = worked_batch(1.0)
    batch = replace(batch, correction=CorrectionWeights(kept=torch.tensor([[True, False, True, True]])))
    value, gradient, weights = differentiate(PolicyObjective(GeometricMean()), log_probs, batch)
    expected = ((LOG_RATIO.sum() - LOG_RATIO[0, 1]) / 4).exp()
    close(value, expected)
    close(gradient, expected / 4 * torch.tensor([[1, 0, 1, 1]]))
    close(weights.total, gradient)
    tokens = TokenRatios.of(LOG_RATIO).corrected(batch.correction)
    close(tokens.uncorrected, LOG_RATIO, tolerance=1e-15)


@pytest.mark.parametrize("junk", [math.nan, math.inf, -math.inf])
def test_corrections_of_padding_and_of_empty_completions_have_no_effect(junk):
    mask = torch.tensor([[True, True, False], [False, False, False]])
    correction = CorrectionWeights(
        log_token=torch.tensor([[0.5, -0.5, junk], [junk, junk, junk]]),
        kept=torch.tensor([[True, True, False], [False, False, False]]),
        log_sequence=torch.tensor([0.25, junk]),
    )
    batch = PolicyBatch(torch.zeros(2, 3), mask, torch.ones(2), correction=correction)
    value, gradient, weights = differentiate(PolicyObjective(ArithmeticMean()), torch.zeros(2, 3), batch)
    close(value, math.exp(0.25) * (math.exp(0.5) + math.exp(-0.5)) / 2, tolerance=1e-6)
    close(weights.total, gradient, tolerance=1e-7)
    assert gradient[~mask].tolist() == [0.0] * 4


@pytest.mark.parametrize("name", CORRECTED)
@given(case=batches(), correction=st.sampled_from([TokenCorrection(), SequenceCorrection()]))
def test_a_sampler_that_agrees_is_left_alone(name, case, correction):
    log_probs, batch = case
    if name not in TOKEN_LEVEL and isinstance(correction, TokenCorrection):
        return
    same = corrected(batch, correction, batch.old_log_probs)
    plain, agreed = (differentiate(CORRECTED[name], log_probs, some) for some in (batch, same))
    assert torch.equal(agreed[0], plain[0])
    assert torch.equal(agreed[1], plain[1])
    assert torch.equal(agreed[2].total, plain[2].total)


@given(case=batches(empty_rows=False), correction=st.sampled_from(CORRECTIONS), generator=generators())
def test_micro_batches_of_a_step_add_up(case, correction, generator):
    log_probs, batch = random_correction(case, correction, generator)
    objective = PolicyObjective(PowerMean(0.5), PessimisticClip.log(0.4, 0.4))
    whole = objective.gradient_weights(log_probs, batch).total
    for row in range(len(log_probs)):
        one = slice(row, row + 1)
        row_batch = PolicyBatch(
            batch.old_log_probs[one],
            batch.response_mask[one],
            batch.advantages[one],
            batch.totals,
            correction=batch.correction.map(lambda tensor, one=one: tensor[one]),
        )
        part = objective.gradient_weights(log_probs[one], row_batch).total
        torch.testing.assert_close(part, whole[one], rtol=1e-9, atol=1e-12)


# An expectation that can be written out: three tokens, completions of two, the sampler at temperature 1.1

REWARDS = torch.tensor([0.0, 1.0, 0.3, 0.7, 0.2, 0.9, 0.5, 0.1, 1.0], dtype=torch.float64)
COMPLETIONS = torch.tensor(list(itertools.product(range(3), repeat=2)))
BASELINE = 0.4


def policy(logits, temperature=1.0):
    """Log-probabilities of the tokens of all completions; a row of logits for the start and for each first token."""
    log_probs = torch.log_softmax(logits / temperature, dim=-1)
    return torch.stack([log_probs[0, COMPLETIONS[:, 0]], log_probs[1 + COMPLETIONS[:, 0], COMPLETIONS[:, 1]]], dim=-1)


def expected_gradient(correction):
    """Expectation over the sampler of the objective's gradient; of the true one, with the sampler as policy: None."""
    generator = torch.Generator().manual_seed(0)
    logits = (1.5 * torch.randn(4, 3, generator=generator, dtype=torch.float64)).requires_grad_()
    log_probs, sampler = policy(logits), policy(logits.detach(), 1.1)
    probabilities = sampler.sum(-1).exp()
    total = torch.zeros(())
    for row in range(len(COMPLETIONS)):
        one = slice(row, row + 1)
        batch = PolicyBatch(log_probs.detach()[one], torch.ones(1, 2), REWARDS[one] - BASELINE, StepTotals(1, 2))
        if correction is not None:
            batch = corrected(batch, correction, sampler[one])
        total = total + probabilities[row] * PolicyObjective(ArithmeticMean())(log_probs[one], batch)
    (gradient,) = torch.autograd.grad(total, logits, retain_graph=True)
    (exact,) = torch.autograd.grad((log_probs.sum(-1).exp() * (REWARDS - BASELINE)).sum() / 2, logits)
    return gradient, exact


def test_the_sequence_correction_is_unbiased():
    gradient, exact = expected_gradient(SequenceCorrection(math.inf))
    close(gradient, exact, tolerance=1e-14)


def test_without_it_the_gradient_is_of_another_expectation_and_per_token_it_is_biased():
    uncorrected, exact = expected_gradient(None)
    per_token, _ = expected_gradient(TokenCorrection(math.inf))
    errors = [(gradient - exact).norm() / exact.norm() for gradient in (uncorrected, per_token)]
    assert errors[0] > 0.02
    assert 0.001 < errors[1] < errors[0]
