"""Token ids of prompts: chat templates, end tokens, and prompts that a model cannot hold."""

import logging
import re

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st
from tokenizers import Tokenizer, decoders, models, normalizers, pre_tokenizers, processors, trainers
from transformers import PreTrainedTokenizerFast

from lightning_modules.prompts import PromptFormat, PromptTokenizer, SequenceLimits

SPECIAL = ["<pad>", "<eos>", "<bos>", "<end>"]
TEMPLATE = (
    "{{ bos_token }}{% for m in messages %}<{{ m.role }}>{{ m.content }}{% endfor %}"
    "{% if add_generation_prompt %}<assistant>{% if not thinking %}<off>{% endif %}{% endif %}"
)


def tokenizer(ends="$A", template=None, normalizer=None, eos="<eos>"):
    """Bytes; `ends` is the template of the tokenizer's special tokens."""
    bpe = Tokenizer(models.BPE())
    bpe.pre_tokenizer, bpe.decoder = pre_tokenizers.ByteLevel(add_prefix_space=False), decoders.ByteLevel()
    alphabet = pre_tokenizers.ByteLevel.alphabet()
    trainer = trainers.BpeTrainer(
        vocab_size=260, special_tokens=SPECIAL, initial_alphabet=alphabet, show_progress=False
    )
    bpe.train_from_iterator([""], trainer)
    ids = [(name, bpe.token_to_id(name)) for name in SPECIAL]
    bpe.post_processor = processors.TemplateProcessing(single=ends, special_tokens=ids)
    if normalizer is not None:
        bpe.normalizer = normalizer
    made = PreTrainedTokenizerFast(tokenizer_object=bpe, pad_token="<pad>", eos_token=eos, bos_token="<bos>")
    made.chat_template = template
    return made


def text(encode, prompt):
    """The tokens of a prompt as a text, special tokens included."""
    return encode._tokenizer.decode(encode({"prompt": prompt}).token_ids)


# Special tokens


@pytest.mark.parametrize(
    ("ends", "end_token_ids", "expected"),
    [
        ("$A", (), "hi"),
        ("<bos> $A", (), "<bos>hi"),
        ("$A <eos>", (), "hi"),
        ("<bos> $A <eos>", (), "<bos>hi"),
        ("$A <end>", (), "hi<end>"),  # of a prompt, since it ends no text
        ("$A <end>", (3,), "hi"),
        ("$A <end> <eos>", (), "hi"),
    ],
)
@pytest.mark.filterwarnings("ignore:the tokenizer")
def test_an_end_token_that_the_tokenizer_appends_is_removed(ends, end_token_ids, expected):
    encode = PromptTokenizer(tokenizer(ends), end_token_ids=end_token_ids)
    assert text(encode, "hi") == expected
    (prompt,) = encode.prompts("dataset", [{"prompt": "hi"}])
    assert prompt.token_ids == encode({"prompt": "hi"}).token_ids


def test_what_is_removed_is_said_once(recwarn):
    encode = PromptTokenizer(tokenizer("<bos> $A <eos>"))
    for _ in encode.prompts("dataset", [{"prompt": "a"}, {"prompt": "b"}]):
        pass
    said = [str(warning.message) for warning in recwarn if "ends each text with '<eos>'" in str(warning.message)]
    assert len(said) == 1


@pytest.mark.parametrize("ends", ["$A", "$A <eos>"])
@pytest.mark.filterwarnings("ignore:the tokenizer")
def test_a_text_that_ends_with_the_end_token_is_refused(ends):
    encode = PromptTokenizer(tokenizer(ends))
    with pytest.raises(ValueError, match=r"^line 3: the prompt ends with '<eos>', after which .*; remove it\.$"):
        encode({"prompt": "hi<eos>"}, "line 3")
    assert text(encode, "hi<eos>then") == "hi<eos>then"


def test_a_chat_template_that_ends_with_the_end_token_is_refused():
    encode = PromptTokenizer(
        tokenizer(template="{% for m in messages %}{{ m.content }}{{ eos_token }}{% endfor %}"), PromptFormat(True)
    )
    with pytest.raises(
        ValueError, match=r"the chat template ends with '<eos>', .* use one that ends with the beginning"
    ):
        encode({"prompt": "hi"})


@pytest.mark.parametrize("ends", ["$A", "<bos> $A", "<bos> $A <eos>"])
def test_a_chat_template_writes_the_special_tokens_alone(ends, recwarn):
    encode = PromptTokenizer(tokenizer(ends, TEMPLATE), PromptFormat(True))
    assert text(encode, "hi") == "<bos><user>hi<assistant><off>"
    (prompt,) = encode.prompts("dataset", [{"prompt": "hi"}])
    assert prompt.token_ids == encode({"prompt": "hi"}).token_ids
    assert not recwarn.list


# Chat templates


def test_messages_a_system_text_and_arguments_reach_the_chat_template():
    form = PromptFormat(True, "Be brief.", {"thinking": True})
    encode = PromptTokenizer(tokenizer(template=TEMPLATE), form)
    assert text(encode, "hi") == "<bos><system>Be brief.<user>hi<assistant>"
    messages = [
        {"role": "user", "content": "1"},
        {"role": "assistant", "content": "2"},
        {"role": "user", "content": "3"},
    ]
    assert text(encode, messages) == "<bos><system>Be brief.<user>1<assistant>2<user>3<assistant>"
    own = [{"role": "system", "content": "Be long."}, {"role": "user", "content": "1"}]
    assert text(encode, own) == "<bos><system>Be long.<user>1<assistant>"


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"system_prompt": "Be brief."}, "`system_prompt` is 'Be brief.', but `chat_template` is False"),
        ({"system_prompt": ""}, "`system_prompt` is '', but `chat_template` is False"),
        ({"chat_template_kwargs": {"a": 1}}, r"`chat_template_kwargs` is {'a': 1}, but `chat_template` is False"),
        ({"chat_template": True, "chat_template_kwargs": {"messages": []}}, "`chat_template_kwargs` has 'messages'"),
        ({"chat_template": True, "chat_template_kwargs": {"add_generation_prompt": False}}, "every prompt sets"),
    ],
)
def test_options_of_a_chat_template_are_refused_where_none_is_used(options, message):
    with pytest.raises(ValueError, match=message):
        PromptFormat(**options)


@pytest.mark.parametrize(
    ("template", "form", "message"),
    [
        (None, PromptFormat(True), "has no chat template; pass a model that has one, or chat_template=False"),
        (
            TEMPLATE,
            PromptFormat(True, None, {"thought": True}),
            "has 'thought', which the chat template of .* not read",
        ),
        (
            "{% for m in messages if m.role == 'user' %}{{ m.content }}{% endfor %}:",
            PromptFormat(True, "Be brief."),
            "`system_prompt` is 'Be brief.', which the chat template of .* ignores; put it into the prompts",
        ),
        (
            "{% if messages[0].role == 'system' %}{{ raise_exception('No system role') }}{% endif %}:",
            PromptFormat(True, "Be brief."),
            r"the chat template refuses the prompt \(No system role\)",
        ),
        ("{% for m in messages %}", PromptFormat(True, "Be brief."), "the chat template refuses the prompt"),
    ],
)
def test_what_the_chat_template_does_not_heed_is_refused_before_any_prompt(template, form, message):
    with pytest.raises(ValueError, match=message):
        PromptTokenizer(tokenizer(template=template), form)


READS = (
    "{% macro turn(kind, text) %}{{ kind }}{{ text }}{% endmacro %}"
    "{% for m in messages %}{% if m.role == 'stop' %}{% break %}{% endif %}"
    "{% generation %}{{ turn(m.role, m.content) }}{{ mark }}{% endgeneration %}{% endfor %}"
    "{% if level is not defined %}{% set level = 'low' %}{% endif %}{{ level }}"
    "{% set style = style | default('plain') %}{{ style }}<think>{# shout #}"
)


@pytest.mark.parametrize("name", ["mark", "level", "style"])
def test_an_argument_that_the_chat_template_reads_is_accepted(name):
    encode = PromptTokenizer(tokenizer(template=READS), PromptFormat(True, None, {name: "!"}))
    assert "!" in text(encode, "hi")


@pytest.mark.parametrize("name", ["m", "turn", "kind", "content", "role", "think", "shout", "set", "plain"])
def test_a_word_of_the_chat_template_that_is_no_argument_of_it_is_refused(name):
    with pytest.raises(ValueError, match=f"has '{name}', which the chat template of .* does not read; pass .*mark"):
        PromptTokenizer(tokenizer(template=READS), PromptFormat(True, None, {name: "!"}))


def test_an_argument_for_a_chat_template_that_cannot_be_parsed_is_refused():
    with pytest.raises(ValueError, match=r"the chat template cannot be parsed \(.*\); correct it"):
        PromptTokenizer(tokenizer(template="{% for m in messages %}"), PromptFormat(True, None, {"mark": "!"}))


@pytest.mark.parametrize("system", ["?", "user", ":"])
def test_a_system_text_that_occurs_elsewhere_in_the_chat_is_refused_where_the_template_ignores_it(system):
    template = "{% for m in messages if m.role == 'user' %}user {{ m.content }}{% endfor %}:"
    with pytest.raises(ValueError, match=r"`system_prompt` is '.*', which the chat template of .* ignores"):
        PromptTokenizer(tokenizer(template=template), PromptFormat(True, system))


def test_a_system_text_that_the_template_has_by_default_is_accepted():
    template = (
        "{% if messages[0].role == 'system' %}{{ messages[0].content | trim }}{% else %}Be brief.{% endif %}"
        "{{ messages[-1].content }}"
    )
    assert text(PromptTokenizer(tokenizer(template=template), PromptFormat(True, "Be brief.\n")), "1") == "Be brief.1"


def test_messages_need_a_chat_template():
    messages = [{"role": "user", "content": "hi"}]
    with pytest.raises(ValueError, match=r"^line 1: the prompt is a list of messages, but `chat_template` is False"):
        PromptTokenizer(tokenizer())({"prompt": messages}, "line 1")


def test_a_prompt_that_the_template_refuses_is_named():
    template = (
        "{% for m in messages %}{% if m.role == 'tool' %}{{ raise_exception('No tools') }}{% endif %}{% endfor %}:"
    )
    encode = PromptTokenizer(tokenizer(template=template), PromptFormat(True))
    rows = [{"prompt": "a"}, {"prompt": [{"role": "tool", "content": "3"}]}]
    with pytest.raises(ValueError, match=r"^`dataset`, prompt 1 \(of 0 to 1\): the chat template refuses .*No tools"):
        list(encode.prompts("dataset", rows))


# Prompt templates


def shouted(prompt):
    return f"{prompt.upper()}!"


def failing(prompt):
    raise KeyError(prompt)


@pytest.mark.parametrize(
    ("template", "expected"),
    [
        (None, "{prompt}?"),
        ("{prompt}", "{prompt}?"),
        (r"\boxed{}: {prompt} {0} {x}", r"\boxed{}: {prompt}? {0} {x}"),
        ("{prompt}, {prompt}", "{prompt}?, {prompt}?"),
        (shouted, "{PROMPT}?!"),
    ],
)
def test_a_template_formats_the_text_of_a_prompt(template, expected):
    assert text(PromptTokenizer(tokenizer(), PromptFormat(prompt_template=template)), "{prompt}?") == expected
    chat = PromptTokenizer(tokenizer(template=TEMPLATE), PromptFormat(True, "Be brief.", {}, template))
    assert text(chat, "{prompt}?") == f"<bos><system>Be brief.<user>{expected}<assistant><off>"


def test_a_template_without_a_place_for_the_prompt_is_refused():
    with pytest.raises(
        ValueError, match=r"`prompt_template` is 'Think\.', which has no {prompt} and is no function; pass"
    ):
        PromptFormat(prompt_template="Think.")


@pytest.mark.parametrize("template", ["<bos>{prompt}", lambda prompt: f"{prompt}<end>"])
def test_marks_of_a_chat_in_a_template_are_refused_with_a_chat_template(template):
    made = tokenizer(template=TEMPLATE)
    made.add_special_tokens({"extra_special_tokens": ["<end>"]})
    with pytest.raises(ValueError, match=r"is .*, which adds the special token '<\w+>', but `chat_template` is True"):
        PromptTokenizer(made, PromptFormat(True, prompt_template=template))({"prompt": "a"})
    assert PromptFormat(prompt_template=template).formatted(made, "a") in ("<bos>a", "a<end>")
    of_the_prompt = PromptTokenizer(made, PromptFormat(True, prompt_template="{prompt}"))
    assert text(of_the_prompt, "a<end>b") == "<bos><user>a<end>b<assistant><off>"


@pytest.mark.parametrize(
    ("template", "prompt", "message"),
    [
        (failing, "a", "`prompt_template` is failing, which raised KeyError: 'a'; correct it for this prompt"),
        (lambda prompt: None, "a", "which returned None; return a text that is not empty"),
        (lambda prompt: " ", "a", "which returned ' '; return a text"),
        (
            "Q: {prompt}",
            [{"role": "user", "content": "a"}],
            "is a list of messages, but `prompt_template` is 'Q: {prompt}'",
        ),
    ],
)
def test_a_prompt_that_a_template_does_not_format_is_named(template, prompt, message):
    encode = PromptTokenizer(tokenizer(template=TEMPLATE), PromptFormat(True, prompt_template=template))
    with pytest.raises(ValueError, match=rf"^`dataset`, prompt 0 \(of 0 to 0\): .*{re.escape(message)}"):
        encode.check("dataset", [{"prompt": prompt}])


# Maximum length


@pytest.fixture
def said(caplog):
    caplog.set_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero")
    return lambda: caplog.messages


@pytest.mark.parametrize("ends", ["$A", "<bos> $A", "<bos> $A <eos>"])
@pytest.mark.filterwarnings("ignore:the tokenizer")
@given(lengths=st.lists(st.integers(1, 9), min_size=1, max_size=12), limit=st.integers(1, 10))
@settings(max_examples=20, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
def test_prompts_above_the_maximum_length_are_left_out(made_tokenizers, ends, lengths, limit):
    encode = PromptTokenizer(made_tokenizers[ends], max_prompt_length=limit)
    rows = [{"prompt": "x" * length} for length in lengths]
    room = limit - ends.count("<bos>")
    expected = [row for row in rows if len(row["prompt"]) <= room]
    if not expected:
        with pytest.raises(
            ValueError, match=rf"is {limit}, but all {len(rows)} prompts of `dataset` are longer; raise"
        ):
            encode.check("dataset", rows)
        return
    assert [rows[index] for index in encode.check("dataset", rows)] == expected
    assert [prompt.example for prompt in encode.prompts("dataset", rows)] == expected
    assert max(len(prompt.token_ids) for prompt in encode.prompts("dataset", rows)) <= limit


@pytest.fixture(scope="module")
def made_tokenizers():
    return {ends: tokenizer(ends) for ends in ("$A", "<bos> $A", "<bos> $A <eos>")}


def test_what_is_left_out_is_counted_and_said_once_with_the_template_counted(said):
    encode = PromptTokenizer(tokenizer(), PromptFormat(prompt_template="Q{prompt}"), max_prompt_length=3)
    rows = [{"prompt": "a" * length} for length in (1, 5, 2, 3, 1)]
    kept = encode.check("dataset", rows)
    assert kept == [0, 2, 4]
    assert [encode(rows[index]) for index in kept] == list(encode.prompts("dataset", rows))
    line = (
        "`dataset`: 2 of 5 prompts (40.00%) have more than `max_prompt_length` = 3 tokens and are left out; the "
        "longest has 6."
    )
    assert said() == [line]
    assert len(encode(rows[3]).token_ids) == 4  # such as a prompt that a sampling scheme has made longer


def test_a_long_prompt_is_left_out_before_the_limit_of_the_model_refuses_it(said):
    limits = SequenceLimits(max_length=10, limited_by="the model holds")
    rows = [{"prompt": "1"}, {"prompt": "1" * 9}]
    with pytest.raises(ValueError, match="the model holds 10"):
        PromptTokenizer(tokenizer(), limits=limits, max_completion_length=4).check("dataset", rows)
    encode = PromptTokenizer(tokenizer(), limits=limits, max_completion_length=4, max_prompt_length=6)
    assert encode.check("dataset", rows) == [0]


def test_without_a_maximum_length_a_data_set_is_used_as_it_is(said):
    rows = [{"prompt": "1"}, {"prompt": "1" * 9}]
    assert [*PromptTokenizer(tokenizer()).check("dataset", rows)] == [0, 1]
    assert PromptTokenizer(tokenizer(), max_prompt_length=9).check("dataset", rows) == [0, 1]
    assert said() == []


def test_each_prompt_is_tokenized_once_by_the_check(monkeypatch):
    encode = PromptTokenizer(tokenizer(), max_prompt_length=2)
    tokenized = []
    rows_of = encode._rows
    monkeypatch.setattr(encode, "_rows", lambda texts: tokenized.extend(texts) or rows_of(texts))
    encode.check("dataset", [{"prompt": "1"}, {"prompt": "22"}, {"prompt": "333"}])
    assert tokenized == ["1", "22", "333"]


# Limits


def test_tokens_without_an_embedding_are_refused_by_the_number_of_the_prompt():
    added = tokenizer()
    rows = len(added)
    added.add_tokens(["<tool>"], special_tokens=True)
    encode = PromptTokenizer(added, limits=SequenceLimits(vocabulary_size=rows))
    prompts = [{"prompt": "a"}, {"prompt": "use <tool> now"}, {"prompt": "<tool>"}]
    with pytest.raises(ValueError, match=r"^`dataset`, prompt 1 \(of 0 to 2\): .* token '<tool>' with id 260, but the"):
        encode.check("dataset", prompts)
    with pytest.raises(ValueError, match=r"embeddings for 260 tokens; .* 2 of 3 prompts are refused\.$"):
        encode.check("dataset", prompts)
    PromptTokenizer(added, limits=SequenceLimits(vocabulary_size=rows + 1)).check("dataset", prompts)


@pytest.mark.parametrize("token_id", [260, 10_000, -1])
def test_a_stop_token_that_the_model_lacks_is_refused(token_id):
    with pytest.raises(
        ValueError, match=rf"stop token with id {token_id} is none of the 260 .* correct `eos_token_id`"
    ):
        PromptTokenizer(tokenizer(), limits=SequenceLimits(260), end_token_ids=(1, token_id))
    PromptTokenizer(tokenizer(), limits=SequenceLimits(260), end_token_ids=(1, 259))


def test_the_longest_prompt_that_fits_is_taken_and_one_more_token_refused():
    limits = SequenceLimits(max_length=10, limited_by="the model holds")
    encode = PromptTokenizer(tokenizer("<bos> $A"), limits=limits, max_completion_length=4)
    assert len(encode({"prompt": "12345"}).token_ids) == 6
    message = (
        r"^line 7: the prompt has 7 tokens, with `max_completion_length` 11, but the model holds 10; shorten or leave "
        r"out the prompt, or lower `max_completion_length` to 3\.$"
    )
    with pytest.raises(ValueError, match=message):
        encode({"prompt": "123456"}, "line 7")
    with pytest.raises(ValueError, match=r"shorten or leave out the prompt\.$"):
        encode({"prompt": "1" * 10}, "line 7")


def test_the_smaller_limit_counts():
    model = SequenceLimits(max_length=10, limited_by="the model")
    assert model.shortened(None, "the engine") == model.shortened(10, "the engine") == model
    assert model.shortened(9, "the engine") == SequenceLimits(max_length=9, limited_by="the engine")
    assert SequenceLimits(5).shortened(9, "the engine") == SequenceLimits(5, 9, "the engine")


def test_a_length_that_is_only_declared_is_warned_of_once(recwarn):
    encode = PromptTokenizer(tokenizer(), limits=SequenceLimits(trained_length=8), max_completion_length=4)
    encode.check("dataset", [{"prompt": "1234"}, {"prompt": "12345"}, {"prompt": "123456"}])
    (said,) = [str(warning.message) for warning in recwarn if "the model is made for 8" in str(warning.message)]
    assert said.startswith("`dataset`, prompt 1 (of 0 to 2): the prompt has 5 tokens, with `max_completion_length` 9,")


@pytest.mark.parametrize("ends", ["$A", "<bos> $A"])
def test_a_prompt_of_no_tokens_is_refused(ends):
    encode = PromptTokenizer(tokenizer(ends, normalizer=normalizers.Replace("\u200b", "")))
    with pytest.raises(ValueError, match=r"^`validation`, prompt 1 \(of 0 to 1\): the prompt '.*' has no tokens"):
        list(encode.prompts("validation", [{"prompt": "a"}, {"prompt": "\u200b"}]))


def test_prompts_are_tokenized_alike_alone_and_together():
    encode = PromptTokenizer(tokenizer("<bos> $A"))
    rows = [{"prompt": f"What is {number}?" * (number % 5 + 1)} for number in range(2500)]
    assert [prompt.token_ids for prompt in encode.prompts("dataset", rows)] == [encode(row).token_ids for row in rows]
    assert [prompt.example for prompt in encode.prompts("dataset", rows, 3)] == rows[:3]


def test_a_data_set_is_checked_as_far_as_that_is_quick(monkeypatch):
    monkeypatch.setattr("lightning_modules.prompts.tokenization._CHECKED", 3)
    rows = [{"prompt": "a"}, {"prompt": "b"}, {"prompt": "c"}, {"prompt": ""}]
    encode = PromptTokenizer(tokenizer())
    encode.check("dataset", rows)
    with pytest.raises(ValueError, match="the prompt is ''"):
        list(encode.prompts("dataset", rows))
