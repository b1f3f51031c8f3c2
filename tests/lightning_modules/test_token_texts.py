"""Texts of single tokens, with tokenizers of both common kinds."""

import pytest
from tokenizers import AddedToken, Tokenizer, decoders, models, normalizers, pre_tokenizers
from transformers import PreTrainedTokenizerFast

from lightning_modules.token_texts import TokenTexts


def with_byte_alphabet():
    """Each byte is a token; a space is a part of the word after it, and an end is special."""
    alphabet = sorted(pre_tokenizers.ByteLevel.alphabet())
    merges = [("Ġ", "t"), ("Ġt", "w"), ("Ġtw", "o"), ("â", "Ĥ"), ("Ġ", "âĤ")]
    vocabulary = {token: number for number, token in enumerate([*alphabet, *map("".join, merges)])}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges))
    tokenizer.pre_tokenizer = pre_tokenizers.ByteLevel(add_prefix_space=False, use_regex=False)
    tokenizer.decoder = decoders.ByteLevel()
    tokenizer.add_special_tokens([AddedToken("<|end|>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="<|end|>")


def with_named_bytes():
    """As those of SentencePiece: "▁" is a space, dropped at the start, and unknown characters are bytes."""
    tokens = ["<unk>", "</s>", *(f"<0x{byte:02X}>" for byte in range(256)), "▁", "o", "n", "e", "on", "one", "▁one"]
    merges = [("o", "n"), ("on", "e"), ("▁", "one")]
    vocabulary = {token: number for number, token in enumerate(tokens)}
    tokenizer = Tokenizer(models.BPE(vocabulary, merges, unk_token="<unk>", byte_fallback=True, fuse_unk=True))
    tokenizer.normalizer = normalizers.Sequence([normalizers.Prepend("▁"), normalizers.Replace(" ", "▁")])
    parts = [decoders.Replace("▁", " "), decoders.ByteFallback(), decoders.Fuse(), decoders.Strip(" ", 1, 0)]
    tokenizer.decoder = decoders.Sequence(parts)
    tokenizer.add_special_tokens([AddedToken("</s>", special=True)])
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, eos_token="</s>", unk_token="<unk>")


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a two", ["a", " two"]),
        ("é", [r"\xc3", r"\xa9"]),
        ("a €", ["a", r" \xe2\x82", r"\xac"]),
        ("\n<|end|>", ["\n", "<|end|>"]),
    ],
)
def test_tokens_of_bytes(text, expected):
    tokenizer = with_byte_alphabet()
    ids = tokenizer.encode(text)
    texts = TokenTexts(tokenizer)
    assert texts(ids) == expected
    assert texts(reversed(ids)) == expected[::-1]
    assert texts.joined(ids) == text


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("one one", [" one", " one"]),
        ("€</s>", [" ", r"\xe2", r"\x82", r"\xac", "</s>"]),
    ],
)
def test_tokens_of_sentence_pieces_have_their_space(text, expected):
    tokenizer = with_named_bytes()
    assert TokenTexts(tokenizer)(tokenizer.encode(text)) == expected


def test_a_character_that_means_unknown_stays_what_it_is():
    tokenizer = with_byte_alphabet()
    tokenizer.add_tokens(["\N{REPLACEMENT CHARACTER}"])
    assert TokenTexts(tokenizer)([len(tokenizer) - 1]) == ["\N{REPLACEMENT CHARACTER}"]


def test_a_row_of_the_embedding_without_a_token_is_its_number():
    tokenizer = with_byte_alphabet()
    assert TokenTexts(tokenizer)([len(tokenizer) + 5]) == [f"<{len(tokenizer) + 5}>"]


def test_the_tokens_of_a_text_joined_are_the_text(tokenizer):
    text = "What is 12 + 7?"
    texts = TokenTexts(tokenizer)
    ids = tokenizer.encode(text)
    assert "".join(texts(ids)) == texts.joined(ids) == text
