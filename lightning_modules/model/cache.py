"""The cache of a model: keys, values and recurrent states of the tokens that it has read."""

from __future__ import annotations

import inspect
from typing import Any, cast

from torch import LongTensor, Tensor
from torch.utils._pytree import tree_leaves
from transformers import DynamicCache, PreTrainedModel


class TokenCache:
    """Keys, values and recurrent states of the tokens that a model has read, for each row of a batch.

    Args:
        model: the model that reads the tokens.

    Attributes:
        cache: the cache of transformers.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._model = model
        self.cache = DynamicCache(config=model.config)
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

    def keys_and_values(self) -> list[Tensor]:
        """Return the keys and values of all layers that have some, which grow with each token."""
        return self._of_layers("keys", "values")

    def states(self) -> list[Tensor]:
        """Return the recurrent states of all layers that have some, whose size does not depend on the tokens."""
        return self._of_layers("conv_states", "recurrent_states")

    def _of_layers(self, *names: str) -> list[Tensor]:
        found = [getattr(layer, name, None) for layer in cast(Any, self.cache.layers) for name in names]
        return [tensor for tensor in tree_leaves(found) if isinstance(tensor, Tensor)]
