"""Ways of reading prompts and completions, and the fastest that may serve a model."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from transformers import PreTrainedModel

from aggregate_po import PerToken
from lightning_modules.batch import Sequences
from lightning_modules.rollouts.captured import CapturedReader
from lightning_modules.rollouts.readers import CachedReader, TokenReader, UncachedReader


@dataclass(frozen=True)
class Reading:
    """A way of reading prompts and completions.

    Args:
        reader: class of the reader.
        by_length: whether only prompts of the same length are read together.
    """

    reader: type[TokenReader]
    by_length: bool = False

    @property
    def described(self) -> str:
        """Words for the way, after "samples"."""
        return f"{self.reader.described}{', prompts of the same length at a time' if self.by_length else ''}"

    def batches(self, prompts: Sequence[Sequence[int]], most: int) -> list[list[int]]:
        """Return the indices of the prompts that are read together, at most so many at a time."""
        lengths = sorted({len(prompt) for prompt in prompts}) if self.by_length else [None]
        groups = [[i for i, prompt in enumerate(prompts) if length in (None, len(prompt))] for length in lengths]
        return [group[start : start + most] for group in groups for start in range(0, len(group), most)]

    def log_probs(self, model: PreTrainedModel, sequences: Sequences) -> PerToken:
        """Return the log-probabilities that sampling notes for completions; shape `batch time`; nats; 0 on padding."""
        lengths, mask = sequences.completion_mask.sum(dim=-1), sequences.completion_mask
        prompts = [ids[kept].tolist() for ids, kept in zip(sequences.prompt_ids, sequences.prompt_mask, strict=True)]
        found = torch.zeros(mask.shape, dtype=torch.double, device=mask.device)
        for batch in self.batches(prompts, len(prompts)):
            reader = self.reader(model)
            logits = reader.read_prompts([prompts[index] for index in batch])
            rows = torch.isin(sequences.prompt_of, torch.tensor(batch, device=mask.device)).nonzero().squeeze(-1)
            chosen = torch.tensor([batch.index(prompt) for prompt in sequences.prompt_of[rows].tolist()]).to(rows)
            reader.select(chosen)
            logits = logits[chosen]
            for time in range(int(lengths[rows].max())):
                tokens = sequences.completion_ids[rows, time]
                log_p = torch.log_softmax(logits.double(), dim=-1)
                found[rows, time] = log_p.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
                going = (lengths[rows] > time + 1).nonzero().squeeze(-1)
                if len(going) == 0:
                    break
                reader.select(going)  # as completions that have ended leave the batch
                rows = rows[going]
                logits = reader.read(tokens[going].unsqueeze(-1))
        return found


# From the fastest to the slowest, which serves every causal model.
_READINGS = (
    Reading(CapturedReader),
    Reading(CachedReader),
    Reading(CachedReader, by_length=True),
    Reading(UncachedReader, by_length=True),
)


def readings_of(model: PreTrainedModel) -> list[Reading]:
    """Return the ways of reading that are worth trying with a model on its device, from the fastest to the slowest."""
    return [reading for reading in _READINGS if reading.reader.serves(model)]
