"""Format of prompts: the text as it stands, or messages in the chat template of the tokenizer."""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from jinja2 import TemplateError
from transformers import PreTrainedTokenizerBase

_FIXED = ("messages", "add_generation_prompt", "continue_final_message")  # set for each prompt


@dataclass(frozen=True)
class PromptFormat:
    """Format in which prompts are tokenized.

    Args:
        chat_template: whether to format prompts with the chat template of the tokenizer; a text is a user message.
        system_prompt: text of a system message before each prompt that has none of its own; none when None.
        chat_template_kwargs: arguments of the chat template, such as `enable_thinking`.

    Raises:
        ValueError: there is a system text or an argument, but no chat template is used.
    """

    chat_template: bool = False
    system_prompt: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)

    def __post_init__(self) -> None:
        if not self.chat_template:
            for name in ("system_prompt", "chat_template_kwargs"):
                if getattr(self, name) not in (None, {}):
                    raise ValueError(
                        f"`{name}` is {getattr(self, name)!r}, but `chat_template` is False, so that there are no "
                        "messages; pass chat_template=True."
                    )
        for name in self.chat_template_kwargs:
            if name in _FIXED:
                raise ValueError(
                    f"`chat_template_kwargs` has {name!r}, which every prompt sets for itself; leave it out."
                )

    def require_template(self, tokenizer: PreTrainedTokenizerBase) -> None:
        """Check that the tokenizer has a chat template if one is used, and that it heeds the options.

        Raises:
            ValueError: there is no chat template, or it ignores the system text or an argument.
        """
        if not self.chat_template:
            return
        if not tokenizer.chat_template:
            raise ValueError(
                f"`chat_template` is True, but the tokenizer {tokenizer.name_or_path!r} has no chat template; "
                "pass a model that has one, or chat_template=False."
            )
        template = tokenizer.get_chat_template()
        for name in self.chat_template_kwargs:
            if not re.search(rf"\b{re.escape(name)}\b", template):
                raise ValueError(
                    f"`chat_template_kwargs` has {name!r}, which the chat template of {tokenizer.name_or_path!r} does "
                    "not read; pass a name that it reads."
                )
        if self.system_prompt and self.system_prompt.strip() not in self.formatted(tokenizer, "?"):
            raise ValueError(
                f"`system_prompt` is {self.system_prompt!r}, which the chat template of {tokenizer.name_or_path!r} "
                "ignores; put it into the prompts."
            )

    def formatted(self, tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Mapping[str, str]]) -> str:
        """Return the text of a prompt, with the marks of the chat template if one is used.

        Raises:
            ValueError: the prompt is a list of messages without a chat template, or the template refuses it.
        """
        if not self.chat_template:
            if isinstance(prompt, str):
                return prompt
            raise ValueError("the prompt is a list of messages, but `chat_template` is False; pass chat_template=True.")
        messages = [{"role": "user", "content": prompt}] if isinstance(prompt, str) else [dict(one) for one in prompt]
        if self.system_prompt is not None and messages[0]["role"] != "system":
            messages = [{"role": "system", "content": self.system_prompt}, *messages]
        try:
            text = tokenizer.apply_chat_template(
                messages, add_generation_prompt=True, tokenize=False, **self.chat_template_kwargs
            )
        except (TemplateError, TypeError, ValueError) as error:
            raise ValueError(f"the chat template refuses the prompt ({error}); use messages that it takes.") from None
        return str(text)
