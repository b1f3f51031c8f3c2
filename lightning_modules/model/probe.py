"""A probe of a model: its log-probabilities and gradients on a few short rows, however they are computed."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from contextlib import contextmanager, nullcontext, suppress
from dataclasses import dataclass
from functools import cached_property
from textwrap import shorten
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from aggregate_po import PerToken
from lightning_modules.batch import Sequences, left_padded
from lightning_modules.distributed import maxima_over_ranks
from lightning_modules.model.layouts import PaddedSequences, SequenceLayout
from lightning_modules.model.log_probs import log_probs_and_entropy
from lightning_modules.model.sharding import full_tensor, is_sharded

_PROMPTS = (3, 7)  # tokens
_COMPLETIONS = ((0, 5), (0, 3), (1, 4))  # prompt and tokens
_LOW = 1000  # the last ids of a vocabulary may be image tokens or unused


@dataclass(frozen=True)
class Tolerance:
    """Deviation that rounding explains.

    Args:
        share: part of what another prompt changes in the log-probabilities; a lost or contaminated context has more.
        roundings: multiple of the rounding error of the largest log-probability.
        gradient: relative error of gradients.
    """

    share: float
    roundings: float
    gradient: float


_SINGLE = Tolerance(share=0.003, roundings=16, gradient=0.01)
# The experts of a token may change by rounding, so single tokens may be far off; the means of rows are compared.
_HALF = Tolerance(share=0.2, roundings=2, gradient=0.3)


@dataclass(frozen=True)
class Deviation:
    """Difference between two ways of computing the same log-probabilities.

    Args:
        log_probs: difference of the log-probabilities, in nats.
        allowed: the most that rounding explains, in nats.
        gradient: relative error of the gradient; 0 where it was not computed.
        gradient_allowed: the most that rounding explains.
        failure: error of the computation; empty if there was none.
    """

    log_probs: float
    allowed: float
    gradient: float = 0.0
    gradient_allowed: float = 0.0
    failure: str = ""

    @property
    def passes(self) -> bool:
        """Whether rounding explains the deviation."""
        return not self.failure and self.log_probs <= self.allowed and self.gradient <= self.gradient_allowed

    def __str__(self) -> str:
        if self.failure:
            return f"fails with {self.failure}"
        if self.log_probs > self.allowed:
            return (
                f"gives log-probabilities that are {self.log_probs:.2g} nats off, where {self.allowed:.1g} is rounding"
            )
        return f"gives a gradient that is {self.gradient:.0%} off, where {self.gradient_allowed:.0%} is rounding"


class Probe:
    """The plain log-probabilities of a few short rows, and the gradient with respect to their embedded tokens.

    They are computed one row at a time, without cache or padding. The probe takes seven short forward passes and three
    backward passes, which stop at the embedded tokens, so that no parameter gets a gradient. It leaves the random state
    alone. Every rank must make the same probes: the largest deviation of all ranks counts, and a sharded model gathers
    its weights in each pass.

    Args:
        model: the model, on its device and in the precision of training.
        exact: whether to compute without autocast, in the precision of the weights.

    Attributes:
        sequences: the rows, two completions of one prompt and one of a longer prompt.
    """

    def __init__(self, model: PreTrainedModel, exact: bool = False) -> None:
        self._model, self._exact = model, exact
        self.sequences = _sequences(model)
        with self._evaluated(), torch.no_grad():
            self.log_probs = self._row_by_row()
            changed = self._of(self.sequences.replace(prompt_of=1 - self.sequences.prompt_of), PaddedSequences())
            dtype = _computation_dtype(model)
        self._tolerance = _HALF if dtype.itemsize < 4 or _rounds_floats(model) else _SINGLE
        rounding = max(torch.finfo(dtype).eps, torch.finfo(torch.float32).eps) * float(self.log_probs.abs().max())
        context = float((changed - self.log_probs).abs()[self.sequences.completion_mask].mean())
        self._allowed = self._tolerance.share * context + self._tolerance.roundings * rounding

    def of_layout(self, layout: SequenceLayout) -> Deviation:
        """Return the deviation of a layout, in log-probabilities and in the gradient."""
        return self._deviation(lambda: self._of(self.sequences, layout), with_gradient=True)

    def of_log_probs(self, log_probs: Callable[[], PerToken]) -> Deviation:
        """Return the deviation of other log-probabilities of the rows; shape `batch time`, zero on padding."""
        return self._deviation(log_probs)

    @cached_property
    def _gradient(self) -> Tensor:
        return self._computed(self._row_by_row)[1]

    def _deviation(self, log_probs_of: Callable[[], PerToken], with_gradient: bool = False) -> Deviation:
        failure, errors = "", (torch.inf, torch.inf)
        try:
            with self._evaluated(), torch.set_grad_enabled(with_gradient):
                log_probs, gradient = self._computed(log_probs_of) if with_gradient else (log_probs_of(), None)
            errors = self._difference(log_probs), 0.0 if gradient is None else self._gradient_error(gradient)
        except torch.OutOfMemoryError:
            raise
        except (
            RuntimeError,
            ValueError,
            TypeError,
            AttributeError,
            IndexError,
            KeyError,
            NotImplementedError,
        ) as error:
            failure = shorten(f"{type(error).__name__}: {error}".splitlines()[0], 120, placeholder=" ...")
        difference, error_of_gradient = maxima_over_ranks(errors, self._model.device)
        if difference == torch.inf and not failure and errors[0] != torch.inf:
            failure = "an error on another rank"
        return Deviation(difference, self._allowed, error_of_gradient, self._tolerance.gradient, failure)

    @contextmanager
    def _evaluated(self) -> Iterator[None]:
        """Compute without dropout, with which two passes never agree."""
        training = self._model.training
        self._model.eval()
        try:
            with torch.autocast(self._model.device.type, enabled=False) if self._exact else nullcontext():
                yield
        finally:
            self._model.train(training)

    def _of(self, sequences: Sequences, layout: SequenceLayout) -> PerToken:
        return log_probs_and_entropy(self._model, sequences, layout)[0]

    def _row_by_row(self) -> PerToken:
        mask = self.sequences.completion_mask
        single = torch.arange(len(mask), device=mask.device).split(1)
        rows = [self._of(self.sequences.select(row), PaddedSequences()).flatten() for row in single]
        return torch.zeros(mask.shape, dtype=rows[0].dtype, device=mask.device).masked_scatter(mask, torch.cat(rows))

    def _computed(self, log_probs_of: Callable[[], PerToken]) -> tuple[Tensor, Tensor]:
        """Return log-probabilities, and the gradient of a weighted sum of them; shape `token hidden`."""
        with torch.enable_grad(), _embedded(self._model) as embedded:
            log_probs = log_probs_of()
            slopes = torch.linspace(1.0, 2.0, log_probs.numel(), device=log_probs.device).view_as(log_probs)
            gradients = torch.autograd.grad((log_probs * slopes).sum(), [leaf for _, leaf in embedded])
        ids = torch.cat([self.sequences.prompt_ids.flatten(), self.sequences.completion_ids.flatten()]).unique()
        total = torch.zeros(len(ids), gradients[0].shape[-1], dtype=torch.double, device=ids.device)
        for (token_ids, _), gradient in zip(embedded, gradients, strict=True):
            # Each token of the probe has an id of its own; padding has no gradient.
            total.index_add_(0, torch.searchsorted(ids, token_ids.flatten()), gradient.flatten(0, -2).double())
        return log_probs.detach(), total

    def _difference(self, log_probs: PerToken) -> float:
        mask = self.sequences.completion_mask
        error = torch.where(mask, (log_probs.double() - self.log_probs.double()).abs(), 0).nan_to_num(torch.inf)
        by_row = error.sum(dim=-1) / mask.sum(dim=-1) if self._tolerance is _HALF else error.amax(dim=-1)
        return float(by_row.max())

    def _gradient_error(self, gradient: Tensor) -> float:
        """Return the relative error over the tokens of prompts, or over those of completions, whichever is larger."""
        with self._evaluated():
            error, norms = (gradient - self._gradient).norm(dim=-1), self._gradient.norm(dim=-1)
        ids = torch.cat([self.sequences.prompt_ids.flatten(), self.sequences.completion_ids.flatten()]).unique()
        of_prompts = torch.isin(ids, self.sequences.prompt_ids)
        least = 0.01 * norms.norm()
        errors = [error[rows].norm() / torch.maximum(norms[rows].norm(), least) for rows in (of_prompts, ~of_prompts)]
        return float(torch.stack(errors).nan_to_num(torch.inf).max())


class Probes:
    """A probe in the precision of training and, where the weights are more precise, one in theirs.

    Rounding in 16 bits hides small errors, so both must pass. There is no second probe of a model that is sharded over
    ranks, whose weights are gathered in the precision of training, or whose attention computes in 16 bits only.

    Args:
        model: the model, on its device and in the precision of training.

    Attributes:
        sequences: the rows of all probes.
    """

    def __init__(self, model: PreTrainedModel) -> None:
        self._probes = [Probe(model)]
        self.sequences = self._probes[0].sequences
        if torch.is_autocast_enabled(model.device.type) and not is_sharded(model):
            with suppress(RuntimeError):
                self._probes.append(Probe(model, exact=True))

    def of_layout(self, layout: SequenceLayout) -> Deviation:
        """Return the deviation of a layout in the first probe that it does not pass, else in the last one."""
        return self._worst(lambda probe: probe.of_layout(layout))

    def of_log_probs(self, log_probs: Callable[[], PerToken]) -> Deviation:
        """Return the deviation of other log-probabilities in the first probe that they do not pass, else in the last.

        Args:
            log_probs: computes the log-probabilities of the rows; shape `batch time`; 0 on padding.
        """
        return self._worst(lambda probe: probe.of_log_probs(log_probs))

    def _worst(self, deviation_of: Callable[[Probe], Deviation]) -> Deviation:
        deviations = (deviation_of(probe) for probe in self._probes)
        for deviation in deviations:
            if not deviation.passes:
                break
        return deviation


def _sequences(model: PreTrainedModel) -> Sequences:
    """Return the rows, in which each token has another id."""
    lengths = [*_PROMPTS, *(length for _, length in _COMPLETIONS)]
    vocabulary = min(model.config.get_text_config().vocab_size, _LOW)
    ids = [(place * max(vocabulary // (sum(lengths) + 1), 1) + 1) % vocabulary for place in range(sum(lengths))]
    rows = [[ids.pop() for _ in range(length)] for length in lengths]
    prompt_ids, prompt_mask = left_padded(rows[: len(_PROMPTS)], model.device)
    width = max(length for _, length in _COMPLETIONS)
    completions = [row + [0] * (width - len(row)) for row in rows[len(_PROMPTS) :]]
    times = torch.tensor([length for _, length in _COMPLETIONS], device=model.device).unsqueeze(-1)
    return Sequences(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        prompt_of=torch.tensor([prompt for prompt, _ in _COMPLETIONS], device=model.device),
        completion_ids=torch.tensor(completions, device=model.device),
        completion_mask=torch.arange(width, device=model.device) < times,
    )


@contextmanager
def _embedded(model: PreTrainedModel) -> Iterator[list[tuple[Tensor, Tensor]]]:
    """Collect the token ids of each pass with their embedded tokens, which become leaves of the graph."""
    seen: list[tuple[Tensor, Tensor]] = []

    def leaf_of(module: Any, inputs: tuple[Tensor, ...], output: Tensor) -> Tensor:
        if not torch.is_grad_enabled():  # the output layer is tried out by the model's first pass
            return output
        leaf = output.detach().requires_grad_()
        seen.append((full_tensor(inputs[0]), leaf))
        return leaf.clone()  # a leaf could not be changed in place

    handle = model.get_input_embeddings().register_forward_hook(leaf_of)
    try:
        yield seen
    finally:
        handle.remove()


def _computation_dtype(model: PreTrainedModel) -> torch.dtype:
    """Return the dtype in which the model multiplies matrices here."""
    kind = model.device.type
    return torch.get_autocast_dtype(kind) if torch.is_autocast_enabled(kind) else model.dtype


def _rounds_floats(model: PreTrainedModel) -> bool:
    """Return whether float32 matrices are multiplied in a shorter format, such as TensorFloat32."""
    return model.device.type == "cuda" and torch.get_float32_matmul_precision() != "highest"
