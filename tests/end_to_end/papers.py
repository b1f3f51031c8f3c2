"""What the papers say of each run: its objective on one completion, its sizes, and its prompts, worked out by hand."""

import math
import re
from dataclasses import dataclass, replace

QUESTION, INSTRUCTION = "What is 2 + 3?", "Please reason step by step, and put your final answer within \\boxed{}."
QWEN_MATH = (
    f"<|im_start|>system\n{INSTRUCTION}<|im_end|>\n<|im_start|>user\n{QUESTION}<|im_end|>\n<|im_start|>assistant\n"
)
TAGS = (
    "Think about the problem between <think> and </think>. Then give the final answer, in \\boxed{}, between <answer> "
    "and </answer>."
)
PROMPTS = {
    "grpo-deepseek-math-7b": f"<|im_start|>user\n{QUESTION}\n{INSTRUCTION}<|im_end|>\n<|im_start|>assistant\n",
    "igrpo-r1-7b": QWEN_MATH.replace(INSTRUCTION, TAGS),
}
LOG_RATIO = (1.0, -0.7, 0.3, 0.1)
RATIO = [math.exp(x) for x in LOG_RATIO]


def mean(values, exponent=1.0):
    return (sum(value**exponent for value in values) / len(values)) ** (1 / exponent)


def geometric(*log_ratios):
    return math.exp(sum(log_ratios) / len(log_ratios))


def power_mean_of_matched_size(log_ratios):
    """PMPO: as one token in four is clipped, the effective sample size is 3/4 of that of p = 1 and 1/4 of n."""
    ratios = [math.exp(x) for x in log_ratios]

    def size(p):
        return sum(r**p for r in ratios) ** 2 / sum(r ** (2 * p) for r in ratios) / len(ratios)

    low, high, target = 1e-9, 1.0, 0.75 * size(1) + 0.25
    for _ in range(60):
        middle = (low + high) / 2
        low, high = (middle, high) if size(middle) > target else (low, middle)
    return mean(ratios, low)


def arithmetic(low, high):
    """Clipped from above for advantage 1, from below for advantage -1."""
    return mean([min(r, high) for r in RATIO]), mean([max(r, low) for r in RATIO])


# What a completion of ratios exp(1), exp(-0.7), exp(0.3) and exp(0.1) counts, for advantage 1 and for advantage -1.
GRPO = arithmetic(0.8, 1.2)
WORTH = {
    "grpo": GRPO,
    "igrpo": GRPO,
    "dr-grpo": tuple(4 * worth / 3000 for worth in GRPO),
    "dapo": arithmetic(0.8, 1.28),
    "gspo": (1.0004, geometric(*LOG_RATIO)),
    "gmpo": (geometric(0.4, -0.7, 0.3, 0.1), geometric(1.0, -0.4, 0.3, 0.1)),
    "gmpo-clip-0.2": (geometric(0.2, -0.7, 0.2, 0.1), geometric(1.0, -0.2, 0.3, 0.1)),
    "gmpo-clip-0.8": (geometric(0.8, -0.7, 0.3, 0.1), geometric(*LOG_RATIO)),
    "gmpo-no-clip": (geometric(*LOG_RATIO), geometric(*LOG_RATIO)),
    "gmpo-sequence-clip": (math.exp(0.4 / 4), math.exp(0.7 / 4)),
    "gmpo-without-length-norm": (math.exp(0.4 - 0.7 + 0.3 + 0.1), math.exp(1.0 - 0.4 + 0.3 + 0.1)),
    "grpo-wide-clip": arithmetic(0.67, 1.49),
    "pmpo": (
        power_mean_of_matched_size((0.4, -0.7, 0.3, 0.1)),
        power_mean_of_matched_size((1.0, -0.4, 0.3, 0.1)),
    ),
    "holder-po": (1.2, mean(RATIO, 2.0)),  # at the start of training
    "holder-po-token-clip": (
        geometric(math.log(1.2), -0.7, math.log(1.2), 0.1),
        geometric(1.0, math.log(0.8), 0.3, 0.1),
    ),
}
AT_THE_END = {"holder-po": (mean(RATIO, -2.0), mean(RATIO, -2.0))}
MODELS = {
    "1.5b": "Qwen/Qwen2.5-Math-1.5B",
    "7b": "Qwen/Qwen2.5-Math-7B",
    "r1-7b": "deepseek-ai/DeepSeek-R1-Distill-Qwen-7B",
    "qwen3-4b": "Qwen/Qwen3-4B-Base",
    "qwen3-8b": "Qwen/Qwen3-8B-Base",
    "32b": "Qwen/Qwen2.5-32B",
    "deepseek-math-7b": "deepseek-ai/deepseek-math-7b-instruct",
}
NAME = re.compile(rf"(?P<method>[a-z-]+?)-(?P<model>{'|'.join(sorted(MODELS, key=len, reverse=True))})(?P<change>-.*)?")


@dataclass(frozen=True)
class Expected:
    """What a paper says of a run, where it differs from MATH levels 3 to 5 in the common setup."""

    group_size: int = 8
    prompts: int = 128
    updates: int = 8
    prompt_length: int = 1024
    draft: int = 0  # tokens that a second prompt has more
    length: int = 3000
    temperature: float = 1.0
    truncated: str = "zero_reward"
    penalties: tuple[tuple[str, float], ...] = ()
    # Of rewards 1, 0, 0, 0 for lengths of 10, 20, 30 and 40 tokens: less 1/4, over the deviation 1/2 of the sample.
    advantages: tuple[float, ...] = (1.5, -0.5, -0.5, -0.5)
    schemes: tuple[str, ...] = ()
    constant_learning_rate: bool = True


COMMON = Expected()
EXPECTED = {
    "dr-grpo": replace(COMMON, advantages=(0.75, -0.25, -0.25, -0.25)),
    "dapo": replace(COMMON, truncated="score", schemes=("DynamicSampling",)),
    "dapo-32b": replace(
        COMMON,
        group_size=16,
        prompts=512,
        updates=16,
        prompt_length=2048,
        length=20480,
        truncated="score",
        schemes=("DynamicSampling",),
    ),
    "igrpo": replace(
        COMMON,
        group_size=4,
        draft=4096 + 384,  # and the words around it
        length=4096,
        temperature=0.7,
        schemes=("DraftRefinement",),
        constant_learning_rate=False,
    ),
    "grpo-deepseek-math-7b": replace(
        COMMON, group_size=64, prompts=16, updates=1, length=1024, penalties=(("K3Penalty", 0.04),)
    ),
}
