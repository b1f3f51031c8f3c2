"""Refusal of code that comes with a model, which transformers would run after a question on the terminal."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager

from transformers import dynamic_module_utils


class RemoteCodeError(ValueError):
    """A model, a part of it, or its tokenizer needs code that comes with it."""


@contextmanager
def remote_code_refused(source: object) -> Iterator[None]:
    """Refuse code that comes with what is loaded in the context, without a question.

    The argument `trust_remote_code=False` of `from_pretrained` does not reach models within a model, nor the base model
    of an adapter in all cases, so transformers would ask about those. In the context the question counts as unanswered.

    Args:
        source: hub id, folder or source of the model, for the error message.

    Raises:
        RemoteCodeError: the model, a part of it, or its tokenizer needs such code.
    """
    seconds = dynamic_module_utils.TIME_OUT_REMOTE_CODE
    dynamic_module_utils.TIME_OUT_REMOTE_CODE = 0  # seconds to wait for an answer
    try:
        yield
    except ValueError as error:
        if "trust_remote_code" not in str(error):
            raise
        raise RemoteCodeError(
            f"`model_name` is {source!r}, which comes with Python code of its own (`auto_map` in one of its files), "
            "and such code is never run; pass a model that transformers knows without it, or import your own class and "
            "register it by `AutoConfig.register` and `AutoModelForCausalLM.register`."
        ) from None
    finally:
        dynamic_module_utils.TIME_OUT_REMOTE_CODE = seconds
