"""A small language model made on the spot: built, taught the format of the task, and kept for the next time."""

from __future__ import annotations

import hashlib
import json
import math
import os
import random
import shutil
import tempfile
from collections.abc import Iterator, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path

import torch
from tokenizers import Tokenizer, decoders, models, pre_tokenizers, trainers
from transformers import PreTrainedModel, PreTrainedTokenizerFast, Qwen2Config, Qwen2ForCausalLM

from lightning_modules.addition.problems import guessed_answer, question, random_pairs, worked_answer
from lightning_modules.progress import progress_bar

_Example = tuple[list[int], list[int]]  # token ids of the prompt, and of the answer with its end of sequence

_WORKED_TOKENS = 16  # a guess has fewer, a worked answer more
_FORMAT = 4  # raise it when the same arguments would give another model, so that no stale one is reused


@dataclass(frozen=True)
class AdditionWarmStart:
    """A Qwen2 of 0.9 million parameters, taught addition by a teacher in a hurry.

    Most of the examples guess the sum, the others work it out and slip now and then. So the model starts out weak in
    both ways of answering, and reinforcement learning can find that working the sum out pays.

    Args:
        steps: optimiser steps.
        batch_size: examples per step.
        learning_rate: peak, after 20 steps of warm-up; it falls to a tenth along a cosine.
        guess_share: share of the examples that guess.
        guess_spread: how far a guess may be off.
        noise: probability that a column of a worked example is wrong.
        seed: of the weights and of the examples.

    Raises:
        ValueError: a share is not within 0 and 1, or a count is not positive.
    """

    steps: int = 700
    batch_size: int = 32
    learning_rate: float = 2e-3
    guess_share: float = 0.7
    guess_spread: int = 20
    noise: float = 0.1
    seed: int = 0

    def __post_init__(self) -> None:
        for name in ("steps", "batch_size", "learning_rate"):
            if not getattr(self, name) > 0:
                raise ValueError(f"`{name}` is {getattr(self, name)}; pass a positive number.")
        for name in ("guess_share", "noise"):
            if not 0 <= getattr(self, name) <= 1:
                raise ValueError(f"`{name}` is {getattr(self, name)}; pass a share, from 0 to 1.")
        if self.guess_spread < 0:
            raise ValueError(f"`guess_spread` is {self.guess_spread}; pass 0 for right answers, or more.")

    def prepare(self) -> str:
        """Folder that `from_pretrained` loads; the model is made on the first call and found by later ones."""
        folder = _cache_folder() / f"addition-{self._key()}"
        if not folder.exists():
            folder.parent.mkdir(parents=True, exist_ok=True)
            scratch = Path(tempfile.mkdtemp(prefix=".making-", dir=folder.parent))
            try:
                self._make(scratch)
                # The rename is atomic: whoever looks finds a whole model or none.
                scratch.replace(folder)
            except OSError:
                if not folder.exists():  # otherwise another process has made the same model meanwhile
                    raise
            finally:
                shutil.rmtree(scratch, ignore_errors=True)
        return str(folder)

    def describe(self) -> tuple[Qwen2Config, PreTrainedTokenizerFast]:
        """Configuration and tokenizer of the model, which need not exist."""
        tokenizer = make_tokenizer()
        return model_config(tokenizer), tokenizer

    def _key(self) -> str:
        described = json.dumps({"format": _FORMAT, **asdict(self)}, sort_keys=True)
        return hashlib.sha256(described.encode()).hexdigest()[:12]

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
            # Guesses are short and worked answers long; apart they need little padding.
            guesses = sum(len(answer) < _WORKED_TOKENS for _, answer in batch)
            optimizer.zero_grad()
            loss = 0.0
            for rows in filter(None, (batch[:guesses], batch[guesses:])):
                inputs, labels = _supervised_batch(tokenizer.pad_token_id, rows)
                share = model(input_ids=inputs, labels=labels, num_items_in_batch=trained).loss
                share.backward()
                loss += share.item()
            torch.nn.utils.clip_grad_norm_(model.parameters(), 1.0)
            optimizer.step()
            schedule.step()
            progress.set_postfix(loss=f"{loss:.3f}", refresh=False)

    def _examples(self, tokenizer: PreTrainedTokenizerFast) -> Iterator[_Example]:
        rng = random.Random(f"warm start {self.seed}")
        for first, second in random_pairs(rng, held_out=False):
            if rng.random() < self.guess_share:
                answer = guessed_answer(first, second, self.guess_spread, rng)
            else:
                answer = worked_answer(first, second, self.noise, rng)
            yield tokenizer.encode(question(first, second)), [*tokenizer.encode(answer), tokenizer.eos_token_id]

    def _learning_rate_factor(self, step: int, warmup_steps: int = 20) -> float:
        cosine = 0.55 + 0.45 * math.cos(math.pi * step / self.steps)
        return min((step + 1) / warmup_steps, 1.0) * cosine


def make_tokenizer(vocabulary_size: int = 271) -> PreTrainedTokenizerFast:
    """Byte-level BPE with one token per digit, trained on the text of the task."""
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
    # Bytes are never unknown, but the folder loads as Qwen2's tokenizer, which adds a token where none is named.
    return PreTrainedTokenizerFast(tokenizer_object=tokenizer, pad_token="<pad>", eos_token="<eos>", unk_token="<pad>")


def make_model(tokenizer: PreTrainedTokenizerFast, hidden_size: int = 128, layers: int = 4) -> PreTrainedModel:
    """A randomly initialised Qwen2 for the tokenizer, 0.9 million parameters unless told otherwise."""
    return Qwen2ForCausalLM(model_config(tokenizer, hidden_size, layers))


def model_config(tokenizer: PreTrainedTokenizerFast, hidden_size: int = 128, layers: int = 4) -> Qwen2Config:
    """Its configuration."""
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
    """Token ids, padded on the right, and labels: those of the answer and of the end of the sequence."""
    width = max(_total_length(row) for row in rows)
    inputs = torch.full((len(rows), width), pad_token_id)
    labels = torch.full((len(rows), width), -100)
    for row, (prompt_ids, answer_ids) in enumerate(rows):
        start, end = len(prompt_ids), len(prompt_ids) + len(answer_ids)
        inputs[row, :end] = torch.tensor([*prompt_ids, *answer_ids])
        labels[row, start:end] = inputs[row, start:end]
    return inputs, labels


def _cache_folder() -> Path:
    """Where made models are kept: `AGGREGATE_PO_CACHE`, or the user's cache folder."""
    home = os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache"
    return Path(os.environ.get("AGGREGATE_PO_CACHE") or Path(home) / "aggregate_po")
