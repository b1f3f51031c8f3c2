"""Data passed to the policy: token sequences, micro-batches of a rollout, and evaluated completions."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, NamedTuple, Self

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from typing_extensions import override

from aggregate_po import PerCompletion, PerToken, PolicyBatch
from lightning_modules.micro_batch import MicroBatch, ModelInputs
from lightning_modules.prompts import Example
from lightning_modules.rewards.verdict import Cause
from lightning_modules.tally import Tally


class Sequences(ModelInputs):
    """Completions with their prompts, as token ids for a forward pass.

    Args:
        prompt_ids: token ids of the distinct prompts, padded on the left; shape `prompt prompt_time`.
        prompt_mask: True on prompt tokens; shape `prompt prompt_time`.
        prompt_of: index of each completion's prompt; shape `batch`.
        completion_ids: token ids of the completions, padded on the right; shape `batch time`.
        completion_mask: True on completion tokens, trained or not; shape `batch time`.
        temperature: temperature of the sampling distribution.
    """

    def __init__(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        prompt_of: Tensor,
        completion_ids: Tensor,
        completion_mask: PerToken,
        temperature: float = 1.0,
    ) -> None:
        self.prompt_ids = prompt_ids
        self.prompt_mask = prompt_mask
        self.prompt_of = prompt_of
        self.completion_ids = completion_ids
        self.completion_mask = completion_mask
        self.temperature = temperature

    @property
    @override
    def prompt_lengths(self) -> Tensor:
        return self.prompt_mask.sum(dim=-1)

    @override
    def select(self, rows: Tensor) -> Self:
        """Return the selected completions with their prompts, trimmed to the longest of each."""
        prompts, prompt_of = self.prompt_of[rows].unique(return_inverse=True)
        start = int(self.prompt_mask[prompts].sum(dim=-1).max())
        time = int(self.completion_mask[rows].sum(dim=-1).max())
        return self.replace(
            prompt_ids=self.prompt_ids[prompts, -start:],
            prompt_mask=self.prompt_mask[prompts, -start:],
            prompt_of=prompt_of,
            completion_ids=self.completion_ids[rows, :time],
            completion_mask=self.completion_mask[rows, :time],
            **self._selected(rows, time),
        )

    @override
    def micro_batch(self, **fields: Any) -> RolloutBatch:
        return RolloutBatch(**vars(self), **fields)


class RolloutBatch(MicroBatch, Sequences):
    """A micro-batch of completions: token ids for the model, and a `PolicyBatch` for the objective.

    Args:
        prompt_ids: see `Sequences`.
        prompt_mask: see `Sequences`.
        prompt_of: see `Sequences`.
        completion_ids: see `Sequences`.
        completion_mask: see `Sequences`.
        policy: see `MicroBatch`.
        temperature: see `Sequences`.
        closes_update: see `MicroBatch`.
        samples: see `MicroBatch`.
        rewards: see `MicroBatch`.
    """

    _padded_left = frozenset({"prompt_ids", "prompt_mask"})

    def __init__(
        self,
        prompt_ids: Tensor,
        prompt_mask: Tensor,
        prompt_of: Tensor,
        completion_ids: Tensor,
        completion_mask: PerToken,
        policy: PolicyBatch,
        temperature: float = 1.0,
        closes_update: bool = True,
        samples: PerCompletion | None = None,
        rewards: PerCompletion | None = None,
    ) -> None:
        super().__init__(prompt_ids, prompt_mask, prompt_of, completion_ids, completion_mask, temperature)
        self.policy = policy
        self.closes_update = closes_update
        self.samples = samples
        self.rewards = rewards

    @classmethod
    @override
    def _prompts_in(cls, state: dict[str, Any]) -> int:
        return len(state["prompt_ids"])


class Extent(NamedTuple):
    """Counts and lengths of a micro-batch, from which a layout computes its size in tokens.

    Attributes:
        prompts: number of distinct prompts.
        longest_prompt: number of tokens of the longest prompt.
        completions: number of completions.
        longest: number of tokens of the longest completion.
        tokens: total number of completion tokens.
        prompt_tokens: total number of prompt tokens, each prompt counted once per completion.
    """

    prompts: int = 0
    longest_prompt: int = 0
    completions: int = 0
    longest: int = 0
    tokens: int = 0
    prompt_tokens: int = 0


class Evaluation:
    """Completions of the held-out prompts of one data-parallel shard, with their rewards.

    It is not a dataclass, for the reason that a `ModelInputs` is none.

    Args:
        name: way of generating, "sampled" or "greedy".
        examples: example of each completion.
        completions: texts, those of one prompt next to each other.
        rewards: total reward of each completion; shape `batch`.
        lengths: number of tokens of each completion, the stop token included; shape `batch`.
        single_rewards: terms of the weighted sum `rewards`, by name; none if there is only one reward.
        causes: cause of each failed verdict, which counts as a reward of 0, and None where there is a reward;
            `causes[completion][component]`; empty if no verdict failed.
        held_out_set: name of the held-out set; empty if there is only one, without a name.
    """

    def __init__(
        self,
        name: str,
        examples: list[Example],
        completions: list[str],
        rewards: PerCompletion,
        lengths: PerCompletion,
        single_rewards: Mapping[str, PerCompletion] | None = None,
        causes: Sequence[Sequence[Cause | None]] = (),
        held_out_set: str = "",
    ) -> None:
        self.name, self.examples, self.completions = name, examples, completions
        self.rewards, self.lengths = rewards, lengths
        self.single_rewards = single_rewards or {}
        self.causes, self.held_out_set = causes, held_out_set

    @property
    def failed(self) -> PerCompletion:
        """True for completions of which a verdict failed; shape `batch`."""
        if not self.causes:
            return torch.zeros(len(self.completions), dtype=torch.bool)
        return torch.tensor([any(causes) for causes in self.causes], dtype=torch.bool)

    @property
    def metrics(self) -> dict[str, PerCompletion]:
        """Metrics of each completion, by the name under which their means are logged."""
        values = {
            _REWARD: self.rewards,
            **{f"rewards/{reward}_": values for reward, values in self.single_rewards.items()},
            "mean_length_": self.lengths.float(),
            _FAILED: self.failed.double(),
        }
        return {self._named(metric): value for metric, value in values.items()}

    def _named(self, metric: str) -> str:
        return f"{self.held_out_set}/{metric}{self.name}" if self.held_out_set else f"{metric}{self.name}"

    @property
    def tally(self) -> Tally:
        """Sum of each metric over the completions, and their number; and the number of rewards other than 0 and 1."""
        count = torch.tensor(len(self.completions))
        sums = {name: values.double().sum() for name, values in self.metrics.items()}
        others = ((self.rewards != 0) & (self.rewards != 1)).sum()
        counts = {f"{_COUNT}{name}": count for name in sums} | {f"{_OTHERS}{self._named(_REWARD)}": others}
        return Tally.of(**sums, **counts)


def evaluation_metrics(tally: Tally) -> dict[str, float]:
    """Return the mean of each metric, from the sum of the tallies of all evaluations.

    Where every reward is 0 or 1, their mean is `pass@1_...` too, the rate of right completions. A failed verdict counts
    as 0; `failed_verdicts_...`, the fraction of completions with one, is left out where it is 0.
    """
    others = {name: count for name, count in tally.sums.items() if name.startswith(_OTHERS)}
    totals = {name: total for name, total in tally.sums.items() if not name.startswith((_COUNT, _OTHERS))}
    means = {name: total / tally.sums[f"{_COUNT}{name}"] for name, total in totals.items()}
    means = {name: mean for name, mean in means.items() if mean or _FAILED not in name}
    judged = [name.removeprefix(_OTHERS) for name, count in others.items() if not count]
    return {"pass@1_".join(name.rsplit(_REWARD, 1)): means[name] for name in judged} | means


_REWARD, _FAILED = "reward_", "failed_verdicts_"
_COUNT, _OTHERS = "count of ", "rewards other than 0 and 1, "


def left_padded(prompts: Sequence[Sequence[int]], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Return token ids padded on the left with 0, and the mask that is True on tokens; shape `prompt prompt_time`."""
    reversed_rows = [torch.tensor(prompt, dtype=torch.long).flip(0) for prompt in prompts]
    token_ids = pad_sequence(reversed_rows, batch_first=True).flip(1)
    lengths = torch.tensor([len(prompt) for prompt in prompts]).unsqueeze(-1)
    width = token_ids.shape[1]
    mask = torch.arange(width) >= width - lengths
    return token_ids.to(device), mask.to(device)
