"""Outputs that the configuration of a model asks for besides its logits."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

from transformers import PreTrainedModel

_PREFIX = "output_"  # of `output_attentions`, `output_hidden_states`, `output_router_logits`


@contextmanager
def logits_only(model: PreTrainedModel) -> Iterator[None]:
    """Let the model return its logits and nothing else that its configuration asks for, within the context.

    The router logits of a mixture of experts would add an auxiliary loss, which fails with a cache, and a tuple has no
    `logits`. The configuration is restored, because the model is exported with it.
    """
    changed: list[tuple[Any, str, Any]] = []
    for config in {id(config): config for config in (model.config, model.config.get_text_config())}.values():
        for name, value in vars(config).items():
            if name.lstrip("_").startswith(_PREFIX) and value is True:
                changed.append((config, name, False))
        if getattr(config, "return_dict", True) is False:
            changed.append((config, "return_dict", True))
    for config, name, value in changed:
        setattr(config, name, value)
    try:
        yield
    finally:
        for config, name, value in changed:
            setattr(config, name, not value)
