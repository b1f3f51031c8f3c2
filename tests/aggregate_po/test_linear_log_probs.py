"""Log-probabilities from hidden states, in chunks: values and gradients of the plain way, and less memory."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch.utils._python_dispatch import TorchDispatchMode

from aggregate_po import linear_log_probs, linear_log_probs_and_entropy

TOLERANCE = {torch.float64: 1e-12, torch.float32: 1e-6}


def plain(hidden, weight, targets, bias=None, temperature=1.0, softcap=None):
    """All logits at once."""
    logits = torch.nn.functional.linear(hidden, weight, bias)
    if softcap is not None:
        logits = softcap * torch.tanh(logits / softcap)
    log_p = torch.log_softmax(logits / temperature, dim=-1)
    return log_p.gather(-1, targets.unsqueeze(-1)).squeeze(-1), -(log_p.exp() * log_p).sum(dim=-1)


def problem(shape, width, vocabulary, dtype=torch.float64, seed=0, with_bias=True):
    generator = torch.Generator().manual_seed(seed)
    hidden = torch.randn(*shape, width, generator=generator, dtype=dtype)
    weight = torch.randn(vocabulary, width, generator=generator, dtype=dtype) / math.sqrt(width)
    bias = torch.randn(vocabulary, generator=generator, dtype=dtype) if with_bias else None
    targets = torch.randint(vocabulary, shape, generator=generator)
    inputs = [tensor.requires_grad_() for tensor in (hidden, weight, bias) if tensor is not None]
    return inputs, targets, [torch.randn(*shape, generator=generator, dtype=dtype) for _ in range(2)]


def gradients(values, slopes, inputs):
    total = sum((value * slope).sum() for value, slope in zip(values, slopes, strict=False))
    return torch.autograd.grad(total, inputs)


def close(found, expected, tolerance):
    """Return whether the numbers agree, relative to the largest of them if that is over 1."""
    pairs = [(a, b) for a, b in zip(found, expected, strict=True) if a.numel()]
    scale = max([1.0] + [b.abs().max().item() for _, b in pairs])
    return all((a - b).abs().max().item() <= tolerance * scale for a, b in pairs)


shapes = st.lists(st.integers(0, 5), min_size=1, max_size=3)


@pytest.mark.parametrize("dtype", [torch.float64, torch.float32])
@given(
    shape=shapes,
    width=st.integers(1, 9),
    vocabulary=st.integers(1, 40),
    chunk_size=st.none() | st.integers(1, 30),
    temperature=st.floats(0.3, 3.0),
    softcap=st.none() | st.floats(1.0, 30.0),
    with_bias=st.booleans(),
    seed=st.integers(0, 1000),
)
def test_values_and_gradients_are_those_of_all_logits_at_once(
    dtype, shape, width, vocabulary, chunk_size, temperature, softcap, with_bias, seed
):
    inputs, targets, slopes = problem(shape, width, vocabulary, dtype, seed, with_bias)
    bias = inputs[2] if with_bias else None
    options = {"temperature": temperature, "softcap": softcap}
    both = linear_log_probs_and_entropy(*inputs[:2], targets, bias, chunk_size=chunk_size, **options)
    alone = linear_log_probs(*inputs[:2], targets, bias, chunk_size=chunk_size, **options)
    assert torch.equal(alone, both[0])
    # In float32 the plain way rounds as well, so both are held against float64.
    exact = [tensor.detach().double().requires_grad_() for tensor in inputs]
    for found in ([alone], both):
        expected = plain(*exact[:2], targets, exact[2] if with_bias else None, **options)[: len(found)]
        assert close(found, expected, TOLERANCE[dtype])
        exact_slopes = [slope.double() for slope in slopes]
        found, expected = gradients(found, slopes, inputs), gradients(expected, exact_slopes, exact)
        assert close(found, expected, 2 * TOLERANCE[dtype])


@pytest.mark.parametrize("softcap", [None, 2.0])
def test_gradients_are_those_of_finite_differences(softcap):
    (hidden, weight, bias), targets, _ = problem((3, 2), 4, 6)

    def both(hidden, weight, bias):
        return linear_log_probs_and_entropy(hidden, weight, targets, bias, 0.7, softcap, chunk_size=4)

    assert torch.autograd.gradcheck(both, (hidden, weight, bias))


def test_worked_example():
    """Two tokens of equal logits but one, which is ln 2 higher: probabilities 1/4, 1/4, 1/2."""
    hidden, weight = torch.tensor([[math.log(2.0)]]), torch.tensor([[0.0], [0.0], [1.0]])
    log_probs, entropy = linear_log_probs_and_entropy(hidden, weight, torch.tensor([2]))
    assert log_probs.item() == pytest.approx(math.log(1 / 2))
    assert entropy.item() == pytest.approx(1.5 * math.log(2))
    hot = linear_log_probs(hidden, weight, torch.tensor([0]), temperature=0.5)  # 1/6, 1/6, 4/6
    assert hot.item() == pytest.approx(math.log(1 / 6))


class LargestTensor(TorchDispatchMode):
    """Elements of the largest tensor that any operation makes."""

    elements = 0

    def __torch_dispatch__(self, function, types, args=(), kwargs=None):
        result = function(*args, **(kwargs or {}))
        made = result if isinstance(result, (tuple, list)) else [result]
        self.elements = max([self.elements] + [one.numel() for one in made if isinstance(one, torch.Tensor)])
        return result


def test_no_more_logits_are_held_than_of_one_chunk():
    (hidden, weight, bias), targets, slopes = problem((64,), 8, 100)
    with LargestTensor() as way:
        gradients(linear_log_probs_and_entropy(hidden, weight, targets, bias, 0.7, 5.0, 16), slopes, [hidden, weight])
    assert way.elements == 16 * 100
    with LargestTensor() as whole:
        gradients(plain(hidden, weight, targets, bias, 0.7, 5.0), slopes, [hidden, weight])
    assert whole.elements == 64 * 100


def test_inputs_that_do_not_require_gradient_get_none():
    """As with LoRA, where the output layer is frozen."""
    (hidden, weight, bias), targets, (slope, _) = problem((5,), 4, 7)
    weight.requires_grad_(False)
    log_probs = linear_log_probs(hidden, weight, targets, bias)
    (log_probs * slope).sum().backward()
    assert weight.grad is None
    assert hidden.grad is not None
    with torch.no_grad():
        assert not linear_log_probs(hidden, weight, targets, bias).requires_grad


def test_autocast_is_kept_to_for_products_alone():
    (hidden, weight, bias), targets, slopes = problem((40,), 64, 300, torch.float32)
    with torch.autocast("cpu", torch.bfloat16):
        found = linear_log_probs_and_entropy(hidden, weight, targets, bias, chunk_size=7)
    assert [value.dtype for value in found] == [torch.float32] * 2
    a = gradients(found, slopes, [hidden, weight, bias])
    assert [value.dtype for value in a] == [torch.float32] * 3
    expected = plain(hidden, weight, targets, bias)
    b = gradients(expected, slopes, [hidden, weight, bias])
    for one, other in zip((*found, *a), (*expected, *b), strict=True):
        error = (one - other).abs().max() / other.abs().max()
        assert error < 0.02
    assert (found[0] - expected[0]).abs().max() > 1e-5  # the products were in bfloat16


def test_half_precision_sums_its_gradient_over_chunks_in_single_precision():
    """Each chunk adds less than the next number of bfloat16 after 1 is away: a sum in bfloat16 would stand still."""
    hidden = torch.ones(600, 1, dtype=torch.bfloat16)
    weight = torch.zeros(2, 1, dtype=torch.bfloat16, requires_grad=True)
    linear_log_probs(hidden, weight, torch.zeros(600, dtype=torch.long), chunk_size=1).sum().backward()
    assert weight.dtype == weight.grad.dtype == torch.bfloat16
    assert weight.grad.flatten().tolist() == [300.0, -300.0]


def test_extreme_hidden_states_give_finite_numbers():
    (hidden, weight, _), targets, slopes = problem((6,), 4, 9, torch.float32)
    large = (hidden.detach() * 1e4).requires_grad_()
    found = linear_log_probs_and_entropy(large, weight, targets)
    for value in (*found, *gradients(found, slopes, [large, weight])):
        assert torch.isfinite(value).all()


@pytest.mark.filterwarnings("ignore")
def test_it_can_be_compiled():
    (hidden, weight, bias), targets, slopes = problem((10,), 4, 9)
    compiled = torch.compile(linear_log_probs_and_entropy, backend="aot_eager")
    found = compiled(hidden, weight, targets, bias, 0.7, None, 4)
    expected = plain(hidden, weight, targets, bias, 0.7)
    assert close(found, expected, 1e-12)
    inputs = [hidden, weight, bias]
    assert close(gradients(found, slopes, inputs), gradients(expected, slopes, inputs), 1e-12)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        ({"targets": torch.zeros(3, dtype=torch.long)}, r"`targets` has shape \(3,\), but `hidden` has \(2, 4\)"),
        ({"weight": torch.zeros(5, 3)}, "`weight` has hidden=3, but `hidden` has hidden=4"),
        ({"bias": torch.zeros(4)}, "`bias` has vocabulary=4, but `weight` has vocabulary=5"),
        ({"temperature": 0.0}, r"`temperature` is 0\.0; pass a positive number"),
        ({"softcap": -1.0}, r"`softcap` is -1\.0; pass a positive number, or None"),
        ({"chunk_size": 0}, "`chunk_size` is 0; pass 1 or more"),
    ],
)
def test_errors_name_argument_value_and_remedy(change, message):
    arguments = {"hidden": torch.zeros(2, 4), "weight": torch.zeros(5, 4), "targets": torch.zeros(2, dtype=torch.long)}
    with pytest.raises(ValueError, match=message):
        linear_log_probs(**{**arguments, **change})
