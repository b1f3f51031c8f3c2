"""Tasks of the study: the default one, and words to be spelled backward, from reasoning-gym."""

from __future__ import annotations

import random
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from safetensors.torch import load_file
from typing_extensions import override

from experiments.start import weights_digest
from lightning_modules.addition import AdditionProblems, AdditionWarmStart
from lightning_modules.addition.warm_start import _Example
from lightning_modules.prompts import ReasoningGym
from lightning_modules.rewards import ReasoningGymReward, boxed_answer

_WORDS = {"min_word_len": 3, "max_word_len": 6}
_HELD_OUT_SEED = 1


@dataclass(frozen=True)
class SpellBackwardWarmStart(AdditionWarmStart):
    """The model of `AdditionWarmStart`, warm-started on words that are spelled backward with mistakes in their letters.

    Args:
        noise: Probability of a wrong letter.
    """

    noise: float = 0.15

    @override
    def _examples(self, tokenizer: Any) -> Iterator[_Example]:
        rng = random.Random(f"warm start {self.seed}")
        words = ReasoningGym("spell_backward", size=4096, seed=2, settings=_WORDS, instruction="")
        while True:
            example = words[rng.randrange(len(words))]
            answer = "".join(
                rng.choice("abcdefghijklmnopqrstuvwxyz") if rng.random() < self.noise else letter
                for letter in example["answer"]
            )
            answer = rf"\boxed{{{answer}}}"
            yield tokenizer.encode(example["prompt"]), [*tokenizer.encode(answer), tokenizer.eos_token_id]


@dataclass(frozen=True)
class Task:
    """A model to start from, and the problems that it is trained and evaluated on.

    Args:
        model: model to start from.
        problems: training problems.
        held_out: held-out problems.
        reward: reward of a completion.
    """

    model: AdditionWarmStart
    problems: Any
    held_out: Any
    reward: Any

    @property
    def start(self) -> str:
        """Digest of the weights to start from, which are made if need be."""
        return weights_digest(load_file(Path(self.model.prepare()) / "model.safetensors"))


def addition() -> Task:
    """Return the default task: addition problems whose answers are worked out or guessed."""
    return Task(AdditionWarmStart(), AdditionProblems(8192), AdditionProblems(256, held_out=True), boxed_answer)


def spell_backward() -> Task:
    """Return the task of reasoning-gym to spell a word backward."""
    problems, held_out = (
        ReasoningGym("spell_backward", size, seed, _WORDS, instruction="")
        for size, seed in ((4096, 0), (256, _HELD_OUT_SEED))
    )
    return Task(SpellBackwardWarmStart(), problems, held_out, ReasoningGymReward())


TASKS = {"addition": addition, "spell_backward": spell_backward}
