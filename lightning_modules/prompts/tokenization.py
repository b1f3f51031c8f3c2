"""Tokenization of prompts, with checks of token ids and lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from dataclasses import dataclass, field

from lightning.pytorch.utilities import rank_zero_info, rank_zero_warn
from transformers import PreTrainedTokenizerBase

from lightning_modules.progress import progress_bar
from lightning_modules.prompts.base import Example, location_in, require_prompt, short
from lightning_modules.prompts.format import PromptFormat
from lightning_modules.prompts.limits import SequenceLimits
from lightning_modules.prompts.stream import Prompt

_CHUNK = 1024
_CHECKED = 200_000  # prompts of a data set that are checked at once; later ones when they are used


@dataclass
class _Found:
    """Messages of the prompts that are refused, and lengths of those that are left out.

    Args:
        name: argument that the data set is passed as.
        count: number of prompts that are read.
        size: number of prompts of the data set.
    """

    name: str
    count: int
    size: int
    refused: list[str] = field(default_factory=list)
    too_long: list[int] = field(default_factory=list)

    def require_prompts(self, limit: int | None) -> None:
        """Check that no prompt is refused, and that some are not too long."""
        if self.refused:
            number = len(self.refused)
            others = f" {number:,} of {self.count:,} prompts are refused." if number > 1 else ""
            raise ValueError(self.refused[0] + others)
        if len(self.too_long) == self.count == self.size:
            raise ValueError(
                f"`max_prompt_length` is {limit:,}, but all {self.count:,} prompts of `{self.name}` are longer; raise "
                f"it to at least {min(self.too_long):,}."
            )

    def left_out(self, limit: int | None) -> str:
        """Return a line that says how many prompts are left out."""
        of = f"{self.count:,} prompts" if self.count == self.size else f"the first {self.count:,} prompts"
        return (
            f"`{self.name}`: {len(self.too_long):,} of {of} ({len(self.too_long) / self.count:.2%}) have more than "
            f"`max_prompt_length` = {limit:,} tokens and are left out; the longest has {max(self.too_long):,}."
        )


class PromptTokenizer:
    """Tokenizes prompts, leaves out those above a maximum length, and refuses those that the model cannot hold.

    An end token that the tokenizer appends to each text is removed, since it would end the prompt.

    Args:
        tokenizer: tokenizer of the model.
        form: format of the prompts.
        limits: limits of the model and the engine.
        max_completion_length: maximum number of tokens of a completion.
        end_token_ids: ids of tokens that end a text, besides the end-of-sequence token of the tokenizer.
        max_prompt_length: maximum number of tokens of a prompt; a data set is used without longer ones.

    Attributes:
        limits: limits of the model and the engine; those of an engine may become known later.

    Raises:
        ValueError: the format needs a chat template, which the tokenizer lacks or which ignores an option, or the model
            has no such end token.
    """

    def __init__(
        self,
        tokenizer: PreTrainedTokenizerBase,
        form: PromptFormat = PromptFormat(),
        limits: SequenceLimits = SequenceLimits(),
        max_completion_length: int = 0,
        end_token_ids: Sequence[int] = (),
        max_prompt_length: int | None = None,
    ) -> None:
        form.require_template(tokenizer)
        rows = limits.vocabulary_size
        for token_id in end_token_ids:
            if rows is not None and not 0 <= token_id < rows:
                raise ValueError(
                    f"the stop token with id {token_id} is none of the {rows} that the model has embeddings for; "
                    "correct `eos_token_id` in the model's generation_config.json and config.json, or `eos_token` of "
                    "the tokenizer."
                )
        self._tokenizer, self._form, self.limits = tokenizer, form, limits
        self._max_completion_length, self._max_prompt_length = max_completion_length, max_prompt_length
        self._reported: set[str] = set()  # data sets of which it was said how many prompts are left out
        self._warned_of_length = False
        # The text of a chat template has its special tokens.
        self._prefix, self._suffix = ((), ()) if form.chat_template else _added_tokens(tokenizer)
        if not {*end_token_ids, tokenizer.eos_token_id} & {*self._suffix}:
            self._suffix = ()
        if self._suffix:
            rank_zero_warn(
                f"the tokenizer {tokenizer.name_or_path!r} ends each text with "
                f"{self._names(self._suffix)}; this is removed from the prompts, which would be over before the "
                "policy begins."
            )

    def __call__(self, example: Example, location: str = "a prompt") -> Prompt:
        """Tokenize the prompt of an example, which may be above the maximum length of a data set's prompts.

        Args:
            example: mapping with "prompt".
            location: place of the example, named by errors.

        Raises:
            ValueError: there is no prompt, or the model cannot hold it with its completion.
        """
        text = self._text(example, location)
        token_ids = self._tokenizer.encode(text, add_special_tokens=self._adds)
        return self._checked(example, self._without_suffix(token_ids), location)

    def check(self, name: str, dataset: Sequence[Example]) -> Sequence[int]:
        """Check the prompts of the argument `name`, and return the indices of those that are not too long.

        All prompts are tokenized if there is a maximum length; otherwise the first 200,000, and later ones are checked
        when they are used. A line in the log says how many are left out.

        Raises:
            ValueError: a prompt is refused, or all are too long; the message has its number, and how many are refused.
        """
        most = _CHECKED if self._max_prompt_length is None else None
        kept = [index for index, _ in self._tokenized(name, dataset, most)]
        return range(len(dataset)) if self._max_prompt_length is None else kept

    def prompts(self, name: str, dataset: Sequence[Example], most: int | None = None) -> Iterator[Prompt]:
        """Yield the prompts of the argument `name`, without those above the maximum length, with a progress bar.

        Args:
            name: argument that the data set is passed as.
            dataset: data set.
            most: number of prompts to read; all when None.

        Raises:
            ValueError: a prompt is refused, or all are too long; the message has its number, and how many are refused.
        """
        for _, prompt in self._tokenized(name, dataset, most):
            yield prompt

    def _tokenized(self, name: str, dataset: Sequence[Example], most: int | None) -> Iterator[tuple[int, Prompt]]:
        """Yield the prompts that are not too long, with their indices."""
        count = min(len(dataset), most or len(dataset))
        found = _Found(name, count, len(dataset))
        with progress_bar(total=count, desc="checking prompts", unit="prompt", leave=False, delay=2.0) as progress:
            for start in range(0, count, _CHUNK):
                indices = range(start, min(start + _CHUNK, count))
                for index, prompt in self._chunk(name, dataset, indices, found):
                    if not found.refused:
                        yield index, prompt
                progress.update(len(indices))
        if count:
            found.require_prompts(self._max_prompt_length)
        if found.too_long and name not in self._reported:
            self._reported.add(name)
            rank_zero_info(found.left_out(self._max_prompt_length))

    def _chunk(
        self, name: str, dataset: Sequence[Example], indices: Sequence[int], found: _Found
    ) -> Iterator[tuple[int, Prompt]]:
        """Yield the prompts of some examples, tokenized together; note those that are refused or too long."""
        texts = []
        for index in indices:
            example, location = dataset[index], location_in(name, dataset, index)
            try:
                texts.append((index, example, self._text(example, location), location))
            except ValueError as error:
                found.refused.append(str(error))
        rows = self._rows([text for _, _, text, _ in texts]) if texts else []
        for (index, example, _, location), row in zip(texts, rows, strict=True):
            token_ids = self._without_suffix(row)
            if self._is_too_long(token_ids):
                found.too_long.append(len(token_ids))
                continue
            try:
                yield index, self._checked(example, token_ids, location)
            except ValueError as error:
                found.refused.append(str(error))

    def _rows(self, texts: list[str]) -> list[list[int]]:
        needless = {"return_attention_mask": False, "return_token_type_ids": False}
        return self._tokenizer(texts, add_special_tokens=self._adds, **needless)["input_ids"]

    @property
    def _adds(self) -> bool:
        """Whether the tokenizer adds its special tokens; the text of a chat template has them."""
        return not self._form.chat_template

    def _text(self, example: Example, location: str) -> str:
        require_prompt(example, location)
        try:
            return self._form.formatted(self._tokenizer, example["prompt"])
        except ValueError as error:
            raise ValueError(f"{location}: {error}") from None

    def _without_suffix(self, token_ids: Sequence[int]) -> tuple[int, ...]:
        ids = tuple(token_ids)
        return ids[: -len(self._suffix)] if self._suffix and ids[-len(self._suffix) :] == self._suffix else ids

    def _is_too_long(self, token_ids: Sequence[int]) -> bool:
        return self._max_prompt_length is not None and len(token_ids) > self._max_prompt_length

    def _checked(self, example: Example, ids: tuple[int, ...], location: str) -> Prompt:
        if len(ids) <= len(self._prefix):
            raise ValueError(
                f"{location}: the prompt {short(example['prompt'])} has no tokens; write another, or none."
            )
        if ids[-1] == self._tokenizer.eos_token_id:
            writer = "the chat template" if self._form.chat_template else "the prompt"
            remedy = "use one that ends with the beginning of an answer" if self._form.chat_template else "remove it"
            raise ValueError(
                f"{location}: {writer} ends with {self._names(ids[-1:])}, after which the policy would begin another "
                f"text; {remedy}."
            )
        self._require_rows(max(ids), location)
        self._require_length(len(ids), location)
        return Prompt(example, ids)

    def _require_rows(self, largest: int, location: str) -> None:
        rows = self.limits.vocabulary_size
        if rows is not None and largest >= rows:
            raise ValueError(
                f"{location}: the prompt has the token {self._names([largest])} with id {largest}, but the model has "
                f"embeddings for {rows} tokens; use the tokenizer of this model, or enlarge the model with "
                "`resize_token_embeddings` and save both."
            )

    def _require_length(self, length: int, location: str) -> None:
        total = length + self._max_completion_length
        lengths = f"the prompt has {length:,} tokens, with `max_completion_length` {total:,}"
        limit, trained = self.limits.max_length, self.limits.trained_length
        if limit is not None and total > limit:
            room = limit - length
            remedy = f", or lower `max_completion_length` to {room}" if room > 0 else ""
            raise ValueError(
                f"{location}: {lengths}, but {self.limits.limited_by} {limit:,}; shorten or leave out the prompt"
                f"{remedy}."
            )
        if trained is not None and total > trained and not self._warned_of_length:
            self._warned_of_length = True
            rank_zero_warn(
                f"{location}: {lengths}, but the model is made for {trained:,} by its configuration; completions may "
                "become worse where they are longer. Shorten the prompts, or lower `max_completion_length`."
            )

    def _names(self, token_ids: Sequence[int]) -> str:
        return " ".join(map(repr, self._tokenizer.convert_ids_to_tokens(list(token_ids))))


def _added_tokens(tokenizer: PreTrainedTokenizerBase) -> tuple[tuple[int, ...], tuple[int, ...]]:
    """Return the special tokens that a tokenizer puts before and after each text."""
    plain, added = (tuple(tokenizer("a", add_special_tokens=special)["input_ids"]) for special in (False, True))
    for start in range(len(added) - len(plain) + 1):
        if plain and added[start : start + len(plain)] == plain:
            return added[:start], added[start + len(plain) :]
    return (), ()
