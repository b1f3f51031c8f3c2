"""Attention that shares keys and values in a group: the outputs of transformers, to the bit."""

import pytest
import torch
from torch import nn
from transformers import AttentionInterface, LlamaConfig, LlamaForCausalLM
from transformers.integrations.sdpa_attention import sdpa_attention_forward
from transformers.modeling_utils import ALL_ATTENTION_FUNCTIONS

from lightning_modules.model.attention import register_attention, single_query_attention
from lightning_modules.model.cache import TokenCache


@pytest.fixture
def original():
    """Restore the attention of transformers after the test."""
    before = ALL_ATTENTION_FUNCTIONS["sdpa"]
    yield sdpa_attention_forward
    AttentionInterface.register("sdpa", before)


class Layer(nn.Module):
    def __init__(self, groups):
        super().__init__()
        self.num_key_value_groups, self.is_causal = groups, True


def inputs(heads, key_heads, time, total):
    generator = torch.Generator().manual_seed(0)
    shapes = [(2, heads, time, 8), (2, key_heads, total, 8), (2, key_heads, total, 8)]
    tensors = [torch.randn(*shape, generator=generator).requires_grad_() for shape in shapes]
    mask = torch.rand(2, 1, time, total, generator=generator) < 0.7
    mask[..., 0] = True
    return tensors, mask


@pytest.mark.parametrize("masked", ["boolean", "additive", "none"])
@pytest.mark.parametrize(("time", "total"), [(1, 9), (5, 9), (9, 9)])
@pytest.mark.parametrize(("heads", "key_heads"), [(6, 2), (6, 1), (4, 4)])
def test_outputs_are_equal_to_the_bit_and_gradients_to_rounding(original, masked, time, total, heads, key_heads):
    register_attention()
    layer = Layer(heads // key_heads)
    results = []
    for attention in (ALL_ATTENTION_FUNCTIONS["sdpa"], original):
        tensors, mask = inputs(heads, key_heads, time, total)
        if masked == "additive":
            mask = torch.zeros(mask.shape).masked_fill(~mask, -torch.inf)
        output, weights = attention(layer, *tensors, None if masked == "none" else mask, scaling=0.3)
        assert weights is None
        results.append([output, *torch.autograd.grad(output.square().sum(), tensors)])
    assert torch.equal(results[0][0], results[1][0])
    for one, other in zip(*results, strict=True):
        torch.testing.assert_close(one, other, rtol=1e-5, atol=1e-5)


def test_keys_and_values_are_not_repeated(original, monkeypatch):
    def fail(*_):
        raise AssertionError("repeated")

    monkeypatch.setattr("transformers.integrations.sdpa_attention.repeat_kv", fail)
    config = LlamaConfig(
        vocab_size=50, hidden_size=16, intermediate_size=8, num_hidden_layers=1, num_attention_heads=4,
        num_key_value_heads=2, attn_implementation="sdpa",
    )  # fmt: skip
    model = LlamaForCausalLM(config)
    mask = torch.ones(2, 3, dtype=torch.long)
    mask[0, 0] = 0

    def read():
        return TokenCache(model).read(torch.ones(2, 3, dtype=torch.long), mask, mask.cumsum(dim=-1))

    AttentionInterface.register("sdpa", original)
    with pytest.raises(AssertionError, match="repeated"):
        read()
    register_attention()
    assert read().shape == (2, 3, 50)


def test_a_bias_of_positions_is_left_to_transformers(original):
    register_attention()
    tensors, mask = inputs(6, 2, 5, 9)
    bias = torch.randn(1, 6, 5, 9, generator=torch.Generator().manual_seed(1))
    found, _ = ALL_ATTENTION_FUNCTIONS["sdpa"](Layer(3), *tensors, mask, position_bias=bias)
    expected, _ = original(Layer(3), *tensors, mask, position_bias=bias)
    assert torch.equal(found, expected)
    assert not torch.equal(found, original(Layer(3), *tensors, mask)[0])


@pytest.mark.parametrize(("heads", "key_heads", "masked"), [(6, 2, True), (6, 2, False), (4, 4, True)])
def test_cudnn_makes_no_plans(original, monkeypatch, heads, key_heads, masked):
    """Both ways into the attention of PyTorch: this library's, and that of transformers."""
    seen = []

    def noted(*arguments, **options):
        seen.append(torch.backends.cuda.cudnn_sdp_enabled())
        return attention(*arguments, **options)

    attention = nn.functional.scaled_dot_product_attention
    monkeypatch.setattr(nn.functional, "scaled_dot_product_attention", noted)
    monkeypatch.setattr("lightning_modules.model.attention.scaled_dot_product_attention", noted)
    register_attention()
    tensors, mask = inputs(heads, key_heads, 5, 9)
    before = torch.backends.cuda.cudnn_sdp_enabled()
    for enabled in (True, False):
        torch.backends.cuda.enable_cudnn_sdp(enabled)
        ALL_ATTENTION_FUNCTIONS["sdpa"](Layer(heads // key_heads), *tensors, mask if masked else None)
        assert torch.backends.cuda.cudnn_sdp_enabled() is enabled
    torch.backends.cuda.enable_cudnn_sdp(before)
    assert seen == [False, False]


@pytest.mark.parametrize("scale", [None, 0.3])
@pytest.mark.parametrize(("heads", "key_heads"), [(6, 2), (6, 1), (9, 3)])
def test_the_queries_of_a_group_may_be_those_of_tokens(heads, key_heads, scale):
    (query, key, value), mask = inputs(heads, key_heads, 1, 9)
    found = single_query_attention(query, key, value, mask, 0.0, scale)
    expected = nn.functional.scaled_dot_product_attention(query, key, value, mask, scale=scale, enable_gqa=True)
    torch.testing.assert_close(found, expected.transpose(1, 2))
