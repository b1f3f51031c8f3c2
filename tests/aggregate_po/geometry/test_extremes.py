"""Every function of the power family: padding, empty completions, single tokens, large numbers, both precisions."""

import pytest
import torch

from aggregate_po import geometry
from tests.aggregate_po.worked_example import LOG_RATIO

OF_AN_EXPONENT = [
    *(geometry.power_weights, geometry.power_weights_derivative, geometry.tilted_mean, geometry.tilted_variance),
    *(geometry.power_entropy, geometry.power_entropy_derivative, geometry.power_ess),
    *(geometry.log_power_ess_derivative, geometry.log_power_mean_derivative, geometry.log_variance_proxy),
    *(geometry.extreme_weight, geometry.residual_weight, geometry.residual_weight_bound),
]
OF_RATIOS = {
    "am_gm_gap": geometry.am_gm_gap,
    "lower bound": lambda x, mask: geometry.am_gm_bounds(x, mask)[0],
    "upper bound": lambda x, mask: geometry.am_gm_bounds(x, mask)[1],
    "order_gap_bound": lambda x, mask: geometry.order_gap_bound(x, mask, 2.0, -1.0),
    "exponent_of_ess": lambda x, mask: geometry.exponent_of_ess(x, mask, 0.7, 1e3),
    "committal_exponent": geometry.committal_exponent,
    "variance_minimizing_exponent": geometry.variance_minimizing_exponent,
}
EXPONENTS = [0.0, 5e-324, -1e-12, 1e-6, 0.5, 1.0, -2.0, 30.0, 1e3, -1e3]

each_function = pytest.mark.parametrize(
    "function",
    [
        *(lambda x, mask, f=f: torch.stack([f(x, mask, p) for p in EXPONENTS]) for f in OF_AN_EXPONENT),
        *OF_RATIOS.values(),
    ],
    ids=[*(f.__name__ for f in OF_AN_EXPONENT), *OF_RATIOS],
)

# Ties, one token, none, the largest spread, the smallest spread, and a level far from zero.
ROWS = torch.tensor(
    [
        [80.0, -80.0, 80.0, 0.0],
        [-80.0, 0.0, 0.0, 0.0],
        [0.0, 0.0, 0.0, 0.0],
        [80.0, -80.0, -79.5, 79.0],
        [0.0, 1e-38, 0.0, 0.0],
        [79.0, 79.5, 79.0, 80.0],
    ],
    dtype=torch.float64,
)
MASK = torch.tensor([[1, 1, 1, 1], [1, 0, 0, 0], [0, 0, 0, 0], [1, 1, 1, 1], [1, 1, 0, 0], [1, 1, 1, 0]]).bool()


@each_function
@pytest.mark.parametrize("dtype", [torch.float32, torch.float64], ids=["float32", "float64"])
def test_values_are_finite_and_keep_their_precision(function, dtype):
    result = function(ROWS.to(dtype), MASK)
    assert result.dtype == dtype
    assert torch.isfinite(result).all()


@each_function
@pytest.mark.parametrize("padding", [float("nan"), float("inf"), -1e30])
def test_padding_changes_nothing(function, padding):
    expected = function(torch.where(MASK, ROWS, 0), MASK)
    assert torch.equal(function(torch.where(MASK, ROWS, padding), MASK), expected)


@each_function
def test_an_empty_completion_gives_zero(function):
    result = function(torch.full((1, 3), float("nan")), torch.zeros(1, 3, dtype=torch.bool))
    assert (result == 0).all()


@each_function
def test_single_precision_agrees_with_double(function):
    mask = torch.ones(1, 4, dtype=torch.bool)
    torch.testing.assert_close(
        function(LOG_RATIO.float(), mask).double(), function(LOG_RATIO.float().double(), mask), rtol=1e-4, atol=1e-6
    )


def test_a_single_token_has_everything():
    row, mask = torch.tensor([[0.3]]), torch.ones(1, 1, dtype=torch.bool)
    for exponent in EXPONENTS:
        assert geometry.power_weights(row, mask, exponent).item() == 1
        assert geometry.power_ess(row, mask, exponent).item() == 1
        assert geometry.extreme_weight(row, mask, exponent).item() == 1
        assert geometry.tilted_mean(row, mask, exponent).item() == row.item()
        for vanishing in (geometry.tilted_variance, geometry.power_entropy, geometry.log_power_mean_derivative):
            assert vanishing(row, mask, exponent).item() == 0


def test_gradients_in_log_ratios_and_exponent_are_finite():
    for function in (geometry.power_weights, geometry.tilted_mean, geometry.power_ess, geometry.log_variance_proxy):
        log_ratio = torch.where(MASK, ROWS, float("nan")).requires_grad_()
        exponent = torch.tensor([0.0, 1.0, 2.0, -1e3, 1e3, 1e-9], dtype=torch.float64, requires_grad=True)
        function(log_ratio, MASK, exponent).sum().backward()
        assert torch.isfinite(log_ratio.grad).all()
        assert torch.isfinite(exponent.grad).all()
