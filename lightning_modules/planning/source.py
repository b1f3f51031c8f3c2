"""Inputs of a memory plan: configuration and tokenizer of the model, and the longest prompt."""

from __future__ import annotations

from pathlib import Path
from typing import cast

from transformers import AutoConfig, AutoTokenizer, PreTrainedConfig, PreTrainedTokenizerBase

from lightning_modules.data.module import RolloutDataModule
from lightning_modules.model.policy import ModelSource
from lightning_modules.model.remote_code import RemoteCodeError, remote_code_refused
from lightning_modules.prompts import PromptTokenizer

_PROMPTS_READ = 1024
_ASSUMED_PROMPT = 512


def described(source: str | ModelSource) -> tuple[PreTrainedConfig, PreTrainedTokenizerBase | None]:
    """Return the configuration of a model, and its tokenizer if there is one.

    Raises:
        ValueError: there is no configuration, the model comes with code of its own, or a source of a model does not
            describe it.
    """
    if not isinstance(source, str):
        describe = getattr(source, "describe", None)
        if describe is None:
            raise ValueError(
                f"`model_name` is {source!r}, which makes a model and has no `describe` to say which; call its "
                "`prepare()`, and pass the folder that it returns."
            )
        return cast(tuple[PreTrainedConfig, PreTrainedTokenizerBase], describe())
    try:
        with remote_code_refused(source):
            config = AutoConfig.from_pretrained(source, trust_remote_code=False, output_attentions=False)
    except RemoteCodeError:
        raise
    except (OSError, ValueError) as error:
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"`model_name` is {source!r}, whose config.json was not found or not understood ({reason}); pass a "
            "folder that holds one, or a hub id that can be reached from here."
        ) from None
    return config, _tokenizer(source)


def _tokenizer(source: str) -> PreTrainedTokenizerBase | None:
    folder = Path(source)
    # From a configuration alone, the library would make a tokenizer without a vocabulary.
    if folder.is_dir() and not [*folder.glob("tokenizer*"), *folder.glob("vocab*")]:
        return None
    try:
        with remote_code_refused(source):
            return cast(PreTrainedTokenizerBase, AutoTokenizer.from_pretrained(source, trust_remote_code=False))
    except RemoteCodeError:
        raise
    except (OSError, ValueError):
        return None


def longest_prompt(data: RolloutDataModule, tokenizer: PreTrainedTokenizerBase | None) -> tuple[int, str]:
    """Return the tokens of the longest prompt, and a note of how they are known."""
    limit, room = data.max_prompt_length, data.rollouts.max_model_length
    if tokenizer is not None:
        count = min(len(data.dataset), _PROMPTS_READ)
        tokenized = PromptTokenizer(tokenizer, data.prompt_format, max_prompt_length=limit)
        lengths = [len(prompt.token_ids) for prompt in tokenized.prompts("dataset", data.dataset, count)]
        longest = max(lengths, default=limit or 0)
        return longest, f"the longest of {'all' if count == len(data.dataset) else 'the first'} {count:,}"
    if limit is not None:
        return limit, "`max_prompt_length`; there is no tokenizer"
    if room is not None and room > data.max_completion_length:
        return room - data.max_completion_length, "what `max_model_length` leaves; there is no tokenizer"
    return _ASSUMED_PROMPT, "assumed, because there is no tokenizer; pass --prompt_length"
