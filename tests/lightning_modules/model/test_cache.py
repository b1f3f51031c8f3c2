"""A cache with room for further tokens holds what a cache without holds."""

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from transformers.cache_utils import DynamicLayer

from lightning_modules.model.cache import RoomyLayer, TokenCache
from tests.lightning_modules.architectures import small_model

ROOM = 3
operations = st.lists(
    st.one_of(st.integers(1, 4), st.lists(st.integers(0, 5), min_size=1, max_size=6)), min_size=1, max_size=12
)


@given(operations=operations, rows=st.integers(1, 4))
def test_any_reads_and_selections_give_the_same_keys_and_values(operations, rows):
    """A number is that of the tokens to read; a list has the rows to select."""
    layers = RoomyLayer(ROOM), DynamicLayer()
    generator = torch.Generator().manual_seed(0)
    for operation in [1, *operations]:
        if isinstance(operation, int):
            keys, values = (torch.randn(rows, 2, operation, 5, generator=generator) for _ in range(2))
            found, expected = (layer.update(keys, values) for layer in layers)
            for one, other in zip(found, expected, strict=True):
                assert torch.equal(one, other)
        else:
            chosen = torch.tensor(operation) % rows
            rows = len(chosen)
            for layer in layers:
                layer.reorder_cache(chosen)
        assert torch.equal(layers[0].keys, layers[1].keys)
        assert torch.equal(layers[0].values, layers[1].values)
        assert layers[0].get_seq_length() == layers[1].get_seq_length()


def test_keys_and_values_are_copied_once_in_so_many_tokens():
    layer, token = RoomyLayer(ROOM), torch.ones(2, 2, 1, 5)
    places = []
    for _ in range(7):
        layer.update(token, token)
        places.append(layer.keys.data_ptr())
    # There is room for multiples of three tokens, once the first one is read.
    assert [len(set(places[start:end])) for start, end in ((0, 2), (1, 3), (2, 4), (3, 6), (5, 7))] == [2, 1, 2, 1, 2]


def test_fewer_rows_stay_in_their_place():
    layer = RoomyLayer(ROOM)
    layer.update(torch.ones(4, 2, 1, 5), torch.ones(4, 2, 1, 5))
    before = layer.keys.data_ptr()
    layer.reorder_cache(torch.tensor([1, 3]))
    assert layer.keys.data_ptr() == before
    assert layer.keys.shape == (2, 2, 1, 5)


def test_a_cache_has_room_only_where_it_is_asked_for():
    model = small_model("llama")
    assert {type(layer) for layer in TokenCache(model).cache.layers} == {DynamicLayer}
    assert {type(layer) for layer in TokenCache(model, room=8).cache.layers} == {RoomyLayer}


@pytest.mark.parametrize("kind", ["gemma2", "qwen3_next", "bamba", "llama"])
def test_layers_of_other_kinds_stay_what_they_are(kind):
    model = small_model(kind)
    before = [type(layer) for layer in TokenCache(model).cache.layers]
    after = [type(layer) for layer in TokenCache(model, room=8).cache.layers]
    assert after == [RoomyLayer if layer is DynamicLayer else layer for layer in before]


def test_under_autocast_keys_and_values_have_the_precision_of_attention():
    """No pass converts those of all tokens; transformers keeps them in float32."""
    model, ids = small_model("llama"), torch.arange(12).view(2, 6)
    logits = []
    for room in (0, 8):
        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
            cache = TokenCache(model, room)
            for end in range(1, 7):
                mask, positions = torch.ones(2, end, dtype=torch.long), torch.full((2, 1), end - 1)
                last = cache.read(ids[:, end - 1 : end], mask, positions)
        dtypes = {tensor.dtype for tensor in cache.keys_and_values()}
        assert dtypes == {torch.bfloat16 if room else torch.float32}
        logits.append(last)
    assert torch.equal(*logits)


def test_autocast_leaves_keys_of_float64_alone():
    model = small_model("llama").double()
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16):
        cache = TokenCache(model, room=8)
        for end in (1, 2):
            cache.read(torch.tensor([[5]]), torch.ones(1, end, dtype=torch.long), torch.tensor([[end - 1]]))
    assert {tensor.dtype for tensor in cache.keys_and_values()} == {torch.double}
