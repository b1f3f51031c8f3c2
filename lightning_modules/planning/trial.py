"""A small random model of an architecture, on which a plan tries out what a training would try out on the model."""

from __future__ import annotations

import copy
from collections.abc import Callable
from typing import Any, cast

import torch
from transformers import AutoModelForCausalLM, PreTrainedConfig, PreTrainedModel

from lightning_modules.model.layouts import SequenceLayout
from lightning_modules.model.policy import Policy
from lightning_modules.model.remote_code import RemoteCodeError, remote_code_refused
from lightning_modules.model.serving import serving_layout
from lightning_modules.planning.settings import TrainerSettings

_MOST_PARAMETERS = 300_000_000  # 1.2 GB in float32
_VOCABULARY = 256
_ON_CPUS = (None, "sdpa", "eager")  # implementations of attention that run there


def tried_out(
    policy: Policy,
    config: PreTrainedConfig,
    try_policy: Callable[[PreTrainedModel], None],
    settings: TrainerSettings,
) -> tuple[SequenceLayout, str]:
    """Try out engine and layout on a small random model, as a training does on the model itself.

    Args:
        policy: the policy, which need not be loaded.
        config: configuration of its model.
        try_policy: method of the rollout engine.
        settings: settings of the trainer, for the precision.

    Returns:
        The layout of the training, and a note of how it is known.

    Raises:
        ValueError: the engine or the layout is wrong for the architecture.
    """
    if policy.attn_implementation not in _ON_CPUS:
        return policy.layout, f"not tried out with {policy.attn_implementation}"
    try:
        model = small_model(config)
    except RemoteCodeError:
        raise
    except Exception as error:  # what a configuration refuses is told where the model is built
        return policy.layout, f"not tried out, {type(error).__name__}"
    if model is None:
        return policy.layout, "not tried out, the model is large"
    with settings.forward_context():
        try_policy(model.to(settings.passing_dtype))  # type: ignore[arg-type]
        return serving_layout(model, policy.asked_layout), "tried out on a small random model"


def small_model(config: PreTrainedConfig) -> PreTrainedModel | None:
    """Return a random model with one layer of each kind and a short vocabulary, on the CPU in float32.

    What a layout or an engine gets wrong depends on the code of an architecture, and neither on its weights nor on how
    often a layer is repeated. None where even such a model has more than 300 million parameters.
    """
    try:
        return _random_model(_shortened(config))
    except Exception:  # a configuration may check itself in any way; the model as it is may be small enough
        return _random_model(config)


def _random_model(config: PreTrainedConfig) -> PreTrainedModel | None:
    with torch.device("meta"):
        sizes = _built(config).parameters()
    if sum(parameter.numel() for parameter in sizes) > _MOST_PARAMETERS:
        return None
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = _built(config)
        with torch.no_grad():
            for matrix in (parameter for parameter in model.parameters() if parameter.ndim > 1):
                # Some architectures begin with layers that do nothing.
                matrix.add_(torch.randn_like(matrix) / matrix.shape[-1] ** 0.5)
    return model


def _built(config: PreTrainedConfig) -> PreTrainedModel:
    with remote_code_refused(config.name_or_path):
        model = AutoModelForCausalLM.from_config(copy.deepcopy(config), dtype=torch.float32, trust_remote_code=False)
    return cast(PreTrainedModel, model.eval())


def _shortened(config: PreTrainedConfig) -> PreTrainedConfig:
    shortened = copy.deepcopy(config)
    text: Any = shortened.get_text_config()
    if text.vocab_size > _VOCABULARY:
        text.vocab_size = _VOCABULARY
        text.pad_token_id = text.bos_token_id = text.eos_token_id = None
    layers = text.num_hidden_layers
    by_layer = {name: value for name, value in vars(text).items() if isinstance(value, list) and len(value) == layers}
    if "layer_types" not in by_layer and _has_kinds(text):
        return shortened  # the kinds are computed from the number of the layer
    kinds = list(zip(*by_layer.values(), strict=True)) or [()] * layers
    kept = [index for index, kind in enumerate(kinds) if kind not in kinds[:index]]
    # Some architectures divide by the number of layers after the first.
    kept = kept if len(kept) > 1 else [*range(min(layers, 2))]
    for name, value in by_layer.items():
        setattr(text, name, [value[index] for index in kept])
    text.num_hidden_layers = len(kept)
    return shortened


def _has_kinds(config: Any) -> bool:
    return any(getattr(config, name, None) is not None for name in ("layer_types", "layers_block_type", "block_types"))
