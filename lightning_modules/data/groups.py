"""Groups of scored completions, and the sampler that generates and scores them."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, field
from typing import Any

import torch
from einops import rearrange
from lightning import Trainer
from torch import Tensor

from aggregate_po import PerCompletion, PerToken
from aggregate_po.advantages.rounding import equal_up_to_rounding
from aggregate_po.advantages.scored import filled
from lightning_modules.batch import Sequences, left_padded
from lightning_modules.data.sampler import CompletionSampler
from lightning_modules.data.scoring import CompletionScorer
from lightning_modules.data.verdicts import verdict_metrics
from lightning_modules.distributed import data_parallel_rank, gathered_over_ranks, gathered_values
from lightning_modules.prompts import Example, Prompt, PromptDataset, PromptStream
from lightning_modules.rewards import Cause, FailedVerdictRule, TruncationRule, WeightedRewards
from lightning_modules.rollouts import Completions
from lightning_modules.seeding import derived_seed
from lightning_modules.tally import Tally


@dataclass(frozen=True)
class Groups:
    """Scored completions of this rank; the completions of one prompt form a group and are adjacent.

    Args:
        prompts: one prompt per group.
        completions: sampled completions.
        texts: texts of the completions, without the stop token that ended them.
        components: single rewards of each completion, after the truncation rule; shape `batch component`; float64.
        rewards: weighted sums of the single rewards; shape `batch`; float64.
        response_mask: True on trained tokens; shape `batch time`.
        policy_steps: optimizer step of the policy that sampled each group.
        metrics: metrics of the engine, of sampling schemes and of verdicts, the same on all ranks.
        scored: False for completions without a reward, which are out of their group; their rewards and single rewards
            mean nothing, and none of their tokens is trained; shape `batch`; True for all when None.
        causes: cause of each failed verdict, None where there is a reward; `causes[completion][component]`; no verdict
            failed when None.
        step_rewards: reward of each step, None unless the advantage estimator needs them; shape `batch time`; float64.
    """

    prompts: Sequence[Prompt]
    completions: Completions
    texts: Sequence[str]
    components: Tensor
    rewards: PerCompletion
    response_mask: PerToken
    policy_steps: Sequence[int]
    metrics: Mapping[str, float] = field(default_factory=dict)
    scored: PerCompletion = None  # type: ignore[assignment]  # filled in below, so never None to a reader
    causes: Sequence[Sequence[Cause | None]] = None  # type: ignore[assignment]  # as above
    step_rewards: PerToken | None = None

    def __post_init__(self) -> None:
        if self.scored is None:
            object.__setattr__(self, "scored", torch.ones(len(self.texts), dtype=torch.bool))
        if self.causes is None:
            object.__setattr__(self, "causes", [[None] * self.components.shape[-1] for _ in self.texts])

    def __len__(self) -> int:
        return len(self.prompts)

    @property
    def group_size(self) -> int:
        """Number of completions per prompt."""
        return len(self.texts) // len(self.prompts)

    @property
    def policy_step(self) -> int:
        """Optimizer step of the policy that sampled the oldest group of this rank."""
        return min(self.policy_steps)

    @property
    def weights(self) -> Tensor:
        """Importance weights of the prompts, by which advantages are multiplied; shape `prompt`; float64."""
        return torch.tensor([prompt.weight for prompt in self.prompts], dtype=torch.double)

    @property
    def have_signal(self) -> Tensor:
        """True for groups whose rewards are not all equal; shape `prompt`.

        The others have no advantage, unless the estimator has another baseline than the rewards of the group.
        Rewards that differ by rounding only are equal, as they are to advantage estimators. Completions without a
        reward do not count.
        """
        return ~equal_up_to_rounding(self.by_prompt, self.rewards.dtype)

    @property
    def by_prompt(self) -> Tensor:
        """Rewards by group, the mean of the others in place of a missing one; shape `prompt group`."""
        known = filled(self.rewards, self.scored, self.group_size)
        return rearrange(known, "(prompt group) -> prompt group", group=self.group_size)

    def select(self, groups: Tensor, metrics: Mapping[str, float] | None = None) -> Groups:
        """Return the groups with the given indices, and replace the metrics unless None is given."""
        rows = (groups.unsqueeze(-1) * self.group_size + torch.arange(self.group_size)).flatten()
        return Groups(
            prompts=[self.prompts[group] for group in groups.tolist()],
            completions=self.completions.select(rows),
            texts=[self.texts[row] for row in rows.tolist()],
            components=self.components[rows],
            rewards=self.rewards[rows],
            response_mask=self.response_mask[rows],
            policy_steps=[self.policy_steps[group] for group in groups.tolist()],
            metrics=self.metrics if metrics is None else metrics,
            scored=self.scored[rows],
            causes=[self.causes[row] for row in rows.tolist()],
            step_rewards=None if self.step_rewards is None else self.step_rewards[rows],
        )

    @staticmethod
    def joined(parts: Sequence[Groups]) -> Groups:
        """Concatenate groups; of metrics with the same name the last one is kept."""
        completions = parts[0].completions.joined([part.completions for part in parts])
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
            policy_steps=[step for part in parts for step in part.policy_steps],
            metrics={name: value for part in parts for name, value in part.metrics.items()},
            scored=torch.cat([part.scored for part in parts]),
            causes=[causes for part in parts for causes in part.causes],
        )

    def sequences(self, temperature: float) -> Sequences:
        """Return prompts and completions as token ids for a forward pass."""
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
    """Samples and scores the groups of one rollout; it is the innermost stage below all sampling schemes.

    All data-parallel ranks must make the same calls in the same order, each for its own prompts.

    Args:
        sampler: generates the completions.
        prompts: prompt stream of this rank.
        rewards: scores the completions.
        truncated: rule for truncated completions.
        failed_verdicts: rule for completions on which a verdict failed.
        group_size: number of completions per prompt.
        temperature: sampling temperature.
        updates: number of updates that the rollout is split into.
        seeds: numbers from which sampling seeds are derived; different for each rollout, and for each rank unless the
            sampler numbers its completions over the ranks.
        trainer: trainer, for collectives over ranks.
        dataset: examples of the data set.

    Attributes:
        group_size: number of completions per prompt.
        updates: number of updates that the rollout is split into.
        rank: data-parallel rank.
        generator: random generator for the choices of schemes; seeded for the rollout and the rank, so that a resumed
            run repeats them.
    """

    def __init__(
        self,
        sampler: CompletionSampler,
        prompts: PromptStream,
        rewards: WeightedRewards,
        truncated: TruncationRule,
        failed_verdicts: FailedVerdictRule,
        group_size: int,
        temperature: float,
        updates: int,
        seeds: tuple[int, ...],
        trainer: Trainer,
        dataset: PromptDataset | Sequence[Example],
    ) -> None:
        self._sampler, self._prompts = sampler, prompts
        self._scorer = CompletionScorer(rewards, truncated, failed_verdicts, trainer)
        self.group_size, self.updates = group_size, updates
        self._temperature, self._seeds, self._trainer = temperature, seeds, trainer
        self.rank = data_parallel_rank(trainer)
        self._dataset = dataset
        self._calls, self._skipped_before = 0, prompts.skipped
        self._memories: dict[int, dict[str, Any]] = {}
        # Calls of the engine have the numbers from 1 in this place, or none. The seeds may be the same on all ranks.
        self.generator = torch.Generator().manual_seed(derived_seed(*seeds, 0, self.rank))

    def __call__(self, count: int) -> Groups:
        """Take the next prompts of this rank, and return their scored groups."""
        return self.complete(self._prompts.take(count))

    def begin(self, count: int, group_size: int) -> None:
        """Start sampling in the background the groups that the first call with the same sizes returns."""
        self._sampler.begin(self._prompts.peek(count), self._temperature, self._seed(), group_size)

    @contextmanager
    def sized(self, group_size: int) -> Iterator[None]:
        """Sample groups of another size within the context, also where stages below sample them."""
        usual, self.group_size = self.group_size, group_size
        try:
            yield
        finally:
            self.group_size = usual

    def complete(self, prompts: Sequence[Prompt], group_size: int | None = None) -> Groups:
        """Sample and score groups of any prompts, such as those that a scheme derives from the data set.

        Args:
            prompts: one or more prompts; every rank must pass the same number.
            group_size: number of completions per prompt; that of the rollout when None.
        """
        size = group_size or self.group_size
        sampled = self._sampler.sample(prompts, self._temperature, self._seed(), size)
        self._calls += 1
        examples = [prompt.example for prompt in prompts for _ in range(size)]
        return Groups(
            prompts=prompts,
            completions=sampled.completions,
            texts=sampled.texts,
            policy_steps=[sampled.policy_step] * len(prompts),
            metrics=sampled.metrics,
            **vars(self._scorer(sampled, examples)),
        )

    def verdict_metrics(self) -> dict[str, float]:
        """Return the metrics of all verdicts of the rollout so far, over all ranks; every rank must call it."""
        return verdict_metrics(self.over_ranks(self._scorer.verdicts))

    def prompt_of(self, example: Example) -> Prompt:
        """Tokenize the prompt of an example that a scheme has created."""
        return self._sampler.prompt_of(example)

    def example_of(self, index: int) -> Example:
        """Return the example of the data set with the index that a prompt has."""
        return self._dataset[index]

    def memory_of(self, scheme: object) -> dict[str, Any]:
        """Return what a scheme keeps between its calls within this rollout; empty at its first call."""
        return self._memories.setdefault(id(scheme), {})

    @property
    def trained_step(self) -> int:
        """Optimizer step of the policy that the rollout begins to train, which may be newer than what samples it."""
        return self._trainer.global_step

    @property
    def skipped(self) -> int:
        """Number of prompts of the order that schemes have skipped in this rollout so far, over all ranks."""
        return self._prompts.skipped - self._skipped_before

    def gathered(self, table: Tensor) -> Tensor:
        """Return the rows of all ranks, those of rank 0 first; every rank must pass the same number of rows."""
        return gathered_over_ranks(table, self._trainer)

    def gathered_values(self, value: Any) -> list[Any]:
        """Return a value of each rank, such as lists of different lengths, that of rank 0 first."""
        return gathered_values(value, self._trainer)

    def over_ranks(self, tally: Tally) -> Tally:
        """Reduce a tally over the data-parallel ranks; every rank must call it."""
        return tally.over_ranks(self._trainer)

    def _seed(self) -> int:
        # The first call has the same seed as in a rollout without a scheme.
        return derived_seed(*self._seeds, *([self._calls] if self._calls else []))
