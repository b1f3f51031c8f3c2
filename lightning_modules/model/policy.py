"""The policy: a causal language model with its tokenizer and, where one is needed, its reference."""

from __future__ import annotations

from collections.abc import Callable
from contextlib import AbstractContextManager, nullcontext
from pathlib import Path
from typing import Any, Protocol, cast

import torch
from torch import nn
from torch.distributed.device_mesh import DeviceMesh
from transformers import AutoModelForCausalLM, AutoTokenizer, PreTrainedModel, PreTrainedTokenizerBase

from aggregate_po import PerToken
from lightning_modules.batch import Sequences
from lightning_modules.distributed import rank
from lightning_modules.model.layouts import SequenceLayout, SharedPrompts
from lightning_modules.model.log_probs import log_probs_and_entropy
from lightning_modules.model.lora import LoRA, without_adapters
from lightning_modules.model.sharding import is_sharded, shard, whole_weights
from lightning_modules.model.tensor_parallel import divide


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
        """Return a folder that `from_pretrained` loads; later calls find what the first one made."""


class Policy:
    """A causal language model, its tokenizer, and the model that it was at first (the reference).

    It is shared by the data, which samples from it and scores with it, and by the `PolicyModule`, which trains it. It
    is no `nn.Module`: the model is registered by the `PolicyModule`, the reference is neither trained nor saved.

    Args:
        source: hub id or folder of a Hugging Face causal language model, or what makes one.
        layout: how prompts and completions are laid out for the forward pass.
        lora: adapters that are trained in place of the weights; the model without them is then the reference.
        attn_implementation: transformers' name of the attention; transformers chooses when None.

    Raises:
        ValueError: `source` looks like a folder, and there is none.
    """

    def __init__(
        self,
        source: str | ModelSource,
        layout: SequenceLayout = SharedPrompts(),
        lora: LoRA | None = None,
        attn_implementation: str | None = None,
    ) -> None:
        if isinstance(source, str) and _looks_like_a_folder(source) and not Path(source).is_dir():
            raise ValueError(
                f"`model_name` is {source!r}, which is not a folder; pass one that `from_pretrained` loads, or a "
                "hub id such as Qwen/Qwen2.5-0.5B."
            )
        self.source = source
        self.layout = layout
        self.lora = lora
        self.attn_implementation = attn_implementation
        self.keeps_reference = False
        self.reference: PreTrainedModel | None = None
        self._model: PreTrainedModel | None = None
        self._tokenizer: PreTrainedTokenizerBase | None = None
        self._prepared: Callable[[PreTrainedModel], None] = lambda model: None
        self._forward_context: Callable[[], AbstractContextManager[Any]] = nullcontext

    # Loading

    @property
    def is_loaded(self) -> bool:
        """Whether there is a model."""
        return self._model is not None

    @property
    def model(self) -> PreTrainedModel:
        """The model that is trained.

        Raises:
            RuntimeError: it is not loaded.
        """
        if self._model is None:
            raise RuntimeError("the policy is not loaded; fit or validate its PolicyModule, or call `configure_model`.")
        return self._model

    @property
    def tokenizer(self) -> PreTrainedTokenizerBase:
        """The tokenizer of the model.

        Raises:
            RuntimeError: it is not loaded.
        """
        if self._tokenizer is None:
            raise RuntimeError("the policy is not loaded; fit or validate its PolicyModule, or call `configure_model`.")
        return self._tokenizer

    @property
    def device(self) -> torch.device:
        """Where the model is."""
        return self.model.device

    def load(
        self,
        mesh: DeviceMesh | None = None,
        gathered_dtype: Callable[[], torch.dtype | None] = lambda: None,
        forward_context: Callable[[], AbstractContextManager[Any]] = nullcontext,
    ) -> PreTrainedModel:
        """Load tokenizer and weights, and the reference where one is kept; in float32, sharded over a mesh.

        Args:
            mesh: of the ranks, with the dimensions `data_parallel` and `tensor_parallel`; nothing is sharded when None.
            gathered_dtype: gives the type in which sharded weights are gathered; as they are kept when it gives None.
            forward_context: of the precision in which log-probabilities are computed.

        Raises:
            ValueError: the mesh asks for tensor parallelism, which the model or adapters do not allow.
        """
        parts = 1 if mesh is None else mesh["tensor_parallel"].size()
        if parts > 1 and self.lora is not None:
            raise ValueError(
                f"`lora` is {self.lora}, but `tensor_parallel_size` is {parts}; pass tensor_parallel_size=1."
            )

        def prepare(model: PreTrainedModel) -> None:
            if mesh is not None and parts > 1:
                divide(model, mesh["tensor_parallel"])
            if mesh is not None:
                shard(model, mesh, gathered_dtype())

        self._prepared, self._forward_context = prepare, forward_context
        path = self._path()
        tokenizer, model = AutoTokenizer.from_pretrained(path), self._from_pretrained(path)
        if self.lora is not None:
            self.lora.adapt(model)
        prepare(model)
        self._model, self._tokenizer = model, tokenizer
        self._load_reference()
        return model

    def keep_reference(self) -> None:
        """Keep the first policy, which `source` gives at any time, as the reference."""
        self.keeps_reference = True
        if self.is_loaded:
            self._load_reference()

    def _load_reference(self) -> None:
        """Load a frozen copy of the first policy where one is kept, unless adapters can be switched off."""
        if self.keeps_reference and self.lora is None and self.reference is None:
            reference = self._from_pretrained(self._path()).requires_grad_(False)
            self._prepared(reference)
            self.reference = reference

    def _path(self) -> str:
        return self.source if isinstance(self.source, str) else self.source.prepare()

    def _from_pretrained(self, path: str) -> PreTrainedModel:
        attention = self.attn_implementation
        return AutoModelForCausalLM.from_pretrained(path, dtype=torch.float32, attn_implementation=attention)

    @property
    def stop_token_ids(self) -> tuple[int, ...]:
        """Tokens that end a completion.

        Raises:
            ValueError: neither the tokenizer nor the model names one.
        """
        configured = self.model.generation_config.eos_token_id if self.model.generation_config else None
        ids = configured if isinstance(configured, list) else [configured]
        found = {token for token in [*ids, self.tokenizer.eos_token_id] if token is not None}
        if not found:
            raise ValueError(
                f"`model_name` {self.source!r} has no end-of-sequence token; set `eos_token` of its tokenizer."
            )
        return tuple(sorted(found))

    def save_pretrained(self, folder: str | Path) -> None:
        """Write model and tokenizer as a folder that `from_pretrained` loads; see `LoRA` for adapters.

        Every rank must call it, since the weights may be sharded; rank 0 writes.
        """
        if self.lora is not None:
            self.lora.save(self.model, folder)
        else:
            weights = whole_weights(self.model) if is_sharded(self.model) else None
            if rank() == 0:
                self.model.save_pretrained(folder, state_dict=weights)
        if rank() == 0:
            self.tokenizer.save_pretrained(folder)

    # Log-probabilities

    def log_probs_and_entropy(self, sequences: Sequences) -> tuple[PerToken, PerToken]:
        """Return log-probabilities, attached to the graph, and entropies, detached; shape `batch time`; nats."""
        return log_probs_and_entropy(self.model, sequences, self.layout)

    def log_probs(self, sequences: Sequences) -> PerToken:
        """Return log-probabilities of the completions, temperature applied; shape `batch time`; nats."""
        return self.log_probs_and_entropy(sequences)[0]

    @torch.no_grad()
    def current_log_probs(self, sequences: Sequences) -> PerToken:
        """Return `log_probs` outside any graph, in the precision of training."""
        with self._forward_context():
            return self.log_probs(sequences)

    @torch.no_grad()
    def reference_log_probs(self, sequences: Sequences) -> PerToken:
        """Return log-probabilities under the reference, outside any graph, in the precision of training.

        Raises:
            RuntimeError: no reference is kept.
        """
        if self.lora is not None and self.keeps_reference:
            with without_adapters(self.model):
                return self.current_log_probs(sequences)
        if self.reference is None:
            raise RuntimeError("the policy keeps no reference; call `keep_reference()`.")
        cast(nn.Module, self.reference).to(self.device, self.model.dtype)
        with self._forward_context():
            log_probs, _ = log_probs_and_entropy(self.reference, sequences, self.layout)
        return log_probs


def _looks_like_a_folder(model_name: str) -> bool:
    """Hub ids are `name` or `owner/name`."""
    return model_name.startswith(("/", ".", "~")) or model_name.count("/") > 1
