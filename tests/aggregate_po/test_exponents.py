"""Rules for the exponent: the numbers of the worked completion, and the ends of the interval."""

import pytest
import torch

from aggregate_po import ESSMatching, FixedExponent, LinearExponent, PowerMean, StepTotals, TokenRatios
from aggregate_po.exponents import interpolated_target
from aggregate_po.transforms import PessimisticClip
from tests.aggregate_po.worked_example import LOG_RATIO, close, worked_tokens

CLIP = PessimisticClip.log(0.4, 0.4)


def constant_target(share):
    return ESSMatching(target=lambda clipped_fraction, arithmetic_ess: torch.full_like(arithmetic_ess, share))


@pytest.mark.parametrize(
    ("advantage", "arithmetic_ess", "target", "exponent"),
    [(1, 0.92242775, 0.94182082, 0.83608066), (-1, 0.89557504, 0.92168128, 0.84772970)],
)
def test_exponent_of_the_worked_completion(advantage, arithmetic_ess, target, exponent):
    seen = []

    def recorded(clipped_fraction, ess):
        seen.extend([clipped_fraction, ess, interpolated_target(clipped_fraction, ess)])
        return seen[-1]

    tokens = worked_tokens(CLIP, advantage)
    close(ESSMatching(target=recorded)(tokens), [exponent])
    for actual, expected in zip(seen, ([0.25], [arithmetic_ess], [target]), strict=True):
        close(actual, expected)
    close(ESSMatching()(tokens), [exponent])


def test_exponent_is_found_on_the_values_that_the_mean_averages():
    """On raw ratios, with the same clipped fraction, it would be another."""
    saturated = worked_tokens(CLIP, 1).saturated
    raw = TokenRatios(**{**vars(TokenRatios.of(LOG_RATIO)), "saturated": saturated})
    close(ESSMatching()(raw), [0.84112819])


def test_effective_sample_size_meets_the_target():
    close(constant_target(0.95)(TokenRatios.of(LOG_RATIO)), [0.6110222])
    close(ESSMatching(target=lambda clipped_fraction, arithmetic_ess: 0.95)(TokenRatios.of(LOG_RATIO)), [0.6110222])


@pytest.mark.parametrize(
    ("share", "exponent"),
    [(0.5, 1.0), (0.88311, 1.0), (1.0, 0.0), (1.5, 0.0)],
    ids=["far below ESS(1)/n", "just below ESS(1)/n", "full length", "beyond the full length"],
)
def test_targets_out_of_reach_give_the_ends_exactly(share, exponent):
    assert constant_target(share)(TokenRatios.of(LOG_RATIO)).item() == exponent


@pytest.mark.parametrize("share", [0.2, 1.0])
@pytest.mark.parametrize("log_ratio", [0.0, -0.3, 0.1, 80.0])
def test_equal_ratios_give_one(share, log_ratio):
    tokens = TokenRatios.of(torch.full((1, 7), log_ratio, dtype=torch.float64))
    assert constant_target(share)(tokens).item() == 1.0


@pytest.mark.parametrize(("clipped", "exponent"), [(0, 1.0), (4, 0.0)], ids=["none clipped", "all clipped"])
def test_default_target_runs_from_the_arithmetic_to_the_geometric_mean(clipped, exponent):
    saturated = torch.arange(4).unsqueeze(0) < clipped
    tokens = TokenRatios(**{**vars(TokenRatios.of(LOG_RATIO)), "saturated": saturated})
    assert ESSMatching()(tokens).item() == exponent


def test_exponents_of_a_batch_are_those_of_its_rows():
    rows = torch.cat([LOG_RATIO, LOG_RATIO * 3, LOG_RATIO * 0, torch.zeros_like(LOG_RATIO)])
    mask = torch.tensor([[True] * 4, [True, True, True, False], [True] * 4, [False] * 4])
    together = constant_target(0.8)(TokenRatios.of(rows, mask))
    alone = [
        constant_target(0.8)(TokenRatios.of(row[kept].unsqueeze(0)))
        for row, kept in zip(rows, mask, strict=True)
        if kept.any()
    ]
    torch.testing.assert_close(together[:3], torch.cat(alone), rtol=1e-12, atol=0)
    assert 0 < together[1] < 1
    assert torch.isfinite(together[3])


def test_extreme_ratios_leave_the_exponent_in_its_interval():
    tokens = TokenRatios.of(torch.tensor([[80.0, -80.0, 0.0]], dtype=torch.float64))
    exponent = constant_target(0.9)(tokens)
    shares = torch.softmax(exponent.unsqueeze(-1) * tokens.log_ratio, dim=-1)
    close(1 / shares.square().sum() / 3, 0.9, tolerance=1e-9)


def test_exponent_is_a_constant_to_the_gradient():
    """A gradient through the exponent would add to the power weights, which alone sum to one and stay positive."""
    log_ratio = LOG_RATIO.clone().requires_grad_()
    mean = PowerMean(constant_target(0.95))
    mean.log_aggregate(TokenRatios.of(log_ratio)).sum().backward()
    close(log_ratio.grad, torch.softmax(0.6110222 * LOG_RATIO, dim=-1))


@pytest.mark.parametrize(("progress", "value"), [(0.0, 2.0), (0.25, 1.0), (0.5, 0.0), (1.0, -2.0)])
def test_linear_exponent_follows_the_progress(progress, value):
    tokens = TokenRatios.of(LOG_RATIO, totals=StepTotals(1, 4, progress=progress))
    assert LinearExponent(2.0, -2.0)(tokens).item() == value


@pytest.mark.parametrize(("progress", "value"), [(0.0, 2.0), (0.0625, 0.0), (0.125, -2.0), (0.2, -2.0), (1.0, -2.0)])
def test_linear_exponent_is_constant_after_its_duration(progress, value):
    """500 optimizer steps of 4,000."""
    tokens = TokenRatios.of(LOG_RATIO, totals=StepTotals(1, 4, progress=progress))
    assert LinearExponent(2.0, -2.0, duration=500 / 4000)(tokens).item() == value


@pytest.mark.parametrize("duration", [0.0, -0.5, 1.5])
def test_a_schedule_takes_a_part_of_training(duration):
    with pytest.raises(ValueError, match=rf"^`duration` is {duration}; pass a fraction of training, above 0"):
        LinearExponent(duration=duration)


def test_linear_exponent_needs_the_progress():
    with pytest.raises(ValueError, match=r"^`totals.progress` is None, but LinearExponent follows it; pass it to Step"):
        LinearExponent(1.0, -1.0)(TokenRatios.of(LOG_RATIO))


def test_fixed_exponent_is_what_a_number_means():
    tokens = TokenRatios.of(LOG_RATIO)
    by_rule, by_number = PowerMean(FixedExponent(0.5)), PowerMean(0.5)
    assert torch.equal(by_rule.log_aggregate(tokens), by_number.log_aggregate(tokens))
    close(by_rule.log_aggregate(tokens).exp(), [1.14763099])
