"""A small language model that is built locally, warm-started on the task by supervised training, and cached."""

from __future__ import annotations

import math
import random
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from aggregate_po.arguments import require_positive
from lightning_modules.addition.problems import guessed_answer, question, random_pairs, worked_answer
from lightning_modules.cache import arguments_key, cached_folder
from lightning_modules.progress import progress_bar

_Example = tuple[list[int], list[int]]  # token ids of the prompt, and of the answer with the end-of-sequence token

_WORKED_TOKENS = 16  # a guess has fewer tokens, a worked answer more
_FORMAT = 4  # raise it when the same arguments build another model, so that no stale model is loaded from the cache


@dataclass(frozen=True)
class AdditionWarmStart:
    """A Qwen2 model with 0.9 million parameters, warm-started on imperfect addition examples by supervised training.

    Most examples guess the sum; the others work it out, with occasional mistakes. The model is therefore weak in both
    ways of answering, and reinforcement learning can discover that working out the sum earns more reward.

    Args:
        steps: Number of optimizer steps of the supervised training.
        batch_size: Number of examples per optimizer step.
        learning_rate: Peak learning rate, reached after 20 warm-up steps; it decays to a tenth by a cosine schedule.
        guess_share: Fraction of the examples whose answer is a guess.
        guess_spread: Largest distance between a guess and the sum.
        noise: Probability of a mistake in each column of a worked example.
        seed: Seed of the initial weights and of the examples.

    Raises:
        ValueError: a fraction is not between 0 and 1, or a count is not positive.
    """

    steps: int = 700
    batch_size: int = 32
    learning_rate: float = 2e-3
    guess_share: float = 0.7
    guess_spread: int = 20
    noise: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        require_positive(steps=self.steps, batch_size=self.batch_size, learning_rate=self.learning_rate)
        for name in ("guess_share", "noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; pass a fraction, from 0 to 1.")
        if self.guess_spread < 0:
            raise ValueError(f"`guess_spread` is {self.guess_spread}; pass 0 for correct answers, or more.")

    def prepare(self) -> str:
        """Return a folder that `from_pretrained` loads; the first call builds the model, later calls use the cache."""
        return str(cached_folder(f"addition-{self._key()}", self._make))

    def describe(self) -> tuple[Qwen2Config, PreTrainedTokenizerFast]:
        """Return configuration and tokenizer of the model without building it."""
        tokenizer = make_tokenizer()
        return model_config(tokenizer), tokenizer

    def _key(self) -> str:
        # A subclass may make another model from the same arguments.
        own = {} if type(self) is AdditionWarmStart else {"class": f"{type(self).__module__}.{type(self).__qualname__}"}
        return arguments_key(format=_FORMAT, **own, **asdict(self))

    def _make(self, folder: Path) -> None:
        tokenizer = make_tokenizer()
        with torch.random.fork_rng(devices=[]), torch.enable_grad(), torch.inference_mode(False):
            torch.manual_seed(self.seed)
            model = make_model(tokenizer)
            self._train(model, tokenizer)
        model.save_pretrained(folder)
        tokenizer.save_pretrained(folder)

    def _train(self, model: PreTrainedModel, tokenizer: PreTrainedTokenizerFast) -> None:
        examples = self._examples(tokenizer)
        optimizer = torch.optim.AdamW(model.parameters(), lr=self.learning_rate, betas=(0.9, 0.95), weight_decay=0.0)
        schedule = torch.optim.lr_scheduler.LambdaLR(optimizer, self._learning_rate_factor)
        progress = progress_bar(iterable=range(self.steps), desc="warm start", unit="step")
        for _ in progress:
            batch = sorted((next(examples) for _ in range(self.batch_size)), key=_total_length)
            trained = sum(len(answer) for _, answer in batch)
            # Guesses are short and worked answers long; separate forward passes need little padding.
            guesses = sum(len(answer) < _WORKED_TOKENS for _, answer in batch)
            optimizer.zero_grad()
            loss = 0.0
            for rows in filter(None, (batch[:guesses], batch[guesses:])):
                inputs, labels = _supervised_batch(tokenizer.pad_token_id, rows)
                part = model(input_ids=inputs, labels=labels, num_items_in_batch=trained).loss
                part.backward()
                loss += part.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress.set_postfix(loss=f"{loss:.3f}", refresh=False)

    def _examples(self, tokenizer: PreTrainedTokenizerFast) -> Iterator[_Example]:
        rng = random.Random(f"warm start {self.seed}")
        for first, second in random_pairs(rng, held_out=False):
            prompt, answer = self._prompt(first, second, rng), self._answer(first, second, rng)
            yield tokenizer.encode(prompt), [*tokenizer.encode(answer), tokenizer.eos_token_id]

    def _prompt(self, first: int, second: int, rng: random.Random) -> str:
        """Return the prompt of an example; a subclass may need the random generator."""
        return question(first, second)

    def _answer(self, first: int, second: int, rng: random.Random) -> str:
        """Return a guess or a worked answer."""
        if rng.random() < self.guess_share:
            return guessed_answer(first, second, self.guess_spread, rng)
        return worked_answer(first, second, self.noise, rng)

    def _learning_rate_factor(self, step: int, warmup_steps: int = 20) -> float:
        cosine = 0.55 + 0.45 * math.cos(math.pi * step / self.steps)
        return min((step + 1) / warmup_steps, 1.0) * cosine


def make_tokenizer(vocabulary_size: int = 271) -> PreTrainedTokenizerFast:
    """Return a byte-level BPE tokenizer with one token per digit, trained on the text of the task."""
    pairs = random_pairs(random.Random("tokenizer"), held_out=False)
    texts = []
    for first, second in (next(pairs) for _ in range(1000)):
        texts += [question(first, second), worked_answer(first, second)]
    tokenizer = Tokenizer(models.BPE())
    tokenizer.pre_tokenizer = pre_tokenizers.Sequence(
        [pre_tokenizers.Digits(individual_digits=True), pre_tokenizers.ByteLevel(add_prefix_space=False)]
    )
    tokenizer.decoder = decoders.ByteLevel()
    trainer = trainers.BpeTrainer(
        vocab_size=vocabulary_size,
        special_tokens=["<pad>", "<eos>"],
        initial_alphabet=pre_tokenizers.ByteLevel.alphabet(),
        show_progress=False,
    )
    tokenizer.train_from_iterator(texts, trainer)
    # Bytes are never unknown, but the tokenizer class of Qwen2 adds an unknown token if none is named.
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>")


def make_model(tokenizer: PreTrainedTokenizerFast, hidden_size: int = 128, layers: int = 4) -> PreTrainedModel:
    """Return a randomly initialized Qwen2 model for the tokenizer, by default with 0.9 million parameters."""
    return Qwen2ForCausalLM(model_config(tokenizer, hidden_size, layers))


def model_config(tokenizer: PreTrainedTokenizerFast, hidden_size: int = 128, layers: int = 4) -> Qwen2Config:
    """Return the configuration of the Qwen2 model for the tokenizer."""
    return Qwen2Config(
        vocab_size=len(tokenizer),
        hidden_size=hidden_size,
        intermediate_size=3 * hidden_size,
        num_hidden_layers=layers,
        num_attention_heads=4,
        num_key_value_heads=4,
        max_position_embeddings=256,
        initializer_range=0.06,  # at this width the usual 0.02 learns the columns several times slower
        tie_word_embeddings=True,
        bos_token_id=None,
        eos_token_id=tokenizer.eos_token_id,
        pad_token_id=tokenizer.pad_token_id,
    )


def _total_length(example: _Example) -> int:
    return len(example[0]) + len(example[1])


def _supervised_batch(pad_token_id: int, rows: Sequence[_Example]) -> tuple[torch.Tensor, torch.Tensor]:
    """Return right-padded token ids, and labels that mask out prompts and padding."""
    width = max(_total_length(row) for row in rows)
    inputs = torch.full((len(rows), width), pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for row, (prompt_ids, answer_ids) in enumerate(rows):
        start, end = len(prompt_ids), len(prompt_ids) + len(answer_ids)
        inputs[row, :end] = torch.tensor([*prompt_ids, *answer_ids])
        labels[row, start:end] = inputs[row, start:end]
    return inputs, labels
