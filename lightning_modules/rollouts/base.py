"""The interface of rollout engines: sampling parameters in, completions out."""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Annotated, Self

import torch
from torch import Tensor
from torch.nn.functional import pad
from transformers import PreTrainedModel

from aggregate_po import PerCompletion, PerToken
from lightning_modules.memory import EngineMemory, SamplingLoad

TokenIds = Annotated[Tensor, "batch time"]


@dataclass(frozen=True)
class SamplingParameters:
    """Parameters of sampling.

    Args:
        max_completion_length: tokens after which a completion is truncated.
        stop_token_ids: tokens that end a completion; they belong to it.
        temperature: divides the logits; 0 takes the most likely token.
        seed: random seed; the same seed, prompts and policy give the same completions.
        samples_per_prompt: completions of each prompt.
        top_p: each token is sampled from the nucleus, the fewest most likely tokens whose probabilities, temperature
            applied, add up to this or more; 1.0 for all tokens. Training samples with 1.0: log-probabilities of a
            nucleus are not those of the policy.
    """

    max_completion_length: int
    stop_token_ids: tuple[int, ...]
    temperature: float = 1.0
    seed: int = 0
    samples_per_prompt: int = 1
    top_p: float = 1.0


@dataclass(frozen=True)
class Completions:
    """Completions of several prompts, those of one prompt next to each other, on the CPU.

    Args:
        token_ids: padded on the right; shape `batch time`.
        mask: True on the completion's tokens, its stop token included; shape `batch time`.
        log_probs: log-probabilities of the tokens under the distribution they were sampled from, temperature applied;
            in any precision, while training computes at least in float32; shape `batch time`; nats.
        finished: False if the completion was truncated; shape `batch`.
    """

    token_ids: TokenIds
    mask: PerToken
    log_probs: PerToken
    finished: PerCompletion

    @property
    def trainable(self) -> PerToken:
        """True on tokens that can be trained, which are all tokens of a completion; shape `batch time`."""
        return self.mask

    def select(self, rows: Tensor) -> Self:
        """Return the completions at the indices `rows`; shape `batch`."""
        return type(self)(**{name: value[rows] for name, value in vars(self).items()})

    @classmethod
    def joined(cls, parts: Sequence[Self]) -> Self:
        """Return the completions of all parts, one part after another, padded to the longest."""
        width = max(part.mask.shape[1] for part in parts)
        columns = {
            name: torch.cat([pad(getattr(part, name), (0, width - part.mask.shape[1])) for part in parts])
            for name in ("token_ids", "mask", "log_probs")
        }
        return cls(finished=torch.cat([part.finished for part in parts]), **columns)


class RolloutEngine(ABC):
    """Generates completions from the policy.

    Subclass requirements:

    - Implement `load_policy`. From then on, until the next call, `generate` samples from the policy as it is at this
      moment. Every rank calls it, and weights may be sharded: an engine with a copy of its own takes them from
      `policy_weights(model)`, which every rank must go through to the end.
    - Implement `generate`. Return `samples_per_prompt` completions of each prompt, next to each other, in the order of
      the prompts, on the CPU. Each has at least one token, and is padded on the right; its stop token belongs to it.
      The same prompts, seed and policy should give the same completions. `temperature` 0 is greedy decoding.
    - Return log-probabilities of the distribution that was sampled from, temperature applied. That rules out top-k.
      NaN where there is none; training then needs `old_log_probs: trainer`. `top_p` is below 1 in an evaluation only,
      which ignores the log-probabilities.
    - Set `concurrent` to True only if `generate` may run in a thread while the policy is trained, because the engine
      is in another process, with weights of its own. `data.overlap` needs it.
    - May override `try_policy`, so that `aggregate-po plan` refuses the models that `load_policy` refuses.
    - May override `memory`, so that `aggregate-po plan` counts the memory of the engine.
    - May override `metrics`, which are logged with each rollout and must be the same on all ranks.
    - May override `close` if the engine holds resources. `load_policy` may be called again afterwards.

    Attributes:
        concurrent: whether `generate` may run in a thread while the policy is trained.
        max_model_length: tokens of a prompt and its completion, where the engine limits them; it may become known by
            `load_policy`.
    """

    concurrent: bool = False
    max_model_length: int | None = None

    @abstractmethod
    def load_policy(self, model: PreTrainedModel) -> None:
        """Set the policy to sample from, with its current weights, until the next call."""

    @abstractmethod
    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingParameters) -> Completions:
        """Generate completions of prompts that are given as token ids."""

    def try_policy(self, model: PreTrainedModel) -> None:  # noqa: B027, most engines take any model
        """Try out whether the engine can sample from a model; `aggregate-po plan` calls it with a small copy.

        Raises:
            ValueError: it cannot.
        """

    def metrics(self) -> dict[str, float]:
        """Return metrics that are logged with each rollout, by name; none by default."""
        return {}

    def memory(self, load: SamplingLoad) -> EngineMemory:
        """Return the memory of the engine on each device that trains; not counted unless a subclass says so.

        It is called without a policy, by `aggregate-po plan`, on a machine that need not be the one that trains.
        """
        return EngineMemory(sentence=f"{type(self).__name__}: unknown to a plan, so not counted.")

    def close(self) -> None:  # noqa: B027, most engines hold nothing
        """Free the resources of the engine at the end of training; `load_policy` can be called again."""
