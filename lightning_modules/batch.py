"""One micro-batch of completions, ready for the policy's forward pass."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence

from aggregate_po import CorrectionWeights, PerToken, PolicyBatch, StepTotals


class RolloutBatch:
    """Completions with their prompts, and what the objective needs to know of them.

    Not a dataclass, because Lightning takes those apart to convert their numbers for some precisions, and refuses
    frozen ones such as `PolicyBatch`.

    Args:
        prompt_ids: each prompt once, padded on the left; shape `prompt prompt_time`.
        prompt_mask: True on prompt tokens; shape `prompt prompt_time`.
        prompt_of: index of each completion's prompt; shape `batch`.
        completion_ids: padded on the right; shape `batch time`.
        completion_mask: True on tokens of the completion, trained or not; shape `batch time`.
        policy: the part that the objective sees.
        temperature: of the sampling distribution.
        closes_update: whether this is the last micro-batch of an optimiser step.
        metrics: figures of the rollout it was cut from.
    """

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
        metrics: Mapping[str, float] | None = None,
    ) -> None:
        self.prompt_ids = prompt_ids
        self.prompt_mask = prompt_mask
        self.prompt_of = prompt_of
        self.completion_ids = completion_ids
        self.completion_mask = completion_mask
        self.policy = policy
        self.temperature = temperature
        self.closes_update = closes_update
        self.metrics = {} if metrics is None else metrics

    def replace(self, **changes: Any) -> RolloutBatch:
        """A copy with some fields changed."""
        return RolloutBatch(**{**vars(self), **changes})

    def to(self, *args: Any, **kwargs: Any) -> RolloutBatch:
        """A copy whose tensors were moved as by `Tensor.to`."""
        moved: dict[str, Any] = {
            name: value.to(*args, **kwargs)
            for name, value in vars(self).items()
            if isinstance(value, (Tensor, PolicyBatch))
        }
        return self.replace(**moved)

    def select(self, rows: Tensor) -> RolloutBatch:
        """The given completions, with the prompts that they need and padding that none of them needs cut off."""
        prompts, prompt_of = self.prompt_of[rows].unique(return_inverse=True)
        start = int(self.prompt_mask[prompts].sum(dim=-1).max())
        time = int(self.completion_mask[rows].sum(dim=-1).max())
        return self.replace(
            prompt_ids=self.prompt_ids[prompts, -start:],
            prompt_mask=self.prompt_mask[prompts, -start:],
            prompt_of=prompt_of,
            completion_ids=self.completion_ids[rows, :time],
            completion_mask=self.completion_mask[rows, :time],
            policy=self.policy.select(rows, time),
        )

    def state_dict(self) -> dict[str, Any]:
        """Plain tensors, numbers and dictionaries, for a checkpoint."""
        nested = {name: dict(vars(getattr(self.policy, name))) for name in ("totals", "correction")}
        policy = {**vars(self.policy), **nested}
        return {**vars(self), "policy": policy, "metrics": dict(self.metrics)}

    @classmethod
    def from_state_dict(cls, state: dict[str, Any]) -> RolloutBatch:
        """The batch that `state_dict` was taken of."""
        policy = {
            **state["policy"],
            "totals": StepTotals(**state["policy"]["totals"]),
            "correction": CorrectionWeights(**state["policy"]["correction"]),
        }
        return cls(**{**state, "policy": PolicyBatch(**policy)})


@dataclass(frozen=True)
class Extent:
    """How much a micro-batch holds.

    Args:
        prompts: number of different ones.
        longest_prompt: tokens.
        completions: number of them.
        longest: tokens of the longest completion.
        tokens: of all completions.
        prompt_tokens: of all prompts, each as often as it has completions.
    """

    prompts: int = 0
    longest_prompt: int = 0
    completions: int = 0
    longest: int = 0
    tokens: int = 0
    prompt_tokens: int = 0


def left_padded(prompts: Sequence[Sequence[int]], device: torch.device | None = None) -> tuple[Tensor, Tensor]:
    """Token ids padded on the left with 0, and the mask that is True on tokens; shape `prompt prompt_time`."""
    reversed_rows = [torch.tensor(prompt, dtype=torch.long).flip(0) for prompt in prompts]
    token_ids = pad_sequence(reversed_rows, batch_first=True).flip(1)
    lengths = torch.tensor([len(prompt) for prompt in prompts]).unsqueeze(-1)
    width = token_ids.shape[1]
    mask = torch.arange(width) >= width - lengths
    return token_ids.to(device), mask.to(device)
