"""Prefix aggregates: values worked by hand, the family of the filter, and what an objective does with them."""

import inspect
import math

import pytest
import torch

from aggregate_po import (
    ArithmeticMean,
    CorrectionWeights,
    GeometricMean,
    PessimisticClip,
    PolicyBatch,
    PolicyObjective,
    PrefixAggregate,
    PrefixGeometricMean,
    PrefixKalmanFilter,
    PrefixMinimum,
    PrefixProduct,
    RatioMask,
    TokenRatios,
)
from aggregate_po.scans import linear_recurrence
from tests.aggregate_po.worked_example import LOG_RATIO, OLD_LOG_PROBS, assert_objective, close, worked_batch
from tests.third_party import PrefixMaximum

WORKED = {
    PrefixProduct(): [0.6, 0.1, 0.3, 0.4],
    PrefixGeometricMean(): [0.6, 0.05, 0.1, 0.1],
    PrefixMinimum(): [0.6, 0.1, -0.3, -0.4],
    # Gains 1/2, 3/5, 8/13 and 21/34, every other number of Fibonacci.
    PrefixKalmanFilter(1.0, 0.0): [0.3, -0.18, 0.05384615, 0.08235294],
    PrefixMaximum(): [0.6, 0.6, 0.6, 0.6],
}


@pytest.mark.parametrize(("prefix", "values"), WORKED.items(), ids=map(str, WORKED))
def test_values_worked_by_hand(prefix, values):
    close(prefix(TokenRatios.of(LOG_RATIO)), [values], tolerance=1e-8)


@pytest.mark.parametrize(("prefix", "values"), WORKED.items(), ids=map(str, WORKED))
def test_masked_tokens_are_no_positions(prefix, values):
    """The worked completion with two tokens of tool output in it, and padding."""
    mask = torch.tensor([[False, True, True, False, False, True, True, False]])
    log_ratio = torch.full((1, 8), torch.nan, dtype=torch.float64).masked_scatter(mask, LOG_RATIO)
    tokens = TokenRatios.of(torch.zeros(1, 8).double(), mask)
    context = TokenRatios(**{**vars(tokens), "log_ratio": log_ratio})
    close(prefix(context)[mask], values, tolerance=1e-8)
    assert (prefix(context)[~mask] == 0).all()


def test_a_prefix_of_a_user_is_one_short_class_with_one_method():
    assert len(inspect.getsource(PrefixMaximum).splitlines()) <= 15
    assert [name for name in vars(PrefixMaximum) if name[0] != "_"] == ["log_prefix"]


# --- the filter ------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32], ids=str)
@pytest.mark.parametrize("prior", [0.0, 1e-9, 1.0, 1e5, math.inf])
@pytest.mark.parametrize("drift", [0.0, 1e-300, 1e-12, 1e-6, 1e-3, 1.0, 50.0, 1e6, 1e300, math.inf])
def test_gains_follow_their_recursion(drift, prior, dtype):
    gain, expected = prior, []
    for _ in range(2000):
        gain = 1.0 if math.isinf(gain + drift) else (gain + drift) / (gain + drift + 1)
        expected.append(gain)
    gains = PrefixKalmanFilter(drift, prior).gains(torch.arange(1, 2001, dtype=dtype)).double()
    expected = torch.tensor(expected, dtype=torch.float64)
    tolerance = 1e-12 if dtype == torch.float64 else 1e-6
    torch.testing.assert_close(gains, expected, rtol=tolerance, atol=1e-100)


def test_the_filter_contains_ratio_geometric_mean_and_none():
    tokens = TokenRatios.of(torch.randn(3, 50, generator=torch.Generator().manual_seed(0)).double())
    close(PrefixKalmanFilter(math.inf)(tokens), tokens.log_ratio, tolerance=0)
    mean = PrefixGeometricMean()(tokens)
    close(PrefixKalmanFilter(0.0, math.inf)(tokens), mean, tolerance=1e-13)
    close(PrefixKalmanFilter(0.0, 0.0)(tokens), torch.zeros(3, 50), tolerance=0)


def test_the_default_filter_trusts_the_first_tokens_little():
    """Of a constant log ratio of 1 it passes on 1 - cosh(theta / 2) / cosh((t + 1/2) theta), theta about 0.001."""
    level = PrefixKalmanFilter()(TokenRatios.of(torch.ones(1, 1000).double()))[0]
    theta = 2 * math.asinh(1e-3 / 2)
    for position in (1, 100, 1000):
        expected = 1 - math.cosh(theta / 2) / math.cosh((position + 0.5) * theta)
        close(level[position - 1], expected, tolerance=1e-12)
    assert (round(level[99].item(), 3), round(level[999].item(), 2)) == (0.005, 0.35)


@pytest.mark.parametrize("argument", ["process_variance", "prior_variance"])
def test_variances_are_not_negative(argument):
    for variance in (-1e-6, math.nan):
        with pytest.raises(ValueError, match=rf"^`{argument}` is {variance}; pass 0 or more, or `inf`"):
            PrefixKalmanFilter(**{argument: variance})


@pytest.mark.parametrize("time", [0, 1, 2, 3, 7, 8, 1000])
def test_recurrence_equals_a_loop(time):
    generator = torch.Generator().manual_seed(time)
    decay = torch.rand(2, time, generator=generator).double().round(decimals=1)  # some are 0, some 1
    inputs = torch.randn(2, time, generator=generator).double()
    expected, value = torch.zeros(2, time).double(), torch.zeros(2).double()
    for position in range(time):
        value = decay[:, position] * value + inputs[:, position]
        expected[:, position] = value
    close(linear_recurrence(decay, inputs), expected, tolerance=1e-13)


# --- in an objective -------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("drift", "prior", "same"),
    [
        (math.inf, 0.0, {}),
        (math.inf, math.inf, {}),
        (0.0, math.inf, {"prefix": PrefixGeometricMean()}),
    ],
)
@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_objectives_of_the_family_of_the_filter(drift, prior, same, advantage):
    """An infinite drift is GRPO; no drift and no prior knowledge is the geometric mean of the prefix."""
    log_probs, batch = worked_batch(advantage)
    clip = PessimisticClip(0.2, 0.2)
    objective = PolicyObjective(ArithmeticMean(), clip, prefix=PrefixKalmanFilter(drift, prior))
    expected = PolicyObjective(ArithmeticMean(), clip, **same)
    close(objective(log_probs, batch), expected(log_probs, batch).detach(), tolerance=1e-14)
    weights, others = (part.gradient_weights(log_probs, batch).total for part in (objective, expected))
    close(weights, others, tolerance=1e-14)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_a_filter_that_trusts_nothing_is_the_policy_gradient(advantage):
    """Every ratio is one: weight A / n, whatever the policy."""
    objective = PolicyObjective(ArithmeticMean(), PessimisticClip(), prefix=PrefixKalmanFilter(0.0, 0.0))
    assert_objective(objective, advantage, advantage, [advantage / 4] * 4)


def test_the_past_has_no_gradient():
    """Under the geometric mean of the prefix, the weight of every token is its own prefix's ratio over n."""
    objective = PolicyObjective(ArithmeticMean(), prefix=PrefixGeometricMean())
    ratios = torch.tensor([0.6, 0.05, 0.1, 0.1]).double().exp()
    assert_objective(objective, 1.0, ratios.mean().item(), (ratios / 4).tolist())


class SmallRatioMask(RatioMask):
    """Masks tokens whose own log ratio is below 0.15."""

    def clipped(self, ratios):
        return ratios.raw_log_ratio < 0.15


def test_a_clip_sees_the_prefix_and_a_mask_the_token():
    log_probs, batch = worked_batch(1.0)
    for transform, clipped in (
        (PessimisticClip.log(0.2, 0.35), [True, False, False, True]),  # sums 0.6, 0.1, 0.3, 0.4
        (SmallRatioMask(), [False, True, False, True]),  # log ratios 0.6, -0.5, 0.2, 0.1
    ):
        objective = PolicyObjective(ArithmeticMean(), transform, prefix=PrefixProduct())
        assert objective.gradient_weights(log_probs, batch).clipped.tolist() == [clipped]


def test_a_prefix_beyond_the_bound_overflows():
    """Sums 15, 30, 45, 19: two tokens have neither gradient nor a ratio above e^20, and are not counted as clipped."""
    log_ratio = torch.tensor([[15.0, 15.0, 15.0, -20.0]], dtype=torch.float64)
    log_ratio[0, 3] = -26.0  # bounded to -20 on entry, so that the sum is 25
    batch = PolicyBatch(torch.zeros(1, 4).double(), torch.ones(1, 4), torch.ones(1).double())
    objective = PolicyObjective(GeometricMean(), prefix=PrefixProduct())
    inputs = log_ratio.clone().requires_grad_()
    value = objective(inputs, batch)
    value.backward()
    weights = objective.gradient_weights(log_ratio, batch)
    assert weights.overflow.tolist() == [[False, True, True, True]]
    assert not weights.clipped.any()
    close(value.log(), (15 + 20 + 20 + 20) / 4, tolerance=1e-13)
    close(weights.total, inputs.grad, tolerance=1e-6)
    assert (inputs.grad != 0).tolist() == [[True, False, False, False]]


def test_corrections_multiply_the_prefix_ratio_of_their_token_only():
    log_token = torch.tensor([[0.0, math.log(2.0), 0.0, 0.0]]).double()
    kept = torch.tensor([[True, True, False, True]])
    batch = PolicyBatch(OLD_LOG_PROBS, torch.ones(1, 4), torch.ones(1).double())
    batch = PolicyBatch(**{**vars(batch), "correction": CorrectionWeights(log_token, kept)})
    objective = PolicyObjective(ArithmeticMean(), prefix=PrefixProduct())
    weights = objective.gradient_weights(OLD_LOG_PROBS + LOG_RATIO, batch).total
    sums = torch.tensor([0.6, 0.1, 0.3, 0.4]).double()
    close(weights, [(sums.exp() * torch.tensor([1, 2, 0, 1]) / 4).tolist()])


def test_each_token_may_have_an_advantage_of_its_own():
    advantages = torch.tensor([[1.0, -1.0, 0.5, 0.0]]).double()
    batch = PolicyBatch(OLD_LOG_PROBS, torch.ones(1, 4), advantages)
    objective = PolicyObjective(ArithmeticMean(), prefix=PrefixProduct())
    weights = objective.gradient_weights(OLD_LOG_PROBS + LOG_RATIO, batch).total
    close(weights, advantages * torch.tensor([0.6, 0.1, 0.3, 0.4]).double().exp() / 4)


class ForgetsTime(PrefixAggregate):
    def log_prefix(self, tokens):
        return tokens.log_ratio.sum(dim=-1)


def test_errors_name_what_is_wrong():
    with pytest.raises(TypeError, match=r"^`prefix` is 1; pass an instance of a subclass of aggregate_po.PrefixAgg"):
        PolicyObjective(ArithmeticMean(), prefix=1)
    log_probs, batch = worked_batch(1.0)
    with pytest.raises(ValueError, match=r"^`ForgetsTime.log_prefix` returned shape \(1,\); return shape `batch time`"):
        PolicyObjective(ArithmeticMean(), prefix=ForgetsTime())(log_probs, batch)


def test_repr_shows_the_prefix_only_where_there_is_one():
    assert "prefix" not in repr(PolicyObjective(ArithmeticMean()))
    shown = "PolicyObjective(aggregator=ArithmeticMean(), prefix=PrefixProduct(), normalizer=SequenceMean())"
    assert repr(PolicyObjective(ArithmeticMean(), prefix=PrefixProduct())) == shown
