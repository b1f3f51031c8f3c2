"""Scored groups: the completions of several prompts with their rewards, and what samples and scores them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import cast

import torch
from einops import rearrange, reduce
from lightning import Trainer
from torch import Tensor

from aggregate_po import PerCompletion, PerToken
from lightning_modules.batch import Sequences, left_padded
from lightning_modules.data.sampler import Sampler
from lightning_modules.distributed import (
    broadcast_in_tensor_parallel_group,
    is_tensor_parallel_leader,
)
from lightning_modules.prompts import Example, Prompt, PromptStream
from lightning_modules.rewards import TruncationRule, WeightedRewards, trained_tokens, truncated_rewards
from lightning_modules.rollouts import Completions
from lightning_modules.seeding import derived_seed
from lightning_modules.tally import Tally


@dataclass(frozen=True)
class Groups:
    """Completions of this rank with their rewards; those of one prompt, a group, stand next to each other.

    Args:
        prompts: one for each group.
        completions: as they were sampled.
        texts: of the completions, without special tokens.
        components: each single reward of a completion, after the truncation rule; shape `batch component`.
        rewards: their weighted sum; shape `batch`.
        response_mask: True on the tokens that are trained; shape `batch time`.
        policy_step: optimizer steps that the policy had made which the oldest of them was sampled from.
        metrics: what the engine and the sampling schemes tell of them, the same on all ranks.
    """

    prompts: Sequence[Prompt]
    completions: Completions
    texts: Sequence[str]
    components: Tensor
    rewards: PerCompletion
    response_mask: PerToken
    policy_step: int
    metrics: Mapping[str, float] = field(default_factory=dict)

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def group_size(self) -> int:
        """Completions of each prompt."""
        return len(self.texts) // len(self.prompts)

    @property
    def have_signal(self) -> Tensor:
        """True for the groups whose rewards differ, so that an advantage can; shape `prompt`."""
        groups = rearrange(self.rewards, "(prompt group) -> prompt group", group=self.group_size)
        return reduce(groups, "prompt group -> prompt", "max") > reduce(groups, "prompt group -> prompt", "min")

    def select(self, groups: Tensor, metrics: Mapping[str, float] | None = None) -> Groups:
        """Return some of the groups, by their indices; with other metrics where they are given."""
        rows = (groups.unsqueeze(-1) * self.group_size + torch.arange(self.group_size)).flatten()
        return Groups(
            prompts=[self.prompts[group] for group in groups.tolist()],
            completions=self.completions.select(rows),
            texts=[self.texts[row] for row in rows.tolist()],
            components=self.components[rows],
            rewards=self.rewards[rows],
            response_mask=self.response_mask[rows],
            policy_step=self.policy_step,
            metrics=self.metrics if metrics is None else metrics,
        )

    @staticmethod
    def joined(parts: Sequence[Groups]) -> Groups:
        """Return the groups of all parts, one part after another; of equal metrics the last part's are kept."""
        completions = Completions.joined([part.completions for part in parts])
        width = completions.mask.shape[1]
        masks = [
            torch.nn.functional.pad(part.response_mask, (0, width - part.response_mask.shape[1])) for part in parts
        ]
        return Groups(
            prompts=[prompt for part in parts for prompt in part.prompts],
            completions=completions,
            texts=[text for part in parts for text in part.texts],
            components=torch.cat([part.components for part in parts]),
            rewards=torch.cat([part.rewards for part in parts]),
            response_mask=torch.cat(masks),
            policy_step=min(part.policy_step for part in parts),
            metrics={name: value for part in parts for name, value in part.metrics.items()},
        )

    def sequences(self, temperature: float) -> Sequences:
        """Return the token ids that a model reads to score the completions."""
        prompt_ids, prompt_mask = left_padded([prompt.token_ids for prompt in self.prompts])
        return Sequences(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            prompt_of=torch.arange(len(self.prompts)).repeat_interleave(self.group_size),
            completion_ids=self.completions.token_ids,
            completion_mask=self.completions.mask,
            temperature=temperature,
        )


class GroupSampler:
    """Samples and scores the groups of one rollout; the first stage, which sampling schemes build upon.

    All data-parallel ranks make the same calls in the same order, each for its own prompts.

    Args:
        sampler: samples the completions.
        prompts: of this rank, in order.
        rewards: score a completion.
        truncated: what becomes of a completion that was cut off.
        group_size: completions per prompt.
        temperature: of sampling.
        updates: of the rollout, into which its groups are split.
        seeds: from which the seeds of sampling are derived; different for each rollout and rank.
        trainer: knows the ranks.
    """

    def __init__(
        self,
        sampler: Sampler,
        prompts: PromptStream,
        rewards: WeightedRewards,
        truncated: TruncationRule,
        group_size: int,
        temperature: float,
        updates: int,
        seeds: tuple[int, ...],
        trainer: Trainer,
    ) -> None:
        self._sampler, self._prompts, self._rewards, self._truncated = sampler, prompts, rewards, truncated
        self.group_size, self.updates = group_size, updates
        self._temperature, self._seeds, self._trainer = temperature, seeds, trainer
        self._calls = 0

    def __call__(self, count: int) -> Groups:
        """Return the groups of this rank's next prompts, which no other rollout uses."""
        return self.complete(self._prompts.take(count))

    def begin(self, count: int) -> None:
        """Start to sample the groups that the first call with the same count will return."""
        self._sampler.begin(self._prompts.peek(count), self._temperature, self._seed(), self.group_size)

    def complete(self, prompts: Sequence[Prompt], group_size: int | None = None) -> Groups:
        """Return scored groups of any prompts, such as those that a scheme makes of the data set's.

        Args:
            prompts: one or more; as many on each rank.
            group_size: completions per prompt; that of the rollout when None.
        """
        size = group_size or self.group_size
        sampled = self._sampler.sample(prompts, self._temperature, self._seed(), size)
        self._calls += 1
        completions = sampled.completions
        examples = [prompt.example for prompt in prompts for _ in range(size)]
        scores = self._rewards.components(sampled.texts, examples) if is_tensor_parallel_leader(self._trainer) else None
        scores = cast(Tensor, broadcast_in_tensor_parallel_group(scores, self._trainer))
        components = truncated_rewards(self._truncated, scores, completions.finished)
        return Groups(
            prompts=prompts,
            completions=completions,
            texts=sampled.texts,
            components=components,
            rewards=self._rewards.total(components),
            response_mask=trained_tokens(self._truncated, completions.mask, completions.finished),
            policy_step=sampled.policy_step,
            metrics=sampled.metrics,
        )

    def prompt_of(self, example: Example) -> Prompt:
        """Return an example that a scheme has made up, with the tokens of its prompt."""
        return self._sampler.prompt_of(example)

    def over_ranks(self, tally: Tally) -> Tally:
        """Reduce what each rank has counted; every rank must call it."""
        return tally.over_ranks(self._trainer)

    def _seed(self) -> int:
        # The first call of a rollout has the seed of a rollout without a scheme.
        return derived_seed(*self._seeds, *([self._calls] if self._calls else []))
