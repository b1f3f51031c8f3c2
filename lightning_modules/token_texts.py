"""Texts of single tokens, for a reader."""

from __future__ import annotations

import re
from collections.abc import Iterable, Sequence

from transformers import PreTrainedTokenizerBase

_REPLACEMENT = "\N{REPLACEMENT CHARACTER}"
_SINGLE_BYTE = re.compile(r"<0x([0-9A-F]{2})>")  # name of a byte in vocabularies of SentencePiece


def _byte_alphabet() -> dict[str, int]:
    """Return the byte that each character stands for in the names of byte-level tokens, as in GPT-2."""
    shown = [*range(ord("!"), ord("~") + 1), *range(ord("\xa1"), ord("\xac") + 1), *range(ord("\xae"), ord("\xff") + 1)]
    hidden = sorted(set(range(256)) - set(shown))
    return {chr(byte): byte for byte in shown} | {chr(256 + number): byte for number, byte in enumerate(hidden)}


_ALPHABET = _byte_alphabet()


class TokenTexts:
    r"""Text of each token by itself, with its leading space; each token id is decoded once.

    The texts of tokens joined are the text of the completion, except in two cases: a token that holds a part of a
    character is no text, so its bytes are written as `\xe2`; and some tokenizers drop a space at the start.

    Args:
        tokenizer: tokenizer of the model.
    """

    def __init__(self, tokenizer: PreTrainedTokenizerBase) -> None:
        self._tokenizer = tokenizer
        self._special = set(tokenizer.all_special_ids)
        self._known: dict[int, str] = {}

    def __call__(self, token_ids: Iterable[int]) -> list[str]:
        """Return the text of each token."""
        ids = list(token_ids)
        self._known.update({number: self._text(number) for number in set(ids) - self._known.keys()})
        return [self._known[number] for number in ids]

    def joined(self, token_ids: Sequence[int]) -> str:
        """Return the text of all tokens together, special tokens included."""
        return self._decoded(list(token_ids))

    def _text(self, number: int) -> str:
        name: str | None = self._tokenizer.convert_ids_to_tokens([number])[0]
        if name is None:  # the embedding of a model may have more rows than the vocabulary has tokens
            return f"<{number}>"
        if number in self._special:
            return name
        once, twice = (self._decoded([number] * count) for count in (1, 2))
        if _REPLACEMENT in once and (content := _bytes_of(name)) is not None:
            return content.decode("utf-8", "backslashreplace")
        # Some tokenizers drop a space at the start of a text, and keep it before the second token.
        return twice[len(once) :] if twice.startswith(once) else once

    def _decoded(self, token_ids: list[int]) -> str:
        return str(self._tokenizer.decode(token_ids, clean_up_tokenization_spaces=False))


def _bytes_of(name: str) -> bytes | None:
    """Return the bytes of a token, by its name in the vocabulary; None if the name does not tell them."""
    if single := _SINGLE_BYTE.fullmatch(name):
        return bytes.fromhex(single[1])
    return bytes(_ALPHABET[character] for character in name) if set(name) <= _ALPHABET.keys() else None
