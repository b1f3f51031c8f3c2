"""Base class of prompt sources, and the check of a single example."""

from __future__ import annotations

import reprlib
from abc import ABC
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

Example = Mapping[str, Any]

_MAX_CHARACTERS = 4_000_000  # about a million tokens


class PromptDataset(Sequence[Example], ABC):
    """Examples by index: mappings with a prompt under "prompt", and whatever the reward reads.

    A prompt is a text, or a list of messages `{"role": ..., "content": ...}` for the chat template of the tokenizer.

    Subclass requirements:

    - Implement `__len__` and `__getitem__`. The same index must give the same example on every rank and after a resume.
      In typed code annotate `(self, index: Any) -> Any`: the type of a sequence has slices, too.
    - Do not shuffle. `RolloutDataModule` permutes the examples in each pass, by its seed.
    - May override `location`, so that errors name the line of a file.
    - May override `first_index` if examples are repeated, so that schemes know a repeated prompt as one.
    - Constructor arguments become options of the command line, so annotate and document them.
    """

    def location(self, index: int) -> str:
        """Return the place of an example, for error messages."""
        return numbered(index, len(self))

    def first_index(self, index: int) -> int:
        """Return the index at which the data set has the same example for the first time."""
        return index


class StoredPrompts(PromptDataset):
    """Examples that are held in memory.

    Subclass requirement: the constructor sets `_examples`.
    """

    _examples: Sequence[Example]

    def __len__(self) -> int:
        return len(self._examples)

    def __getitem__(self, index):  # type: ignore[no-untyped-def]  # a Sequence's overloads say nothing here
        return self._examples[index]


def numbered(index: int, size: int) -> str:
    """Return the number of a prompt in words, for error messages."""
    return f"prompt {index} (of 0 to {size - 1})"


def location_in(name: str, dataset: Sequence[Example], index: int) -> str:
    """Return the place of an example in the data set that is passed as the argument `name`, for error messages."""
    return f"`{name}`, {location_of(dataset, index)}"


def location_of(dataset: Sequence[Example], index: int) -> str:
    """Return the place of an example in a data set or a list, for error messages."""
    location = getattr(dataset, "location", None)  # a list has none
    return str(location(index)) if location else numbered(index, len(dataset))


def first_index_of(dataset: Sequence[Example], index: int) -> int:
    """Return the index at which a data set or a list has the same example for the first time."""
    first_index = getattr(dataset, "first_index", None)  # a list has none
    return int(first_index(index)) if first_index else index


def require_prompt(example: object, location: str) -> None:
    """Check that an example is a mapping with a prompt under "prompt".

    Args:
        example: the example.
        location: place of the example, named by errors.

    Raises:
        ValueError: there is no prompt, or the prompt is neither a text that can be tokenized nor a list of messages.
    """
    if not isinstance(example, Mapping):
        raise ValueError(
            f'{location}: found {short(example)}; pass a mapping such as {{"prompt": "1 + 1?", "answer": "2"}}.'
        )
    if "prompt" not in example:
        fields = short(sorted(map(str, example)))
        raise ValueError(f'{location}: no field "prompt", found {fields}; put the prompt under "prompt".')
    prompt = example["prompt"]
    if isinstance(prompt, str):
        _require_text(prompt, f"{location}: the prompt")
    elif isinstance(prompt, Sequence) and not isinstance(prompt, (bytes, bytearray)) and len(prompt):
        _require_messages(prompt, location)
    else:
        raise ValueError(
            f"{location}: the prompt is {short(prompt)}; write a text that is not empty, or a list of messages with "
            '"role" and "content".'
        )


def shown(prompt: str | Sequence[Mapping[str, str]]) -> str:
    """Return a prompt as one text, for a reader; messages begin with their role."""
    if isinstance(prompt, str):
        return prompt
    return "\n".join(f"{message['role']}: {message['content']}" for message in prompt)


def short(value: object) -> str:
    """Return the start of the `repr` of a value that may be large."""
    return _SHORT.repr(value)


def has_surrogate(text: str) -> bool:
    """Return whether a text has half of a surrogate pair, which is no character and cannot be encoded."""
    try:
        text.encode("utf-8")
    except UnicodeEncodeError:
        return True
    return False


def _require_messages(messages: Sequence[Any], location: str) -> None:
    for number, message in enumerate(messages):
        where = f"{location}: message {number} of the prompt"
        fields = [message.get(name) for name in ("role", "content")] if isinstance(message, Mapping) else [None]
        if not all(isinstance(value, str) for value in fields):
            raise ValueError(
                f'{where} is {short(message)}; write {{"role": "user", "content": "..."}} with a text as content.'
            )
        if message["role"] == "user" or has_surrogate(message["content"]):
            _require_text(message["content"], where)
    if messages[-1]["role"] == "assistant":
        raise ValueError(
            f"{location}: the last message of the prompt has the role 'assistant'; end with the message that the "
            "policy is to answer, such as one with the role 'user'."
        )


def _require_text(text: str, what: str) -> None:
    if not text.strip():
        raise ValueError(f"{what} is {short(text)}; write a text that is not empty.")
    if len(text) > _MAX_CHARACTERS:
        raise ValueError(f"{what} has {len(text):,} characters; write at most {_MAX_CHARACTERS:,}.")
    if has_surrogate(text):
        raise ValueError(f"{what} has half of a surrogate pair in {short(text)}, which is no character; remove it.")


def texts_in(value: object) -> Iterator[str]:
    """Yield the texts in nested lists and mappings, keys included."""
    pending = [value]
    while pending:
        found = pending.pop()
        if isinstance(found, str):
            yield found
        elif isinstance(found, Mapping):
            pending += [*found.keys(), *found.values()]
        elif isinstance(found, list):
            pending += found


_SHORT = reprlib.Repr()
_SHORT.maxstring = _SHORT.maxother = 80
