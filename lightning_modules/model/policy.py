"""The policy: a causal language model with its tokenizer and, if needed, a reference model."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, TypeVar, cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase
from typing_extensions import override

from aggregate_po import PerToken
from lightning_modules.batch import RolloutBatch, Sequences
from lightning_modules.distributed import rank
from lightning_modules.micro_batch import MicroBatch
from lightning_modules.model.layouts import SequenceLayout, SharedPrompts
from lightning_modules.model.limits import padding_token_required
from lightning_modules.model.linear import with_fast_products
from lightning_modules.model.log_probs import log_probs_and_entropy
from lightning_modules.model.lora import LoRA, form_of, require_same_form, without_adapters
from lightning_modules.model.remote_code import remote_code_refused
from lightning_modules.model.serving import serving_layout
from lightning_modules.model.sharding import full_weights, is_sharded, shard
from lightning_modules.model.source import require_model
from lightning_modules.model.tensor_parallel import parallelize
from lightning_modules.model.trained import PolicyPass, TrainedPolicy

_Part = TypeVar("_Part")


class ModelSource(Protocol):
    """Makes a model that does not exist yet.

    Subclass requirements:

    - Implement `prepare`. It returns a folder with weights and tokenizer, and creates it on the first call. Several
      processes may call it at once, so write to a scratch folder and rename that. The same arguments must always give
      the same weights, because the reference policy and resumed adapters are loaded from the folder again.
    - `aggregate-po plan` also needs `describe`, which returns the model's configuration and its tokenizer without
      making the model.
    """

    def prepare(self) -> str:
        """Build the model unless it exists, and return a folder that `from_pretrained` loads."""


class Policy(TrainedPolicy):
    """A causal language model, its tokenizer, and the initial model as a reference.

    The data module samples from it and computes log-probabilities with it; the `PolicyModule` trains it.

    Args:
        source: hub id or folder of a Hugging Face causal language model, or a `ModelSource` that builds one.
        layout: layout of prompts and completions in the forward pass; chosen by `choose_layout` when None.
        lora: LoRA adapters to train while the weights are frozen; the model without them is then the reference.
        attn_implementation: name of the attention implementation in transformers; chosen by transformers when None.

    Raises:
        ValueError: `source` is the path of a folder that does not exist.
    """

    layout: SequenceLayout

    def __init__(
        self,
        source: str | ModelSource,
        layout: SequenceLayout | None = None,
        lora: LoRA | None = None,
        attn_implementation: str | None = None,
    ) -> None:
        if isinstance(source, str):
            require_model(source)
        self.source = source
        self.asked_layout = layout
        self.layout = SharedPrompts() if layout is None else layout
        self._layout_chosen = False
        self.lora, self.form = lora, form_of(lora)
        self.attn_implementation = attn_implementation
        self.reference: PreTrainedModel | None = None
        self._model: PreTrainedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._shard_model: Callable[[PreTrainedModel], None] = lambda model: None

    # Loading

    @property
    @override
    def is_loaded(self) -> bool:
        return self._model is not None

    @property
    def model(self) -> PreTrainedModel:
        """The trained model.

        Raises:
            RuntimeError: the model is not loaded.
        """
        return _loaded(self._model)

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model.

        Raises:
            RuntimeError: the model is not loaded.
        """
        return _loaded(self._tokenizer)

    @property
    @override
    def device(self) -> torch.device:
        return self.model.device

    def load(
        self,
        mesh: DeviceMesh | None = None,
        gathered_dtype: Callable[[], torch.dtype | None] = lambda: None,
        forward_context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> PreTrainedModel:
        """Load the tokenizer, the weights in float32, and the reference if one is kept; shard them over a mesh.

        Args:
            mesh: device mesh with the dimensions `data_parallel` and `tensor_parallel`; no sharding when None.
            gathered_dtype: returns the dtype in which sharded weights are gathered, or None for their own dtype.
            forward_context: returns the autocast context in which log-probabilities are computed.

        Raises:
            ValueError: the mesh has tensor parallelism, which the model or the adapters do not support, or the model
                comes with code of its own.
        """
        tensor_parallel_size = 1 if mesh is None else mesh["tensor_parallel"].size()
        if tensor_parallel_size > 1 and self.lora is not None:
            raise ValueError(
                f"`lora` is {self.lora}, but `tensor_parallel_size` is {tensor_parallel_size}; pass "
                "tensor_parallel_size=1."
            )

        def shard_model(model: PreTrainedModel) -> None:
            if mesh is not None and tensor_parallel_size > 1:
                parallelize(model, mesh["tensor_parallel"])
            if mesh is not None:
                shard(model, mesh, gathered_dtype())

        self._shard_model, self.forward_context = shard_model, forward_context
        path = self._path()
        with remote_code_refused(self.source):
            tokenizer = AutoTokenizer.from_pretrained(path, trust_remote_code=False)
        with padding_token_required(self.source):
            model = self._from_pretrained(path)
        if self.lora is not None:
            self.lora.adapt(model)
        shard_model(model)
        self._model, self._tokenizer = model, tokenizer
        self._load_reference()
        return model

    @override
    def keep_reference(self) -> None:
        """Keep the initial model as the reference; it is loaded from `source` again."""
        self.keeps_reference = True
        if self.is_loaded:
            self._load_reference()

    def _load_reference(self) -> None:
        """Load a frozen copy of the initial model if a reference is kept, unless disabling adapters gives it."""
        if self.keeps_reference and self.lora is None and self.reference is None:
            reference = self._from_pretrained(self._path()).requires_grad_(False)
            self._shard_model(reference)
            self.reference = reference

    @override
    def choose_layout(self) -> None:
        """Try out the layout asked for, or choose the one that serves the model; every rank must call it.

        Raises:
            ValueError: the layout asked for, or every one, is wrong by more than rounding; see `serving_layout`.
        """
        if not self._layout_chosen:
            with self.forward_context():
                self.layout = serving_layout(self.model, self.asked_layout)
            self._layout_chosen = True

    def _path(self) -> str:
        return self.source if isinstance(self.source, str) else self.source.prepare()

    def _from_pretrained(self, path: str) -> PreTrainedModel:
        with remote_code_refused(self.source):
            return with_fast_products(_model(path, self.attn_implementation))

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Ids of the tokens that end a completion.

        Raises:
            ValueError: neither the tokenizer nor the model names one.
        """
        return _stop_token_ids(self.model, self.tokenizer, self.source)

    @override
    def save_pretrained(self, folder: str | Path) -> None:
        """Write model and tokenizer to a folder that `from_pretrained` loads; for adapters see `LoRA.export`.

        Every rank must call it, since the weights may be sharded; rank 0 writes.
        """
        if self.lora is not None:
            self.lora.save(self.model, folder)
        else:
            weights = full_weights(self.model) if is_sharded(self.model) else None
            if rank() == 0:
                self.model.save_pretrained(folder, state_dict=weights)
        if rank() == 0:
            self.tokenizer.save_pretrained(folder)

    @override
    def require_form(self, saved: dict[str, Any] | None) -> None:
        require_same_form(self.lora, saved)

    # Log-probabilities

    @override
    def evaluate(self, batch: MicroBatch) -> PolicyPass:
        return PolicyPass(*self.log_probs_and_entropy(cast(RolloutBatch, batch)), batch.policy)

    def log_probs_and_entropy(self, sequences: Sequences) -> tuple[PerToken, PerToken]:
        """Return differentiable log-probabilities and detached entropies of completions; shape `batch time`; nats."""
        return log_probs_and_entropy(self.model, sequences, self.layout)

    def log_probs(self, sequences: Sequences) -> PerToken:
        """Return the log-probabilities of completions, with the temperature applied; shape `batch time`; nats."""
        return self.log_probs_and_entropy(sequences)[0]

    @torch.no_grad()
    def current_log_probs_and_entropy(self, sequences: Sequences) -> tuple[PerToken, PerToken]:
        """Return `log_probs_and_entropy` without gradient, in the precision of training."""
        with self.forward_context():
            return self.log_probs_and_entropy(sequences)

    def current_log_probs(self, sequences: Sequences) -> PerToken:
        """Return `log_probs` without gradient, in the precision of training."""
        return self.current_log_probs_and_entropy(sequences)[0]

    @torch.no_grad()
    def reference_log_probs(self, sequences: Sequences) -> PerToken:
        """Return log-probabilities under the reference without gradient, in the precision of training.

        Raises:
            RuntimeError: no reference is kept.
        """
        if self.lora is not None and self.keeps_reference:
            with without_adapters(self.model):
                return self.current_log_probs(sequences)
        if self.reference is None:
            raise RuntimeError("the policy keeps no reference; call `keep_reference()`.")
        cast(nn.Module, self.reference).to(self.device, self.model.dtype)
        with self.forward_context():
            log_probs, _ = log_probs_and_entropy(self.reference, sequences, self.layout)
        return log_probs


def _model(path: str, attn_implementation: str | None) -> PreTrainedModel:
    # A configuration with `output_attentions` can be loaded, but not saved.
    options = {"attn_implementation": attn_implementation, "output_attentions": False}
    return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, trust_remote_code=False, **options)


def _stop_token_ids(model: PreTrainedModel, tokenizer: PreTrainedTokenizerBase, source: object) -> tuple[int, ...]:
    configured = model.generation_config.eos_token_id if model.generation_config else None
    ids = configured if isinstance(configured, list) else [configured]
    found = {token for token in [*ids, tokenizer.eos_token_id] if token is not None}
    if not found:
        raise ValueError(f"`model_name` {source!r} has no end-of-sequence token; set `eos_token` of its tokenizer.")
    return tuple(sorted(found))


def _loaded(part: _Part | None) -> _Part:
    if part is None:
        raise RuntimeError("the policy is not loaded; fit or validate its PolicyModule, or call `configure_model`.")
    return part
