"""Rollouts by the model that is trained, in the training process."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import DynamicCache, PreTrainedModel

from lightning_modules.batch import left_padded
from lightning_modules.model.sharding import gathered
from lightning_modules.model.tensor_parallel import broadcast_sampled_tokens as agreed_draw
from lightning_modules.progress import progress_bar
from lightning_modules.rollouts.base import Completions, RolloutEngine, SamplingParameters


class TransformersEngine(RolloutEngine):
    """Draws completions with the policy's own forward pass, so the log-probabilities are those of the trainer.

    A prompt is read once for all its completions, and completions that have ended leave the batch. The weights of a
    sharded policy are gathered on every rank while it draws; ranks that divide its layers draw the same together.

    Args:
        max_sequences: completions drawn at the same time; more prompts wait for their turn.

    Raises:
        ValueError: `max_sequences` is not positive.
    """

    def __init__(self, max_sequences: int = 256) -> None:
        if max_sequences < 1:
            raise ValueError(f"`max_sequences` is {max_sequences}; pass 1 or more completions.")
        self.max_sequences = max_sequences
        self._model: PreTrainedModel | None = None

    def load_policy(self, model: PreTrainedModel) -> None:
        """See `RolloutEngine`."""
        self._model = model

    @torch.no_grad()
    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingParameters) -> Completions:
        """See `RolloutEngine`.

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
        stride = max(self.max_sequences // sampling.samples_per_prompt, 1)
        chunks = [
            _Decoding(model, prompts[start : start + stride], sampling, generator).run()
            for start in range(0, len(prompts), stride)
        ]
        columns = {
            name: pad_sequence([row for chunk in chunks for row in getattr(chunk, name)], batch_first=True)
            for name in ("token_ids", "mask", "log_probs")
        }
        return Completions(finished=torch.cat([chunk.finished for chunk in chunks]), **columns)


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
        self.rows = torch.arange(batch, device=device)  # the completions that still stand in the model's batch

    def run(self) -> Completions:
        logits, attention_mask, positions = self._prefill()
        times = range(self.sampling.max_completion_length)
        # Seen only where a rollout takes its time.
        for time in progress_bar(iterable=times, desc="sampling", unit="token", leave=False, delay=2.0):
            tokens = self._draw(logits, time)
            ended = torch.isin(tokens, self.stop)
            self.finished[self.rows] = ended
            if ended.any():
                going = (~ended).nonzero().squeeze(-1)
                if not len(going):
                    break
                self.cache.batch_select_indices(going)
                self.rows, tokens = self.rows[going], tokens[going]
                attention_mask, positions = attention_mask[going], positions[going]
            if time + 1 == self.sampling.max_completion_length:
                break
            attention_mask = torch.cat([attention_mask, attention_mask.new_ones(len(tokens), 1)], dim=1)
            logits = self._forward(tokens.unsqueeze(-1), attention_mask, positions + time)
        return self._collect()

    def _prefill(self) -> tuple[Tensor, Tensor, Tensor]:
        """Read each prompt once; logits, attention mask and next position of each completion."""
        input_ids, mask = left_padded(self.prompts, self.model.device)
        attention_mask = mask.long()
        positions = (attention_mask.cumsum(dim=-1) - 1).clamp(min=0)
        self.cache = DynamicCache(config=self.model.config)
        logits = self._forward(input_ids, attention_mask, positions)
        repeats = self.sampling.samples_per_prompt
        self.cache.batch_repeat_interleave(repeats)
        return (
            logits.repeat_interleave(repeats, dim=0),
            attention_mask.repeat_interleave(repeats, dim=0),
            attention_mask.sum(dim=-1, keepdim=True).repeat_interleave(repeats, dim=0),
        )

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

    def _draw(self, logits: Tensor, time: int) -> Tensor:
        """Draw the next token of each completion that still runs, and note it."""
        greedy = self.sampling.temperature == 0
        log_probs = torch.log_softmax(logits if greedy else logits / self.sampling.temperature, dim=-1)
        if greedy:
            tokens = log_probs.argmax(dim=-1)
        else:
            tokens = torch.multinomial(log_probs.exp(), 1, generator=self.generator).squeeze(-1)
        tokens = agreed_draw(tokens, self.model)
        self.token_ids[self.rows, time] = tokens
        self.log_probs[self.rows, time] = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        self.lengths[self.rows] = time + 1
        return tokens

    def _collect(self) -> Completions:
        width = int(self.lengths.max())
        mask = torch.arange(width, device=self.lengths.device) < self.lengths.unsqueeze(-1)
        return Completions(
            token_ids=self.token_ids[:, :width].cpu(),
            mask=mask.cpu(),
            log_probs=self.log_probs[:, :width].cpu(),
            finished=self.finished.cpu(),
        )
