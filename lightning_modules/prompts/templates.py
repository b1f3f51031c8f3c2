"""Published prompt templates, each a function from the text of a problem to the text of the prompt."""

from __future__ import annotations


def qwen_math(prompt: str) -> str:
    r"""Return the chat that Qwen2.5-Math is trained on, which asks for steps and for the answer in `\boxed{}`.

    The text has the marks of the chat, so pass it without a chat template.

    Args:
        prompt: Text of the problem.

    Reference: Qwen2.5-Math, arXiv:2409.12122.
    """
    return (
        "<|im_start|>system\nPlease reason step by step, and put your final answer within \\boxed{}.<|im_end|>\n"
        f"<|im_start|>user\n{prompt}<|im_end|>\n<|im_start|>assistant\n"
    )


def r1_zero(prompt: str) -> str:
    """Return the conversation of DeepSeek-R1-Zero, which asks for the tags `<think>` and `<answer>`.

    Args:
        prompt: Text of the problem.

    Reference: DeepSeek-R1, arXiv:2501.12948, table 1.
    """
    return (
        "A conversation between User and Assistant. The user asks a question, and the Assistant solves it. The "
        "assistant first thinks about the reasoning process in the mind and then provides the user with the answer. "
        "The reasoning process and answer are enclosed within <think> </think> and <answer> </answer> tags, "
        "respectively, i.e., <think> reasoning process here </think> <answer> answer here </answer>. "
        f"User: {prompt}. Assistant:"
    )
