"""Published templates, word for word."""

import pytest
from transformers import AutoTokenizer

from lightning_modules.prompts import PromptFormat, PromptTokenizer, qwen_math, r1_zero

QWEN = (
    "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
    "<|im_start|>user\n1 + {1}?<|im_end|>\n<|im_start|>assistant\n"
)
# The chat template of Qwen2.5-Math's tokenizer without tools, and its system text.
CHAT = (
    "{% for m in messages %}<|im_start|>{{ m.role }}\n{{ m.content }}<|im_end|>\n{% endfor %}"
    "{% if add_generation_prompt %}<|im_start|>assistant\n{% endif %}"
)
SYSTEM = "Please reason step by step, and put your final answer within \\boxed{}."


def test_the_chat_of_qwen_math_is_that_of_its_chat_template(tiny_model):
    assert qwen_math("1 + {1}?") == QWEN
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = CHAT
    assert PromptFormat(True, SYSTEM).formatted(tokenizer, "1 + {1}?") == QWEN
    assert PromptFormat(prompt_template=qwen_math).formatted(tokenizer, "1 + {1}?") == QWEN


def test_the_chat_of_qwen_math_is_not_put_into_a_chat_template(tiny_model):
    tokenizer = AutoTokenizer.from_pretrained(tiny_model)
    tokenizer.chat_template = CHAT
    tokenizer.add_special_tokens({"extra_special_tokens": ["<|im_start|>", "<|im_end|>"]})
    with pytest.raises(
        ValueError, match=r"`prompt_template` is qwen_math, .* '<\|im_start\|>', but `chat_template` is True"
    ):
        PromptTokenizer(tokenizer, PromptFormat(True, prompt_template=qwen_math))({"prompt": "1 + 1?"})


def test_the_conversation_of_r1_zero():
    text = r1_zero("1 + 1?")
    assert text.startswith(
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves"
    )
    assert "i.e., <think> reasoning process here </think> <answer> answer here </answer>. User: 1 + 1?" in text
    assert text.endswith(" Assistant:")
