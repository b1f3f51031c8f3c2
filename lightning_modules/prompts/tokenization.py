"""Tokenization of prompts, with checks of token ids and lengths."""

from __future__ import annotations

from collections.abc import Iterator, Sequence

from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from lightning_modules.progress import progress_bar
from lightning_modules.prompts.base import Example, location_in, require_prompt, short
from lightning_modules.prompts.format import PromptFormat
from lightning_modules.prompts.limits import SequenceLimits
from lightning_modules.prompts.stream import Prompt

_CHUNK = 1024
_CHECKED = 200_000  # prompts of a data set that are checked at once; later ones when they are used


class PromptTokenizer:
    """Tokenizes prompts, and refuses those that the model cannot hold.

    An end token that the tokenizer appends to each text is removed, since it would end the prompt.

    Args:
        tokenizer: tokenizer of the model.
        form: format of the prompts.
        limits: limits of the model and the engine.
        max_completion_length: maximum number of tokens of a completion.
        end_token_ids: ids of tokens that end a text, besides the end-of-sequence token of the tokenizer.

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
        self._tokenizer, self._form, self._limits = tokenizer, form, limits
        self._max_completion_length = max_completion_length
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
        """Tokenize the prompt of an example.

        Args:
            example: mapping with "prompt".
            location: place of the example, named by errors.

        Raises:
            ValueError: there is no prompt, or the model cannot hold it with its completion.
        """
        text = self._text(example, location)
        return self._checked(example, self._tokenizer.encode(text, add_special_tokens=self._adds), location)

    def check(self, name: str, dataset: Sequence[Example]) -> None:
        """Check the first 200,000 prompts of the argument `name`; later ones are checked when they are used.

        Raises:
            ValueError: a prompt is refused; the message has its number, and how many are refused.
        """
        for _ in self.prompts(name, dataset, _CHECKED):
            pass

    def prompts(self, name: str, dataset: Sequence[Example], most: int | None = None) -> Iterator[Prompt]:
        """Yield the prompts of the argument `name`, at most the given number, with a progress bar.

        Raises:
            ValueError: a prompt is refused; the message has its number, and how many are refused.
        """
        count, refused = min(len(dataset), most or len(dataset)), list[str]()
        with progress_bar(total=count, desc="checking prompts", unit="prompt", leave=False, delay=2.0) as progress:
            for start in range(0, count, _CHUNK):
                indices = range(start, min(start + _CHUNK, count))
                for prompt in self._chunk(name, dataset, indices, refused):
                    if not refused:
                        yield prompt
                progress.update(len(indices))
        if refused:
            others = f" {len(refused):,} of {count:,} prompts are refused." if len(refused) > 1 else ""
            raise ValueError(refused[0] + others)

    def _chunk(
        self, name: str, dataset: Sequence[Example], indices: Sequence[int], refused: list[str]
    ) -> Iterator[Prompt]:
        """Yield the prompts of some examples, tokenized together; collect the messages of those that are refused."""
        found = []
        for index in indices:
            example, location = dataset[index], location_in(name, dataset, index)
            try:
                found.append((example, self._text(example, location), location))
            except ValueError as error:
                refused.append(str(error))
        texts = [text for _, text, _ in found]
        rows = self._rows(texts) if texts else []
        for (example, _, location), token_ids in zip(found, rows, strict=True):
            try:
                yield self._checked(example, token_ids, location)
            except ValueError as error:
                refused.append(str(error))

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

    def _checked(self, example: Example, token_ids: Sequence[int], location: str) -> Prompt:
        ids = tuple(token_ids)
        if self._suffix and ids[-len(self._suffix) :] == self._suffix:
            ids = ids[: -len(self._suffix)]
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
        rows = self._limits.vocabulary_size
        if rows is not None and largest >= rows:
            raise ValueError(
                f"{location}: the prompt has the token {self._names([largest])} with id {largest}, but the model has "
                f"embeddings for {rows} tokens; use the tokenizer of this model, or enlarge the model with "
                "`resize_token_embeddings` and save both."
            )

    def _require_length(self, length: int, location: str) -> None:
        total = length + self._max_completion_length
        lengths = f"the prompt has {length:,} tokens, with `max_completion_length` {total:,}"
        limit, trained = self._limits.max_length, self._limits.trained_length
        if limit is not None and total > limit:
            room = limit - length
            remedy = f", or lower `max_completion_length` to {room}" if room > 0 else ""
            raise ValueError(
                f"{location}: {lengths}, but {self._limits.limited_by} {limit:,}; shorten or leave out the prompt"
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
