"""Products of matrices by oneDNN: those of PyTorch to rounding, and differentiable."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from aggregate_po import products
from aggregate_po.products import product

LARGE = (48, 300, 120)  # rows, inner size and columns of a product that oneDNN computes


@pytest.fixture
def calls(monkeypatch):
    """Return the number of products that oneDNN computes, in a list of one."""
    counted, onednn = [0], torch.ops.mkldnn._linear_pointwise

    def count(*arguments):
        counted[0] += 1
        return onednn(*arguments)

    monkeypatch.setattr(torch.ops.mkldnn, "_linear_pointwise", count)
    return counted


def matrices(rows, inner, columns, dtype=torch.float32, seed=0):
    generator = torch.Generator().manual_seed(seed)
    return (torch.randn(*shape, generator=generator, dtype=dtype) for shape in ((rows, inner), (inner, columns)))


def transposed(matrix):
    """Return the same matrix with another order in memory."""
    return matrix.t().contiguous().t()


served = pytest.mark.skipif(not products._AVAILABLE, reason="PyTorch multiplies by MKL on this processor")


@served
@given(
    rows=st.integers(1, 300),
    inner=st.integers(1, 300),
    columns=st.integers(1, 300),
    order=st.tuples(st.booleans(), st.booleans()),
)
def test_a_product_is_that_of_float64_to_rounding(rows, inner, columns, order):
    left, right = (
        transposed(m) if turned else m for m, turned in zip(matrices(rows, inner, columns), order, strict=True)
    )
    found = product(left, right)
    expected = left.double() @ right.double()
    assert found.dtype == torch.float32
    assert (found - expected).abs().max() <= 1e-6 * inner + 1e-6


@served
def test_large_products_are_those_of_onednn_and_small_ones_are_not(calls):
    product(*matrices(*LARGE))
    assert calls == [1]
    product(*matrices(4, 30, 12))
    assert calls == [1]


@served
def test_gradients_are_those_of_the_products_of_pytorch(calls):
    left, right = (matrix.requires_grad_() for matrix in matrices(*LARGE))
    slopes = torch.randn(LARGE[0], LARGE[2], generator=torch.Generator().manual_seed(1))
    found = torch.autograd.grad((product(left, right) * slopes).sum(), (left, right))
    expected = torch.autograd.grad((left @ right * slopes).sum(), (left, right))
    assert calls == [3]
    for one, other in zip(found, expected, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-4)


@served
def test_second_derivatives_are_those_of_the_products_of_pytorch():
    left, right = (matrix.requires_grad_() for matrix in matrices(*LARGE))
    second = []
    for multiply in (product, torch.matmul):
        (first,) = torch.autograd.grad(multiply(left, right).square().sum(), left, create_graph=True)
        second.append(torch.autograd.grad(first.square().sum(), right)[0])
    torch.testing.assert_close(*second, rtol=1e-4, atol=1e-4 * float(second[1].abs().max()))


@pytest.mark.parametrize("needed", [0, 1])
def test_a_gradient_that_nothing_needs_is_not_computed(calls, needed):
    both = list(matrices(*LARGE))
    both[needed].requires_grad_()
    product(*both).sum().backward()
    assert both[needed].grad is not None
    assert both[1 - needed].grad is None
    assert calls == [2 if products._AVAILABLE else 0]


@pytest.mark.parametrize("dtype", [torch.float64, torch.bfloat16])
def test_other_dtypes_are_left_to_pytorch(calls, dtype):
    left, right = matrices(*LARGE, dtype=dtype)
    assert torch.equal(product(left, right), left @ right)
    assert calls == [0]


def test_autocast_is_left_to_pytorch(calls):
    left, right = matrices(*LARGE)
    with torch.autocast("cpu", torch.bfloat16):
        assert product(left, right).dtype == torch.bfloat16
    assert calls == [0]


@served
def test_few_rows_are_the_columns_of_the_transposed_product():
    left, right = matrices(products._FEW, 300, 120)
    found = product(left, right)
    assert found.is_contiguous()
    torch.testing.assert_close(found, left @ right, rtol=1e-5, atol=1e-4)
