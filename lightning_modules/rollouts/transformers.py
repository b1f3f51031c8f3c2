"""Rollouts by the model that is trained, in the training process."""

from __future__ import annotations

from collections.abc import Sequence
from functools import partial
from weakref import WeakKeyDictionary

import torch
from lightning.pytorch.utilities import rank_zero_warn
from torch import nn
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel
from typing_extensions import override

from lightning_modules.memory import EngineMemory, Entry, SamplingLoad, traced
from lightning_modules.memory.fake import size_of
from lightning_modules.model.autocast import weights_cast_once
from lightning_modules.model.outputs import logits_only
from lightning_modules.model.probe import Deviation, Probes
from lightning_modules.model.rope import fix_rope
from lightning_modules.model.sharding import gathered
from lightning_modules.rollouts.base import Completions, RolloutEngine, SamplingParameters
from lightning_modules.rollouts.decoding import Decoding
from lightning_modules.rollouts.readers import ROOM, CachedReader, TokenReader
from lightning_modules.rollouts.readings import Reading, readings_of


class TransformersEngine(RolloutEngine):
    """Samples completions with the policy's own forward pass, so the log-probabilities are those of the trainer.

    A prompt is read once for all its completions, and completions that have ended leave the batch. The weights of a
    sharded policy are gathered on every rank while it samples; the ranks of a tensor-parallel group sample the same.

    A policy is tried out when it is first loaded: the log-probabilities of sampling must be those of a plain forward
    pass, up to rounding. Where the model does not mask padding, prompts of the same length are read together; where it
    has no cache that serves, completions are sampled without one.

    Args:
        max_sequences: Maximum number of completions that are sampled at the same time; further prompts wait.

    Raises:
        ValueError: `max_sequences` is not positive; by `load_policy`, if the model cannot be sampled from.
    """

    def __init__(self, max_sequences: int = 256) -> None:
        if max_sequences < 1:
            raise ValueError(f"`max_sequences` is {max_sequences}; pass 1 or more completions.")
        self.max_sequences = max_sequences
        self._model: PreTrainedModel | None = None
        self._reading = Reading(CachedReader)
        self._readings: WeakKeyDictionary[nn.Module, Reading] = WeakKeyDictionary()  # by policy tried out

    @override
    def load_policy(self, model: PreTrainedModel) -> None:
        if model not in self._readings:
            self.try_policy(model)
        self._model, self._reading = model, self._readings[model]

    @override
    @torch.no_grad()
    def try_policy(self, model: PreTrainedModel) -> None:
        fix_rope(model)
        with gathered(model), logits_only(model):
            self._reading = self._readings[model] = _serving_reading(model)

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
            with gathered(self._model), logits_only(self._model), weights_cast_once(self._model):
                return self._generate(self._model, prompts, sampling)
        finally:
            self._model.train(training)

    def _generate(
        self, model: PreTrainedModel, prompts: Sequence[Sequence[int]], sampling: SamplingParameters
    ) -> Completions:
        generator = torch.Generator(device=model.device).manual_seed(sampling.seed)
        stride = self._prompts_at_once(sampling.samples_per_prompt)
        batches = self._reading.batches(prompts, stride)
        chunks = [
            Decoding(model, self._reading.reader(model), [prompts[i] for i in batch], sampling, generator).run()
            for batch in batches
        ]
        # Each prompt's completions, in the order of the prompts.
        order = torch.tensor([index for batch in batches for index in batch]).argsort()
        samples = torch.arange(sampling.samples_per_prompt)
        rows = (order.unsqueeze(-1) * sampling.samples_per_prompt + samples).flatten()
        columns = {
            name: pad_sequence([row for chunk in chunks for row in getattr(chunk, name)], batch_first=True)[rows]
            for name in ("token_ids", "mask", "log_probs")
        }
        return Completions(finished=torch.cat([chunk.finished for chunk in chunks])[rows], **columns)

    def _prompts_at_once(self, samples_per_prompt: int) -> int:
        return max(self.max_sequences // samples_per_prompt, 1)

    @override
    def memory(self, load: SamplingLoad) -> EngineMemory:
        prompts = min(self._prompts_at_once(load.samples_per_prompt), load.prompts)
        cache, peak = _decoding_sizes(load, prompts, self._reading.reader.launched())
        remedy = "lower `max_sequences` of the TransformersEngine"
        entries = (
            Entry("rollout engine, keys and values", cache, ("rollout",), remedy),
            Entry("rollout engine, besides", peak - cache, ("rollout",), remedy),
        )
        at_once = f"{prompts * load.samples_per_prompt:,} completions at a time"
        sentence = f"TransformersEngine: {at_once}, of {load.completions:,} that a device samples."
        return EngineMemory(entries, sentence, gathers_policy=True)


def _serving_reading(model: PreTrainedModel) -> Reading:
    """Return the fastest way of reading that gives the log-probabilities of a plain forward pass.

    Raises:
        ValueError: none does.
    """
    probe, name, readings = Probes(model), type(model).__name__, readings_of(model)
    deviations: list[Deviation] = []
    for number, reading in enumerate(readings):
        deviations.append(probe.of_log_probs(partial(reading.log_probs, model, probe.sequences)))
        if not deviations[-1].passes:
            continue
        if number > 0:
            rank_zero_warn(
                f"TransformersEngine samples from {name} {reading.described}, which is slower: sampling "
                f"{readings[number - 1].described} {deviations[-2]}. vLLM may be faster."
            )
        return reading
    raise ValueError(
        f"`rollouts` is TransformersEngine, which cannot sample from {name}: its cache {deviations[-2]}, and sampling "
        f"without it {deviations[-1]}; pass a causal model, or VLLM as `data.rollouts`."
    )


def _decoding_sizes(load: SamplingLoad, prompts: int, kind: type[TokenReader]) -> tuple[int, int]:
    """Return the bytes of keys and values before the last pass, and the most bytes that decoding takes besides weights.

    The most is taken by the prompts, by the last token that makes the cache grow, while a layer has its old keys and
    values too, or by the last token of each completion. The tokens between are read at once, to be in the cache; the
    memory of those passes is not counted.
    """
    sampling = SamplingParameters(load.completion_length, (), samples_per_prompt=load.samples_per_prompt)
    with traced(load.description) as (model, memory), weights_cast_once(model):
        reader = kind(model)
        decoding = Decoding(model, reader, [[0] * load.prompt_length] * prompts, sampling, torch.Generator())
        decoding.read_prompts()
        tokens = decoding.sample(0).unsqueeze(-1)
        with_prompts = memory.taken_peak()
        reads = load.completion_length - 1
        growing = [read for read in range(1, reads) if read == 1 or (load.prompt_length + read - 1) % ROOM == 0]
        grown = 0
        if growing:
            if growing[-1] > 1:
                decoding.read(tokens.expand(-1, growing[-1] - 1))
            memory.reset_peak()
            decoding.read(tokens)
            grown = memory.taken_peak()
            if reads - 1 > growing[-1]:
                decoding.read(tokens.expand(-1, reads - 1 - growing[-1]))
        cache = size_of(reader.kept())
        memory.reset_peak()
        if load.completion_length > 1:
            decoding.read(tokens)
            decoding.sample(load.completion_length - 1)
        return cache, max(with_prompts, grown, memory.peak)
