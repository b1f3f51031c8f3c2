"""From prompts to completions: chat template, tokenizer, rollout engine, and the rollout that is sampled ahead."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass
from typing import cast

from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedTokenizerBase

from lightning_modules.distributed import broadcast_in_tensor_parallel_group, is_tensor_parallel_leader
from lightning_modules.model.policy import Policy
from lightning_modules.prompts import Example, Prompt
from lightning_modules.rollouts import Completions, RolloutEngine, SamplingParameters


@dataclass(frozen=True)
class Sampled:
    """Completions with the policy that they were sampled from.

    Args:
        completions: as the engine gave them.
        texts: of the completions, without special tokens.
        policy_step: optimizer steps that the policy had made.
        metrics: of the engine, to be logged.
    """

    completions: Completions
    texts: list[str]
    policy_step: int
    metrics: Mapping[str, float]


def tokenized(tokenizer: PreTrainedTokenizerBase, example: Example, chat_template: bool) -> list[int]:
    """Return the tokens of an example's prompt, wrapped by the tokenizer's chat template where that is asked for."""
    if chat_template:
        message = [{"role": "user", "content": example["prompt"]}]
        text = tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
        return list(tokenizer.encode(text, add_special_tokens=False))
    return list(tokenizer.encode(example["prompt"]))


class Sampler:
    """Samples completions from the policy, for training and for evaluation alike.

    Args:
        engine: generates the tokens.
        policy: is sampled from, as it is at the time.
        trainer: that trains it.
        max_completion_length: tokens after which a completion is cut off.
        chat_template: whether prompts are wrapped by the tokenizer's chat template, as a user's message.
    """

    def __init__(
        self,
        engine: RolloutEngine,
        policy: Policy,
        trainer: Trainer,
        max_completion_length: int,
        chat_template: bool = False,
    ) -> None:
        self._engine, self._policy, self._trainer = engine, policy, trainer
        self._max_completion_length, self._chat_template = max_completion_length, chat_template
        self._ahead = _Ahead()

    def prompt_of(self, example: Example) -> Prompt:
        """Return an example with the tokens of its prompt."""
        return Prompt(example, tuple(tokenized(self._policy.tokenizer, example, self._chat_template)))

    def sample(self, prompts: Sequence[Prompt], temperature: float, seed: int, samples_per_prompt: int = 1) -> Sampled:
        """Sample completions; those that `begin` was called for with the same arguments are waited for.

        Args:
            prompts: of this rank.
            temperature: of sampling; 0 takes the most likely token.
            seed: of sampling.
            samples_per_prompt: completions of each prompt, which stand next to each other.
        """
        request = self._request(prompts, temperature, seed, samples_per_prompt)
        generated = self._ahead.take(request) or self._generation(request)()
        completions = cast(Completions, broadcast_in_tensor_parallel_group(generated.completions, self._trainer))
        return Sampled(completions, self._texts(completions), generated.policy_step, generated.metrics)

    def begin(self, prompts: Sequence[Prompt], temperature: float, seed: int, samples_per_prompt: int) -> None:
        """Start to sample in the background, from the policy as it is now; takes what `sample` takes."""
        request = self._request(prompts, temperature, seed, samples_per_prompt)
        self._ahead.begin(request, self._generation(request))

    def close(self) -> None:
        """Forget what is under way, and free what the engine holds."""
        self._ahead.close()
        self._engine.close()

    def _request(self, prompts: Sequence[Prompt], temperature: float, seed: int, samples_per_prompt: int) -> _Request:
        parameters = SamplingParameters(
            max_completion_length=self._max_completion_length,
            stop_token_ids=self._policy.stop_token_ids,
            temperature=temperature,
            seed=seed,
            samples_per_prompt=samples_per_prompt,
        )
        return _Request([list(prompt.token_ids) for prompt in prompts], parameters)

    def _generation(self, request: _Request) -> Callable[[], _Generated]:
        """Return a call that generates from the policy as it is now, and may run in a thread."""
        self._ahead.settle()
        context, step = self._trainer.precision_plugin.forward_context, self._trainer.global_step
        with context():
            self._engine.load_policy(self._policy.model)
        # An out-of-process engine is asked by one rank of a tensor-parallel group; another may need them all.
        asks = not self._engine.concurrent or is_tensor_parallel_leader(self._trainer)

        def generate() -> _Generated:
            with context():
                completions = self._engine.generate(request.prompts, request.parameters) if asks else None
            return _Generated(completions, step, self._engine.metrics())

        return generate

    def _texts(self, completions: Completions) -> list[str]:
        lengths = completions.mask.sum(dim=-1).tolist()
        rows = [ids[:length] for ids, length in zip(completions.token_ids, lengths, strict=True)]
        return self._policy.tokenizer.batch_decode(rows, skip_special_tokens=True)


@dataclass(frozen=True)
class _Request:
    prompts: list[list[int]]
    parameters: SamplingParameters


@dataclass(frozen=True)
class _Generated:
    """Completions, None where another rank of the tensor-parallel group has them; with the policy's step."""

    completions: Completions | None
    policy_step: int
    metrics: Mapping[str, float]


class _Ahead:
    """At most one request that a thread has an out-of-process engine answer.

    The engine must not be used in the meantime, so whoever needs it calls `settle` first. What is under way is no part
    of a checkpoint: a resumed run samples it anew, from the same prompts.
    """

    def __init__(self) -> None:
        self._executor: ThreadPoolExecutor | None = None
        self._pending: tuple[_Request, Future[_Generated]] | None = None

    def begin(self, request: _Request, generate: Callable[[], _Generated]) -> None:
        """Answer a request in the background."""
        if self._pending is not None:
            rank_zero_warn("completions that were sampled ahead were not used: other prompts were asked for since.")
        if self._executor is None:
            self._executor = ThreadPoolExecutor(max_workers=1, thread_name_prefix="rollout")
        self._pending = (request, self._executor.submit(generate))

    def take(self, request: _Request) -> _Generated | None:
        """Return the answer once it is there; None if this request was not begun. Raises what generating raised."""
        if self._pending is None or self._pending[0] != request:
            return None
        _, future = self._pending
        self._pending = None
        return future.result()

    def settle(self) -> None:
        """Wait until the engine is free."""
        if self._pending is not None:
            self._pending[1].exception()

    def close(self) -> None:
        """Forget what is under way, and end the thread."""
        self._pending = None
        if self._executor is not None:
            self._executor.shutdown(wait=True, cancel_futures=True)
            self._executor = None
