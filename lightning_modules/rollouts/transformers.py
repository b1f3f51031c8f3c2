"""Rollouts by the model that is trained, in the training process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel
from typing_extensions import override

from lightning_modules.batch import left_padded
from lightning_modules.memory import EngineMemory, Entry, SamplingLoad, traced
from lightning_modules.memory.fake import cached_tensors, size_of
from lightning_modules.model.sharding import gathered
from lightning_modules.model.tensor_parallel import broadcast_sampled_tokens
from lightning_modules.progress import progress_bar
from lightning_modules.rollouts.base import Completions, RolloutEngine, SamplingParameters


class TransformersEngine(RolloutEngine):
    """Samples completions with the policy's own forward pass, so the log-probabilities are those of the trainer.

    A prompt is read once for all its completions, and completions that have ended leave the batch. The weights of a
    sharded policy are gathered on every rank while it samples; the ranks of a tensor-parallel group sample the same.

    Args:
        max_sequences: Maximum number of completions that are sampled at the same time; further prompts wait.

    Raises:
        ValueError: `max_sequences` is not positive.
    """

    def __init__(self, max_sequences: int = 256) -> None:
        if max_sequences < 1:
            raise ValueError(f"`max_sequences` is {max_sequences}; pass 1 or more completions.")
        self.max_sequences = max_sequences
        self._model: PreTrainedModel | None = None

    @override
    def load_policy(self, model: PreTrainedModel) -> None:
        self._model = model

    @override
    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingParameters) -> Completions:
        """Generate completions of prompts given as token ids.

        Raises:
            RuntimeError: no policy was loaded.
        """
        if self._model is None:
            raise RuntimeError("the engine has no policy; call `load_policy(model)` before `generate`.")
        training = self._model.training
        self._model.eval()
        try:
            with gathered(self._model):
                return self._generate(self._model, prompts, sampling)
        finally:
            self._model.train(training)

    def _generate(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], sampling: SamplingParameters
    ) -> Completions:
        generator = torch.Generator(device=model.device).manual_seed(sampling.seed)
        stride = self._prompts_at_once(sampling.samples_per_prompt)
        chunks = [
            _Decoding(model, prompts[start : start + stride], sampling, generator).run()
            for start in range(0, len(prompts), stride)
        ]
        columns = {
            name: pad_sequence([row for chunk in chunks for row in getattr(chunk, name)], batch_first=True)
            for name in ("token_ids", "mask", "log_probs")
        }
        return Completions(finished=torch.cat([chunk.finished for chunk in chunks]), **columns)

    def _prompts_at_once(self, samples_per_prompt: int) -> int:
        return max(self.max_sequences // samples_per_prompt, 1)

    @override
    def memory(self, load: SamplingLoad) -> EngineMemory:
        prompts = min(self._prompts_at_once(load.samples_per_prompt), load.prompts)
        cache, peak = _decoding_sizes(load, prompts)
        remedy = "lower `max_sequences` of the TransformersEngine"
        entries = (
            Entry("rollout engine, keys and values", cache, ("rollout",), remedy),
            Entry("rollout engine, besides", peak - cache, ("rollout",), remedy),
        )
        at_once = f"{prompts * load.samples_per_prompt:,} completions at a time"
        sentence = f"TransformersEngine: {at_once}, of {load.completions:,} that a device samples."
        return EngineMemory(entries, sentence, gathers_policy=True)


class _Decoding:
    """The completions of one chunk of prompts, token by token."""

    def __init__(
        self,
        model: PreTrainedModel,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParameters,
        generator: torch.Generator,
    ) -> None:
        self.model, self.prompts, self.sampling, self.generator = model, prompts, sampling, generator
        device = model.device
        batch = len(prompts) * sampling.samples_per_prompt
        self.stop = torch.tensor(sampling.stop_token_ids, device=device)
        self.token_ids = torch.zeros(batch, sampling.max_completion_length, dtype=torch.long, device=device)
        precision = torch.promote_types(model.dtype, torch.float32)
        self.log_probs = torch.zeros(batch, sampling.max_completion_length, dtype=precision, device=device)
        self.lengths = torch.zeros(batch, dtype=torch.long, device=device)
        self.finished = torch.zeros(batch, dtype=torch.bool, device=device)
        self.rows = torch.arange(batch, device=device)  # completions that are still in the model's batch

    def run(self) -> Completions:
        self.read_prompts()
        times = range(self.sampling.max_completion_length)
        # Seen only where a rollout takes its time.
        for time in progress_bar(iterable=times, desc="sampling", unit="token", leave=False, delay=2.0):
            tokens = self.sample(time)
            if not len(tokens) or time + 1 == self.sampling.max_completion_length:
                break
            self.read(tokens.unsqueeze(-1))
        return self._collect()

    def read_prompts(self) -> None:
        """Read each prompt once, for the logits of each completion's first token."""
        input_ids, mask = left_padded(self.prompts, self.model.device)
        attention_mask = mask.long()
        self.cache = DynamicCache(config=self.model.config)
        logits = self._forward(input_ids, attention_mask, (attention_mask.cumsum(dim=-1) - 1).clamp(min=0))
        repeats = self.sampling.samples_per_prompt
        self.cache.batch_repeat_interleave(repeats)
        self.logits = logits.repeat_interleave(repeats, dim=0)
        self.attention_mask = attention_mask.repeat_interleave(repeats, dim=0)
        self.position = attention_mask.sum(dim=-1, keepdim=True).repeat_interleave(repeats, dim=0)

    def sample(self, time: int) -> Tensor:
        """Sample the next token of each completion that still runs; return those that do not end it."""
        greedy = self.sampling.temperature == 0
        log_probs = torch.log_softmax(self.logits if greedy else self.logits / self.sampling.temperature, dim=-1)
        if greedy:
            tokens = log_probs.argmax(dim=-1)
        else:
            tokens = torch.multinomial(log_probs.exp(), 1, generator=self.generator).squeeze(-1)
        tokens = broadcast_sampled_tokens(tokens, self.model)
        self.token_ids[self.rows, time] = tokens
        self.log_probs[self.rows, time] = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        self.lengths[self.rows] = time + 1
        return self._without_ended(tokens)

    def read(self, tokens: Tensor) -> None:
        """Read the next tokens of each completion, for the logits of the one after them; shape `batch time`."""
        self.attention_mask = torch.cat([self.attention_mask, torch.ones_like(tokens)], dim=1)
        positions = self.position + torch.arange(tokens.shape[1], device=tokens.device)
        self.logits = self._forward(tokens, self.attention_mask, positions)
        self.position = self.position + tokens.shape[1]

    def _without_ended(self, tokens: Tensor) -> Tensor:
        """Drop completions that a stop token ended from the batch, and return the tokens of the others."""
        ended = torch.isin(tokens, self.stop)
        self.finished[self.rows] = ended
        if not ended.any():
            return tokens
        going = (~ended).nonzero().squeeze(-1)
        if len(going):
            self.cache.batch_select_indices(going)
        self.rows = self.rows[going]
        self.attention_mask, self.position = self.attention_mask[going], self.position[going]
        return tokens[going]

    def _forward(self, input_ids: Tensor, attention_mask: Tensor, positions: Tensor) -> Tensor:
        output = self.model(
            input_ids=input_ids,
            attention_mask=attention_mask,
            position_ids=positions,
            past_key_values=self.cache,
            use_cache=True,
            logits_to_keep=1,
        )
        return output.logits[:, -1].to(self.log_probs.dtype)

    def _collect(self) -> Completions:
        width = int(self.lengths.max())
        mask = torch.arange(width, device=self.lengths.device) < self.lengths.unsqueeze(-1)
        return Completions(
            token_ids=self.token_ids[:, :width].cpu(),
            mask=mask.cpu(),
            log_probs=self.log_probs[:, :width].cpu(),
            finished=self.finished.cpu(),
        )


def _decoding_sizes(load: SamplingLoad, prompts: int) -> tuple[int, int]:
    """Return the bytes of keys and values before the last pass, and the most bytes that decoding takes besides weights.

    The most is taken by the prompts, or by the last token of each completion. The tokens between are read at once, to
    be in the cache; the memory of that pass is not counted.
    """
    sampling = SamplingParameters(load.completion_length, (), samples_per_prompt=load.samples_per_prompt)
    with traced(load.description) as (model, memory):
        decoding = _Decoding(model, [[0] * load.prompt_length] * prompts, sampling, torch.Generator())
        decoding.read_prompts()
        tokens = decoding.sample(0).unsqueeze(-1)
        with_prompts = memory.taken_peak()
        if load.completion_length > 2:
            decoding.read(tokens.expand(-1, load.completion_length - 2))
        cache = size_of(cached_tensors(decoding.cache))
        memory.reset_peak()
        if load.completion_length > 1:
            decoding.read(tokens)
            decoding.sample(load.completion_length - 1)
        return cache, max(with_prompts, memory.peak)
