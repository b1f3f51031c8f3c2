"""Evaluation of the current policy on held-out prompts, sharded over data-parallel ranks."""

from __future__ import annotations

import math
from collections.abc import Iterator, Sequence
from typing import Literal, cast

from lightning import Trainer

from lightning_modules.batch import Evaluation
from lightning_modules.data.sampler import CompletionSampler
from lightning_modules.distributed import (
    broadcast_in_tensor_parallel_group,
    data_parallel_rank,
    data_parallel_size,
    is_tensor_parallel_leader,
)
from lightning_modules.prompts import Prompt
from lightning_modules.rewards import Scores, WeightedRewards
from lightning_modules.seeding import derived_seed

EvaluationName = Literal["sampled", "greedy"]


class EvaluationLoader:
    """Data loader that generates and scores completions of this rank's shard of the held-out prompts.

    Args:
        name: name of the evaluation, such as "greedy".
        prompts: all held-out prompts; data-parallel ranks take those of a batch in turn.
        sampler: generates the completions.
        rewards: scores the completions.
        temperature: sampling temperature; 0 means greedy decoding.
        trainer: trainer, for its data-parallel ranks.
        held_out_set: name of the held-out set; empty if there is only one, without a name.
        samples: number of completions of each prompt.
        top_p: probability of the nucleus to sample from.
    """

    _prompts_per_batch = 256  # over all ranks

    def __init__(
        self,
        name: str,
        prompts: Sequence[Prompt],
        sampler: CompletionSampler,
        rewards: WeightedRewards,
        temperature: float,
        trainer: Trainer,
        held_out_set: str = "",
        samples: int = 1,
        top_p: float = 1.0,
    ) -> None:
        self.name, self._prompts = name, prompts
        self._held_out_set, self._samples, self._top_p = held_out_set, samples, top_p
        self._sampler, self._rewards, self._temperature, self._trainer = sampler, rewards, temperature, trainer

    def __len__(self) -> int:
        return math.ceil(len(self._prompts) / self._prompts_per_batch)

    def __iter__(self) -> Iterator[Evaluation]:
        rank, ranks = data_parallel_rank(self._trainer), data_parallel_size(self._trainer)
        for start in range(0, len(self._prompts), self._prompts_per_batch):
            stop = min(start + self._prompts_per_batch, len(self._prompts))
            local = list(self._prompts[start + rank : stop : ranks])
            yield self._evaluation(local, self.seed_of(start, rank))

    def seed_of(self, start: int, rank: int) -> int:
        """Return the seed of a rank's share of the prompts of a batch; each rank has its own.

        Args:
            start: number of the first prompt of the batch.
            rank: data-parallel rank.
        """
        return derived_seed(start + rank)

    def _evaluation(self, prompts: list[Prompt], seed: int) -> Evaluation:
        # All ranks must call the engine equally often; a rank without prompts completes one and drops the result.
        asked = prompts or self._prompts[:1]
        sampled = self._sampler.sample(asked, self._temperature, seed, self._samples, self._top_p)
        examples = [prompt.example for prompt in prompts for _ in range(self._samples)]
        texts, lengths = sampled.texts[: len(examples)], sampled.completions.mask.sum(dim=-1)[: len(examples)]
        rewarded = sampled.rewarded[: len(examples)]
        scores = self._rewards.scores(rewarded, examples) if is_tensor_parallel_leader(self._trainer) else None
        scores = cast(Scores, broadcast_in_tensor_parallel_group(scores, self._trainer))
        single = dict(zip(self._rewards.names, scores.components.unbind(dim=-1), strict=True))
        return Evaluation(
            name=self.name,
            examples=examples,
            completions=texts,
            rewards=self._rewards.total(scores.components),
            lengths=lengths,
            single_rewards=single if len(single) > 1 else {},
            causes=scores.causes,
            held_out_set=self._held_out_set,
        )
