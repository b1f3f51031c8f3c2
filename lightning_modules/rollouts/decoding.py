"""Token-by-token sampling of completions with the policy's own forward pass."""

from __future__ import annotations

from collections.abc import Sequence

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_modules.model.tensor_parallel import broadcast_sampled_tokens
from lightning_modules.progress import progress_bar
from lightning_modules.rollouts.base import Completions, SamplingParameters
from lightning_modules.rollouts.readers import TokenReader


class Decoding:
    """Completions of some prompts, sampled token by token.

    Args:
        model: the policy.
        reader: reader of its tokens.
        prompts: token ids of the prompts.
        sampling: parameters of sampling.
        generator: generator of the sampled tokens.
    """

    def __init__(
        self,
        model: PreTrainedModel,
        reader: TokenReader,
        prompts: Sequence[Sequence[int]],
        sampling: SamplingParameters,
        generator: torch.Generator,
    ) -> None:
        self.model, self.reader, self.prompts, self.sampling = model, reader, prompts, sampling
        self.generator = generator
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
        """Sample until every completion has ended or has its full length."""
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
        logits, repeats = self.reader.read_prompts(self.prompts), self.sampling.samples_per_prompt
        rows = torch.arange(len(self.prompts), device=logits.device).repeat_interleave(repeats)
        self.reader.select(rows)
        self.logits = logits[rows].to(self.log_probs.dtype)

    def sample(self, time: int) -> Tensor:
        """Sample the next token of each completion that still runs; return those that do not end it."""
        greedy = self.sampling.temperature == 0
        log_probs = torch.log_softmax(self.logits if greedy else self.logits / self.sampling.temperature, dim=-1)
        if not greedy and self.sampling.top_p < 1:
            log_probs = nucleus(log_probs, self.sampling.top_p)
        tokens = log_probs.argmax(dim=-1) if greedy else sampled(log_probs, self.generator)
        tokens = broadcast_sampled_tokens(tokens, self.model)
        self.token_ids[self.rows, time] = tokens
        self.log_probs[self.rows, time] = log_probs.gather(-1, tokens.unsqueeze(-1)).squeeze(-1)
        self.lengths[self.rows] = time + 1
        return self._without_ended(tokens)

    def read(self, tokens: Tensor) -> None:
        """Read the next tokens of each completion, for the logits of the one after them; shape `batch time`."""
        self.logits = self.reader.read(tokens).to(self.log_probs.dtype)

    def _without_ended(self, tokens: Tensor) -> Tensor:
        """Drop completions that a stop token ended from the batch, and return the tokens of the others."""
        ended = torch.isin(tokens, self.stop)
        self.finished[self.rows] = ended
        if not ended.any():
            return tokens
        going = (~ended).nonzero().squeeze(-1)
        if len(going):
            self.reader.select(going)
        self.rows = self.rows[going]
        return tokens[going]

    def _collect(self) -> Completions:
        width = int(self.lengths.max())
        mask = torch.arange(width, device=self.lengths.device) < self.lengths.unsqueeze(-1)
        return Completions(
            token_ids=self.token_ids[:, :width].cpu(),
            mask=mask.cpu(),
            log_probs=self.log_probs[:, :width].cpu(),
            finished=self.finished.cpu(),
        )


def sampled(log_probs: Tensor, generator: torch.Generator) -> Tensor:
    """Sample a token from each distribution, by the inverse of its cumulative distribution function; shape `batch`.

    That takes one random number for a row, where `torch.multinomial` takes one for each token of the vocabulary.

    Args:
        log_probs: log-probabilities; shape `batch token`; nats.
        generator: generator on the device of `log_probs`.

    Raises:
        FloatingPointError: a log-probability is not a number.
    """
    cumulative = log_probs.exp().cumsum(dim=-1, dtype=torch.double)
    total = cumulative[:, -1:]
    if (~total.isfinite()).any():
        raise FloatingPointError(
            "the policy gives logits that are not finite, so no token can be sampled; lower `learning_rate`, or "
            "inspect the weights of `model_name`."
        )
    uniform = torch.rand(len(log_probs), 1, dtype=torch.double, device=log_probs.device, generator=generator)
    # Rounded to the total, no token would be left, or one of probability 0.
    place = (uniform * total).minimum(total.nextafter(torch.zeros_like(total)))
    return torch.searchsorted(cumulative, place, right=True).squeeze(-1)


def nucleus(log_probs: Tensor, top_p: float) -> Tensor:
    """Return the distribution over the fewest most likely tokens whose probabilities add up to `top_p` or more.

    Args:
        log_probs: log-probabilities; shape `batch token`; nats.
        top_p: probability of the nucleus; the most likely token always belongs to it.

    Reference: nucleus sampling, arXiv:1904.09751.
    """
    descending, order = log_probs.exp().sort(dim=-1, descending=True, stable=True)
    before = descending.cumsum(dim=-1) - descending
    dropped = torch.zeros_like(log_probs, dtype=torch.bool).scatter(-1, order, before >= top_p)
    dropped.scatter_(-1, order[:, :1], False)
    return torch.log_softmax(log_probs.masked_fill(dropped, -torch.inf), dim=-1)
