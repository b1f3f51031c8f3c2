"""Clips: which side they bound, and where exactly."""

import math
from dataclasses import replace

import pytest
import torch

from aggregate_po import LogPessimisticClip, PessimisticClip, TokenRatios
from aggregate_po.transforms import Chain, NegativeCap, RatioTransform, ScaledClip
from tests.aggregate_po.worked_example import LOG_RATIO, close
from tests.third_party import TanhLimit


def tokens(log_ratio, advantage):
    return TokenRatios.of(
        torch.as_tensor(log_ratio, dtype=torch.float64), advantages=torch.tensor([advantage], dtype=torch.float64)
    )


@pytest.mark.parametrize(
    ("advantage", "clipped"),
    [(1.0, [1.2, 0.5, 1.2]), (-1.0, [1.5, 0.8, 1.2]), (0.0, [1.5, 0.5, 1.2])],
    ids=["from above", "from below", "not at all"],
)
def test_clip_bounds_one_side_by_the_sign_of_the_advantage(advantage, clipped):
    context = tokens(torch.tensor([[1.5, 0.5, 1.2]], dtype=torch.float64).log(), advantage)
    close(PessimisticClip(0.2, 0.2)(context).exp(), [clipped], tolerance=1e-12)


def test_clip_is_the_minimum_of_the_ppo_objective():
    """min(r A, clip(r) A), computed in ratio space."""
    ratio = torch.linspace(0.3, 2.0, 35).double().unsqueeze(0)
    for advantage in (-1.7, 0.6):
        expected = torch.minimum(ratio * advantage, ratio.clamp(0.7, 1.28) * advantage)
        actual = PessimisticClip(0.3, 0.28)(tokens(ratio.log(), advantage)).exp() * advantage
        close(actual, expected, tolerance=1e-14)


@pytest.mark.parametrize(
    ("clip", "lower", "upper"),
    [
        (PessimisticClip(0.2, 0.28), math.log1p(-0.2), math.log1p(0.28)),
        (PessimisticClip.log(0.3, 0.4), -0.3, 0.4),
        (LogPessimisticClip(0.0, 0.0), 0.0, 0.0),
    ],
    ids=["ratio", "log", "none at all"],
)
def test_gradient_passes_on_the_bound_and_not_beyond(clip, lower, upper):
    log_ratio = [
        [math.nextafter(lower, -9), lower, math.nextafter(lower, 9)],
        [math.nextafter(upper, -9), upper, math.nextafter(upper, 9)],
    ]
    below, above = tokens(log_ratio[:1], -1.0), tokens(log_ratio[1:], 1.0)
    assert clip.derivative(below).tolist() == [[0.0, 1.0, 1.0]]
    assert clip.saturated(below).tolist() == [[True, False, False]]
    assert clip.derivative(above).tolist() == [[1.0, 1.0, 0.0]]
    assert clip.saturated(above).tolist() == [[False, False, True]]
    for context in (below, above):
        assert torch.equal(RatioTransform.derivative(clip, context), clip.derivative(context))


@pytest.mark.parametrize(("clip_low", "clip_high"), [(1.0, math.inf), (3.0, math.inf)])
def test_bounds_may_be_absent(clip_low, clip_high):
    clip = PessimisticClip(clip_low, clip_high)
    for advantage in (-1.0, 1.0):
        context = tokens([[80.0, -80.0, 0.0]], advantage)
        assert torch.equal(clip(context), context.log_ratio)
        assert not clip.saturated(context).any()


def test_log_constructor_states_the_bounds_on_the_log_ratio():
    assert PessimisticClip.log(0.3, 0.5) == LogPessimisticClip(log_clip_low=0.3, log_clip_high=0.5)


def test_clip_of_a_mean_scaled_by_the_length_bounds_the_sum():
    """Means of completions of lengths 1, 2 and 4: the sums 0.5, 0.5, 0.5 are held at 0.4, or at -0.3."""
    mask = torch.arange(4) < torch.tensor([[1], [2], [4]])
    context = TokenRatios.of(torch.zeros(3, 4).double(), mask, advantages=torch.ones(3).double())
    clip = ScaledClip(PessimisticClip.log(0.3, 0.4), exponent=-1)
    means = context.after_mean(torch.tensor([0.5, 0.25, 0.125], dtype=torch.float64))
    close(clip(means), [0.4, 0.2, 0.1], tolerance=1e-15)
    negative = replace(means, log_ratio=-means.log_ratio, advantages=-means.advantages)
    close(clip(negative), [-0.3, -0.15, -0.075], tolerance=1e-15)
    assert clip.saturated(means).all()
    assert not clip.saturated(replace(means, advantages=-means.advantages)).any()


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_clip_scaled_by_the_position_counts_response_tokens_only(advantage):
    """Bounds 0.025 sqrt(t) below and 0.05 sqrt(t) above; a hole in the completion is no position."""
    sign = -1 if advantage < 0 else 1
    mask = torch.tensor([[True, False, True, True, False]])
    context = TokenRatios.of(sign * torch.ones(1, 5).double(), mask, torch.tensor([advantage]).double())
    clip = ScaledClip(PessimisticClip.log(0.025, 0.05), exponent=0.5)
    bound = 0.05 if advantage > 0 else -0.025
    close(clip(context)[mask], [bound, bound * math.sqrt(2), bound * math.sqrt(3)], tolerance=1e-15)


def test_scaled_cap_bounds_a_negative_advantage_from_above():
    context = tokens([[0.06, 0.06, 0.2]], -1.0)
    cap = ScaledClip(NegativeCap(math.exp(0.05)), exponent=0.5)
    close(cap(context), [[0.05, 0.06, 0.05 * math.sqrt(3)]], tolerance=1e-15)
    close(cap(replace(context, advantages=-context.advantages)), [[0.06, 0.06, 0.2]], tolerance=0)


def test_scaled_clip_leaves_an_absent_bound_absent():
    context = tokens([[80.0, -80.0]], 1.0)
    assert torch.equal(ScaledClip(PessimisticClip(1.0, math.inf), exponent=-1)(context), context.log_ratio)


def test_scaled_clip_states_what_it_takes():
    with pytest.raises(TypeError, match=r"^`transforms` is PessimisticClip\(.*; pass a list"):
        Chain(PessimisticClip(0.2, 0.2))
    with pytest.raises(TypeError, match=r"^`clip` is 0.4; pass a subclass of Clip"):
        ScaledClip(0.4, exponent=-1)
    for exponent in (math.nan, 5.0, -math.inf):
        with pytest.raises(ValueError, match=rf"^`exponent` is {exponent}; pass a number within"):
            ScaledClip(PessimisticClip(), exponent)


@pytest.mark.parametrize("clip", [PessimisticClip, LogPessimisticClip])
@pytest.mark.parametrize("bound", [-0.1, math.nan])
def test_bounds_are_distances(clip, bound):
    with pytest.raises(ValueError, match=rf"^`(log_)?clip_low` is {bound}; pass a distance"):
        clip(bound, 0.2)
    with pytest.raises(ValueError, match=rf"^`(log_)?clip_high` is {bound}; pass a distance"):
        clip(0.2, bound)


def test_derivative_and_saturation_of_a_users_transform():
    context = tokens(torch.cat([LOG_RATIO, torch.tensor([[80.0]]).double()], dim=1), 1.0)
    transform = TanhLimit(2.0)
    close(transform.derivative(context), 1 / torch.cosh(context.log_ratio / 2).square(), tolerance=1e-14)
    assert transform.saturated(context).tolist() == [[False] * 4 + [True]]
