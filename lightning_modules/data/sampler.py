"""Sampling of completions: tokenizer, rollout engine, texts, and sampling ahead in the background."""

from __future__ import annotations

import threading
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future
from dataclasses import dataclass
from functools import cached_property
from typing import Any, cast

import torch
from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from typing_extensions import override

from lightning_modules.distributed import broadcast_in_tensor_parallel_group, is_tensor_parallel_leader
from lightning_modules.model.limits import limits_of
from lightning_modules.model.policy import Policy
from lightning_modules.model.rope import depends_on_length, fix_rope
from lightning_modules.prompts import Example, Prompt, PromptFormat, PromptTokenizer
from lightning_modules.prompts.limits import SequenceLimits
from lightning_modules.rollouts import Completions, RolloutEngine, SamplingParameters
from lightning_modules.rollouts.returned import require_completions


@dataclass(frozen=True)
class Sampled:
    """Sampled completions, with the step of the policy that they were sampled from.

    Args:
        completions: completions returned by the engine.
        texts: texts of the completions, without the stop token that ended them.
        policy_step: optimizer step of the policy.
        metrics: metrics of the engine.
        objects: objects that rewards receive in place of the texts, such as images; None for the texts.
    """

    completions: Completions
    texts: list[str]
    policy_step: int
    metrics: Mapping[str, float]
    objects: Sequence[Any] | None = None

    @property
    def rewarded(self) -> Sequence[Any]:
        """Objects that rewards receive, one for each completion."""
        return self.texts if self.objects is None else self.objects


class CompletionSampler(ABC):
    """Samples completions from the current policy.

    Subclass requirements: implement all methods. Those of the same arguments and the same policy give the same
    completions.
    """

    @abstractmethod
    def prompt_of(self, example: Example, place: str = "a prompt") -> Prompt:
        """Return the prompt of an example; its place is for error messages."""

    @abstractmethod
    def sample(
        self,
        prompts: Sequence[Prompt],
        temperature: float,
        seed: int,
        samples_per_prompt: int = 1,
        top_p: float = 1.0,
    ) -> Sampled:
        """Sample completions, or wait for those that a `begin` with the same arguments has started.

        Args:
            prompts: prompts of this rank.
            temperature: sampling temperature; 0 means greedy decoding.
            seed: sampling seed.
            samples_per_prompt: number of completions per prompt; those of one prompt are adjacent.
            top_p: probability of the nucleus to sample from; 1.0 for all tokens.
        """

    @abstractmethod
    def begin(self, prompts: Sequence[Prompt], temperature: float, seed: int, samples_per_prompt: int) -> None:
        """Start sampling from the current policy in the background; the arguments are those of `sample`."""

    @abstractmethod
    def close(self) -> None:
        """Discard completions sampled ahead, and release all resources."""


class Sampler(CompletionSampler):
    """Samples completions from a language model, for training and evaluation.

    Args:
        engine: rollout engine that generates the tokens.
        policy: policy to sample from.
        trainer: trainer of the policy.
        max_completion_length: maximum number of tokens of a completion.
        prompt_format: format of the prompts.
        skip_special_tokens: whether to remove all special tokens from the texts, not only the stop token at the end.
        max_prompt_length: maximum number of tokens of a prompt; None for no limit.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        policy: Policy,
        trainer: Trainer,
        max_completion_length: int,
        prompt_format: PromptFormat = PromptFormat(),
        skip_special_tokens: bool = False,
        max_prompt_length: int | None = None,
    ) -> None:
        self._engine, self._policy, self._trainer = engine, policy, trainer
        self._max_completion_length, self._prompt_format = max_completion_length, prompt_format
        self._skip_special_tokens, self._max_prompt_length = skip_special_tokens, max_prompt_length
        self._prefetch = _Prefetch()

    @property
    def tokenizer(self) -> PromptTokenizer:
        """Tokenizer of prompts, which refuses those that the model or the engine cannot hold at present."""
        limit = self._engine.max_model_length  # servers tell theirs when they are given the policy
        self._tokenizer.limits = self._model_limits.shortened(limit, "`max_model_length` of the rollout engine is")
        return self._tokenizer

    @cached_property
    def _tokenizer(self) -> PromptTokenizer:
        lengths = self._max_completion_length, self._policy.stop_token_ids, self._max_prompt_length
        return PromptTokenizer(self._policy.tokenizer, self._prompt_format, self._model_limits, *lengths)

    @cached_property
    def _model_limits(self) -> SequenceLimits:
        return limits_of(self._policy.model)

    @override
    def prompt_of(self, example: Example, place: str = "a prompt") -> Prompt:
        """Tokenize the prompt of an example."""
        return self.tokenizer(example, place)

    def fix_lengths(self, **datasets: Sequence[Example] | None) -> None:
        """Fix positions that would depend on the longest row of a call, as under LongRoPE; see `fix_rope`.

        The longest row of the run is the limit of the engine, or else the longest prompt of the given data sets plus
        `max_completion_length`; all prompts are tokenized for it.

        Args:
            datasets: data sets by the arguments that they are passed as; None for none.
        """
        if depends_on_length(self._policy.model):
            longest = self._longest_row(datasets)
            for model in filter(None, (self._policy.model, self._policy.reference)):
                fix_rope(model, longest)

    def _longest_row(self, datasets: Mapping[str, Sequence[Example] | None]) -> int:
        longest = self._engine.max_model_length
        if longest is None:
            prompts = (self.tokenizer.prompts(name, dataset or ()) for name, dataset in datasets.items())
            longest = max(len(prompt.token_ids) for found in prompts for prompt in found) + self._max_completion_length
        return longest

    @override
    def sample(
        self,
        prompts: Sequence[Prompt],
        temperature: float,
        seed: int,
        samples_per_prompt: int = 1,
        top_p: float = 1.0,
    ) -> Sampled:
        request = self._request(prompts, temperature, seed, samples_per_prompt, top_p)
        generated = self._prefetch.take(request) or self._generation(request)()
        completions = cast(Completions, broadcast_in_tensor_parallel_group(generated.completions, self._trainer))
        return Sampled(completions, self._texts(completions), generated.policy_step, generated.metrics)

    @override
    def begin(self, prompts: Sequence[Prompt], temperature: float, seed: int, samples_per_prompt: int) -> None:
        request = self._request(prompts, temperature, seed, samples_per_prompt)
        self._prefetch.begin(request, self._generation(request))

    @override
    def close(self) -> None:
        self._prefetch.close()
        self._engine.close()

    def _request(
        self, prompts: Sequence[Prompt], temperature: float, seed: int, samples_per_prompt: int, top_p: float = 1.0
    ) -> _Request:
        parameters = SamplingParameters(
            max_completion_length=self._max_completion_length,
            stop_token_ids=self._policy.stop_token_ids,
            temperature=temperature,
            seed=seed,
            samples_per_prompt=samples_per_prompt,
            top_p=top_p,
        )
        return _Request([list(prompt.token_ids) for prompt in prompts], parameters)

    def _generation(self, request: _Request) -> Callable[[], _Generated]:
        """Load the current policy into the engine, and return a function that generates, possibly in a thread."""
        self._prefetch.wait()
        context, step = self._trainer.precision_plugin.forward_context, self._trainer.global_step
        with context():
            self._engine.load_policy(self._policy.model)
        # Only one rank of a tensor-parallel group calls an out-of-process engine; others may need all ranks.
        calls_engine = not self._engine.concurrent or is_tensor_parallel_leader(self._trainer)

        def generate() -> _Generated:
            with context():
                completions = self._engine.generate(request.prompts, request.parameters) if calls_engine else None
            if completions is not None:
                require_completions(completions, self._engine, len(request.prompts), request.parameters)
            return _Generated(completions, step, self._engine.metrics())

        return generate

    def _texts(self, completions: Completions) -> list[str]:
        """Return the texts of completions, without the stop token at the end of those that are not truncated."""
        lengths, stop = completions.mask.sum(dim=-1), torch.tensor(self._policy.stop_token_ids)
        last = completions.token_ids.gather(-1, (lengths - 1).clamp(min=0).unsqueeze(-1)).squeeze(-1)
        kept = lengths - (completions.finished & torch.isin(last, stop) & (lengths > 0)).long()
        rows = [ids[:length] for ids, length in zip(completions.token_ids, kept.tolist(), strict=True)]
        return self._policy.tokenizer.batch_decode(rows, skip_special_tokens=self._skip_special_tokens)


@dataclass(frozen=True)
class _Request:
    prompts: list[list[int]]
    parameters: SamplingParameters


@dataclass(frozen=True)
class _Generated:
    """Generated completions, None if another rank of the tensor-parallel group has them, and the policy step."""

    completions: Completions | None
    policy_step: int
    metrics: Mapping[str, float]


class _Prefetch:
    """At most one pending request to an out-of-process engine, processed in a background thread.

    The engine must not be used in the meantime: call `wait` before using it. The pending request is not part of a
    checkpoint; a resumed run samples again from the same prompts.
    """

    def __init__(self) -> None:
        self._pending: tuple[_Request, Future[_Generated]] | None = None
        self._latest: Future[_Generated] | None = None

    def begin(self, request: _Request, generate: Callable[[], _Generated]) -> None:
        """Start to process a request in the background."""
        if self._pending is not None:
            rank_zero_warn("completions that were sampled ahead were not used: other prompts were requested since.")
        self._latest = _in_thread(generate)
        self._pending = (request, self._latest)

    def take(self, request: _Request) -> _Generated | None:
        """Wait for the completions of the request, with errors of the engine; return None if it is not pending."""
        if self._pending is None or self._pending[0] != request:
            return None
        _, future = self._pending
        self._pending = None
        return future.result()

    def wait(self) -> None:
        """Wait until the engine is idle."""
        if self._latest is not None:
            self._latest.exception()

    def close(self) -> None:
        """Discard the pending request without waiting for its answer, which may take as long as the engine waits."""
        self._pending = None


def _in_thread(generate: Callable[[], _Generated]) -> Future[_Generated]:
    """Generate in a daemon thread, so that a server that does not answer does not keep the process alive."""
    future: Future[_Generated] = Future()

    def fulfil() -> None:
        try:
            future.set_result(generate())
        except BaseException as error:
            future.set_exception(error)

    threading.Thread(target=fulfil, name="rollout", daemon=True).start()
    return future
