"""Format of prompts: the text as it is or in a template, or messages in the chat template of the tokenizer."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from typing import Any

from jinja2 import TemplateError
from jsonargparse.typing import register_type
from transformers import PreTrainedTokenizerBase

from lightning_modules.prompts.template_names import names_read

_PLACE = "{prompt}"


class TemplateText(str):
    """Text of a prompt template.

    The command line takes a text with `{prompt}` as it is, though YAML reads `Question: {prompt}` as a mapping.
    """


def _text_of_template(value: Any) -> str:
    """Return a value of the command line that is the text of a template.

    Raises:
        ValueError: it has no place for the prompt, and may be the name of a function.
    """
    if isinstance(value, str) and _PLACE in value:
        return value
    raise ValueError(f"{value!r} has no {_PLACE}")


register_type(TemplateText, serializer=_text_of_template, deserializer=_text_of_template)

PromptTemplate = TemplateText | Callable[[str], str] | str

_FIXED = ("messages", "add_generation_prompt", "continue_final_message")  # set for each prompt


@dataclass(frozen=True)
class PromptFormat:
    """Format in which prompts are tokenized.

    Args:
        chat_template: whether to format prompts with the chat template of the tokenizer; a text is a user message.
        system_prompt: text of a system message before each prompt that has none of its own; none when None.
        chat_template_kwargs: arguments of the chat template, such as `enable_thinking`.
        prompt_template: text with `{prompt}` in the place of a prompt, or a function from the text of a prompt to that
            of the formatted one; with a chat template, the result is the user message.

    Raises:
        ValueError: there is a system text or an argument, but no chat template is used; or a template has no place for
            the prompt.
    """

    chat_template: bool = False
    system_prompt: str | None = None
    chat_template_kwargs: Mapping[str, Any] = field(default_factory=dict)
    prompt_template: PromptTemplate | None = None

    def __post_init__(self) -> None:
        if isinstance(self.prompt_template, str) and _PLACE not in self.prompt_template:
            raise ValueError(
                f"`prompt_template` is {self.prompt_template!r}, which has no {_PLACE} and is no function; pass a text "
                "with it, or the import path of a function, such as lightning_modules.prompts.qwen_math."
            )
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
            ValueError: there is no chat template, it cannot be parsed, or it ignores the system text or an argument.
        """
        if not self.chat_template:
            return
        if not tokenizer.chat_template:
            raise ValueError(
                f"`chat_template` is True, but the tokenizer {tokenizer.name_or_path!r} has no chat template; "
                "pass a model that has one, or chat_template=False."
            )
        if self.chat_template_kwargs:
            self._require_names_read(tokenizer)
        if self.system_prompt and self._ignores_system(tokenizer):
            raise ValueError(
                f"`system_prompt` is {self.system_prompt!r}, which the chat template of {tokenizer.name_or_path!r} "
                "ignores; put it into the prompts."
            )

    def _require_names_read(self, tokenizer: PreTrainedTokenizerBase) -> None:
        read = names_read(tokenizer.get_chat_template())
        for name in self.chat_template_kwargs:
            if name not in read:
                raise ValueError(
                    f"`chat_template_kwargs` has {name!r}, which the chat template of {tokenizer.name_or_path!r} does "
                    f"not read; pass a name that it reads: {', '.join(sorted(read.difference(_FIXED))) or 'none'}."
                )

    def _ignores_system(self, tokenizer: PreTrainedTokenizerBase) -> bool:
        """Whether another system text gives the same chat; a text alone might be a default, or occur elsewhere."""
        other = replace(self, system_prompt=f"{self.system_prompt}?")
        return self._in_chat(tokenizer, "?") == other._in_chat(tokenizer, "?")

    def formatted(self, tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Mapping[str, str]]) -> str:
        """Return the text of a prompt in the template, with the marks of the chat template if one is used.

        Raises:
            ValueError: the prompt is a list of messages, but a text is needed; or a template refuses it.
        """
        if self.prompt_template is not None:
            prompt = self._in_template(tokenizer, self.prompt_template, prompt)
        if self.chat_template:
            return self._in_chat(tokenizer, prompt)
        if isinstance(prompt, str):
            return prompt
        raise ValueError("the prompt is a list of messages, but `chat_template` is False; pass chat_template=True.")

    def _in_chat(self, tokenizer: PreTrainedTokenizerBase, prompt: str | Sequence[Mapping[str, str]]) -> str:
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

    def _in_template(
        self, tokenizer: PreTrainedTokenizerBase, template: PromptTemplate, prompt: str | Sequence[Mapping[str, str]]
    ) -> str:
        what = f"`prompt_template` is {_named(template)}"
        if not isinstance(prompt, str):
            raise ValueError(
                f"the prompt is a list of messages, but {what}, which formats a text; pass prompt_template=None."
            )
        text = template.replace(_PLACE, prompt) if isinstance(template, str) else _called(template, prompt, what)
        if self.chat_template:
            marks = [token for token in tokenizer.all_special_tokens if text.count(token) > prompt.count(token)]
            if marks:
                raise ValueError(
                    f"{what}, which adds the special token {marks[0]!r}, but `chat_template` is True, and would format "
                    "the result again; pass chat_template=False, or a template for the text of the user message."
                )
        return text


def _called(template: Callable[[str], str], prompt: str, what: str) -> str:
    try:
        text = template(prompt)
    except Exception as error:
        raise ValueError(
            f"{what}, which raised {type(error).__name__}: {error}; correct it for this prompt."
        ) from error
    if not isinstance(text, str) or not text.strip():
        raise ValueError(f"{what}, which returned {text!r}; return a text that is not empty.")
    return text


def _named(template: PromptTemplate) -> str:
    return repr(template) if isinstance(template, str) else getattr(template, "__qualname__", repr(template))
