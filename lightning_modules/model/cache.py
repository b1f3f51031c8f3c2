"""The cache of a model: keys, values and recurrent states of the tokens that it has read."""

from __future__ import annotations

import inspect
import math
from typing import Any, cast

import torch
from torch import LongTensor, Tensor
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, PreTrainedModel
from transformers.cache_utils import Cache, CacheLayerMixin, DynamicLayer
from typing_extensions import override


class TokenCache:
    """Keys, values and recurrent states of the tokens that a model has read, for each row of a batch.

    Args:
        model: the model that reads the tokens.
        room: number of tokens to make room for at a time, so that keys and values are copied once in so many tokens;
            no gradient flows through them then. When 0, they are copied with every read, and gradients flow.

    Attributes:
        cache: the cache of transformers.
    """

    def __init__(self, model: PreTrainedModel, room: int = 0) -> None:
        self._model = model
        self.cache = DynamicCache(config=model.config)
        if room:
            # Other classes keep a window, or something else besides keys and values.
            layers = [RoomyLayer(room) if type(layer) is DynamicLayer else layer for layer in self.cache.layers]
            self.cache.layers = layers
        parameters = inspect.signature(type(model).forward).parameters
        # Models without attention have states only, under another name.
        self._states_only = "cache_params" in parameters and "past_key_values" not in parameters

    def read(self, token_ids: Tensor, mask: Tensor, positions: Tensor, **options: Any) -> Tensor:
        """Return the logits of the next tokens of each row; shape `batch time vocabulary`.

        Args:
            token_ids: next tokens; shape `batch time`.
            mask: 1 on tokens and 0 on padding, for those read before and the next ones; shape `batch total_time`.
            positions: positions of the next tokens within their rows; shape `batch time`.
            options: further arguments of the model, such as `logits_to_keep`.
        """
        name = "cache_params" if self._states_only else "past_key_values"
        mask = mask[:, -token_ids.shape[1] :] if self._states_only else mask
        inputs = {"input_ids": token_ids, "attention_mask": mask, "position_ids": positions, name: self.cache}
        return self._model(**inputs, use_cache=True, **options).logits

    def select(self, rows: Tensor) -> None:
        """Continue with some of the rows, in the given order, each as often as it is named."""
        # Layers with recurrent states have no `batch_select_indices`.
        self.cache.reorder_cache(cast(LongTensor, rows))

    @property
    def has_room(self) -> bool:
        """Whether every layer keeps keys and values of all tokens in buffers with room for further ones."""
        layers = self.cache.layers
        return bool(layers) and all(isinstance(layer, RoomyLayer) for layer in layers)

    def fixed(self, place: Tensor) -> FixedCache:
        """Return a cache of fixed size in the same buffers, with room for one more token at least.

        Args:
            place: number of tokens read, where the next one is written; shape `1`.
        """
        layers = cast(list[RoomyLayer], self.cache.layers)
        for layer in layers:
            layer.reserve(1)
            for buffer in layer.buffers:
                buffer[:, :, layer.get_seq_length() :] = 0  # a weight of 0 does not hide what is not a number
        return FixedCache([FixedLayer(layer.buffers, place) for layer in layers])

    def extend(self, count: int) -> None:
        """Keep the next tokens that a fixed cache has written to the buffers."""
        for layer in cast(list[RoomyLayer], self.cache.layers):
            layer.extend(count)

    def keys_and_values(self) -> list[Tensor]:
        """Return the keys and values of all layers that have some, with the room for further tokens."""
        layers = self.cache.layers
        found = [layer.buffers if isinstance(layer, RoomyLayer) else _keys_and_values(layer) for layer in layers]
        return _tensors(found)

    def states(self) -> list[Tensor]:
        """Return the recurrent states of all layers that have some, whose size does not depend on the tokens."""
        names = ("conv_states", "recurrent_states")
        return _tensors([getattr(layer, name, None) for layer in cast(Any, self.cache.layers) for name in names])


class RoomyLayer(DynamicLayer):
    """Keys and values of one layer in buffers with room for further tokens; `keys` and `values` are views of those.

    Args:
        room: number of tokens to make room for at a time.
    """

    def __init__(self, room: int) -> None:
        super().__init__()
        self._room = room
        self.buffers: list[Tensor] = []  # of keys and of values; shape `batch heads time size`

    @override
    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        start = self.get_seq_length()
        end = start + key_states.shape[-2]
        states = [_as_read(key_states), _as_read(value_states)]
        if start == 0:
            # The rows of prompts are repeated next, which makes new buffers.
            self.buffers = [new.new_empty(new.shape) for new in states]
            self.is_initialized = True
        else:
            self.reserve(end - start)
        for buffer, new in zip(self.buffers, states, strict=True):
            buffer[:, :, start:end] = new
        return self._viewed(end)

    def reserve(self, count: int) -> None:
        """Make room for further tokens."""
        start = self.get_seq_length()
        if self.buffers[0].shape[-2] >= start + count:
            return
        size = math.ceil((start + count) / self._room) * self._room
        kept = [buffer[:, :, :start] for buffer in self.buffers]
        self.buffers = [old.new_empty(*old.shape[:2], size, old.shape[-1]) for old in kept]
        for buffer, old in zip(self.buffers, kept, strict=True):
            buffer[:, :, :start] = old

    def extend(self, count: int) -> None:
        """Keep the next tokens in the buffers, which were written there by others."""
        self._viewed(self.get_seq_length() + count)

    @override
    def reorder_cache(self, beam_idx: LongTensor) -> None:
        length, count = self.get_seq_length(), len(beam_idx)
        if count <= len(self.buffers[0]):
            for buffer in self.buffers:
                buffer[:count, :, :length] = buffer[:, :, :length].index_select(0, beam_idx)
            self.buffers = [buffer[:count] for buffer in self.buffers]
        else:
            self.buffers = [buffer[:, :, :length].index_select(0, beam_idx) for buffer in self.buffers]
        self._viewed(length)

    def _viewed(self, length: int) -> tuple[Tensor, Tensor]:
        keys, values = (buffer[:, :, :length] for buffer in self.buffers)
        self.keys, self.values = keys, values
        return keys, values


class FixedCache(Cache):
    """A cache of transformers whose layers are of fixed size.

    Args:
        layers: the layers.
    """

    def __init__(self, layers: list[FixedLayer]) -> None:
        super().__init__(layers=cast(Any, layers))
        self.size = layers[0].get_max_length()


class FixedLayer(CacheLayerMixin):
    """Keys and values of one layer in buffers of fixed size, where a tensor says the place of the next token.

    A pass that writes there has the same shapes and addresses for every token, so it can be captured and replayed.

    Args:
        buffers: keys and values; shape `batch heads time size`.
        place: number of tokens read, where the next one is written; shape `1`.
    """

    def __init__(self, buffers: list[Tensor], place: Tensor) -> None:
        super().__init__()
        self.keys, self.values = buffers
        self.is_initialized = True
        self._place = place

    @override
    def lazy_initialization(self, key_states: Tensor, value_states: Tensor) -> None:
        """Do nothing; the buffers are there."""

    @override
    def update(self, key_states: Tensor, value_states: Tensor, *args: Any, **kwargs: Any) -> tuple[Tensor, Tensor]:
        keys, values = cast(Tensor, self.keys), cast(Tensor, self.values)
        return (
            keys.index_copy_(2, self._place, _as_read(key_states)),
            values.index_copy_(2, self._place, _as_read(value_states)),
        )

    @override
    def get_mask_sizes(self, query_length: int) -> tuple[int, int]:
        return self.get_max_length(), 0

    @override
    def get_seq_length(self) -> Tensor:  # type: ignore[override]
        return self._place

    @override
    def get_max_length(self) -> int:
        return cast(Tensor, self.keys).shape[2]

    @override
    def get_max_cache_shape(self) -> int:
        """Return `get_max_length`, whose name this was before transformers 5.13."""
        return self.get_max_length()


def _as_read(states: Tensor) -> Tensor:
    """Return keys or values in the precision in which attention reads them, so that no pass has to convert them all."""
    kind = states.device.type
    if not torch.is_autocast_enabled(kind) or states.dtype == torch.double:  # which autocast leaves alone
        return states
    return states.to(torch.get_autocast_dtype(kind))


def _keys_and_values(layer: Any) -> list[Tensor | None]:
    return [getattr(layer, name, None) for name in ("keys", "values")]  # layers with states only have neither


def _tensors(found: Any) -> list[Tensor]:
    return [tensor for tensor in tree_leaves(found) if isinstance(tensor, Tensor)]
