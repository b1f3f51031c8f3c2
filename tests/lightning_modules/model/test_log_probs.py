"""The forward pass of training: log-probabilities of a plain one, however a model treats its logits."""

import warnings

import pytest
import torch
from torch import nn
from transformers import (
    CohereConfig,
    Gemma2Config,
    GraniteConfig,
    LlamaConfig,
    PhiConfig,
    Qwen2Config,
    Qwen2ForCausalLM,
    set_seed,
)
from transformers.models.auto.modeling_auto import MODEL_FOR_CAUSAL_LM_MAPPING

from aggregate_po import PolicyBatch, linear_log_probs
from lightning_modules.batch import RolloutBatch, left_padded
from lightning_modules.model import log_probs
from lightning_modules.model.layouts import PackedGroups, PackedSequences, PaddedSequences, SharedPrompts

SIZES = {
    "vocab_size": 50,
    "hidden_size": 16,
    "intermediate_size": 32,
    "num_hidden_layers": 2,
    "num_attention_heads": 2,
    "num_key_value_heads": 2,
    "head_dim": 8,
    "pad_token_id": 0,
    "bos_token_id": 1,
    "eos_token_id": 2,
}


class CubedQwen2(Qwen2ForCausalLM):
    """A model that does with its logits what no other does."""

    def forward(self, *arguments, **options):
        output = super().forward(*arguments, **options)
        output.logits = output.logits + output.logits**3
        return output


def made(config, kind=None):
    set_seed(0)
    model = (kind or MODEL_FOR_CAUSAL_LM_MAPPING[type(config)])(config).double().eval()
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.3 * torch.randn_like(parameter)
    return model


def batch_of(temperature=1.0):
    generator = torch.Generator().manual_seed(3)
    prompt_ids, prompt_mask = left_padded([[5, 6, 7], [8, 9]])
    lengths = torch.tensor([4, 1, 3, 2])
    mask = torch.arange(4) < lengths.unsqueeze(-1)
    ids = torch.randint(3, 50, (4, 4), generator=generator) * mask
    policy = PolicyBatch(torch.zeros(4, 4, dtype=torch.double), mask, torch.ones(4, dtype=torch.double))
    return RolloutBatch(prompt_ids, prompt_mask, torch.tensor([0, 0, 1, 1]), ids, mask, policy, temperature)


def plain(model, batch):
    """Log-probabilities and entropies, one completion at a time."""
    rows = []
    for row, prompt in enumerate(batch.prompt_of.tolist()):
        ids = batch.completion_ids[row][batch.completion_mask[row]]
        sequence = torch.cat([batch.prompt_ids[prompt][batch.prompt_mask[prompt]], ids])
        logits = model(sequence.unsqueeze(0), use_cache=False).logits[0, -len(ids) - 1 : -1] / batch.temperature
        log_p = torch.log_softmax(logits, dim=-1)
        rows.append((log_p[range(len(ids)), ids], -(log_p.exp() * log_p).sum(dim=-1)))
    return [torch.cat(values) for values in zip(*rows, strict=True)]


MODELS = {
    "tied": lambda: made(Qwen2Config(**SIZES, tie_word_embeddings=True)),
    "untied": lambda: made(LlamaConfig(**SIZES, tie_word_embeddings=False)),
    "with a bias": lambda: made(PhiConfig(**{k: v for k, v in SIZES.items() if k != "head_dim"})),
    "soft cap": lambda: made(Gemma2Config(**SIZES, final_logit_softcapping=2.0)),
    "scaled": lambda: made(GraniteConfig(**SIZES, logits_scaling=4.0)),
    "multiplied": lambda: made(CohereConfig(**SIZES, logit_scale=0.25)),
    "its own way": lambda: made(Qwen2Config(**SIZES), CubedQwen2),
}


LAYOUTS = {
    "groups": PackedGroups(),
    "shared": SharedPrompts(),
    "padded": PaddedSequences(),
    "packed": PackedSequences(),
    "recomputed": PackedSequences(recompute=True),
}


@pytest.mark.parametrize("layout", LAYOUTS)
@pytest.mark.parametrize("temperature", [1.0, 0.7])
@pytest.mark.parametrize("name", MODELS)
def test_they_are_those_of_a_plain_forward_pass(name, temperature, layout):
    model, batch = MODELS[name](), batch_of(temperature)
    config = model.config.to_dict()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        found = log_probs.log_probs_and_entropy(model, batch, LAYOUTS[layout])
    expected = plain(model, batch)
    slopes = torch.linspace(-1, 1, len(expected[0]), dtype=torch.double)
    for values, others in zip(found, expected, strict=True):
        # Norms of these models compute in float32, and round another way in a batch of another shape.
        assert (values[batch.completion_mask] - others).abs().max() < 1e-5
        assert values[~batch.completion_mask].eq(0).all()
    parameters = [parameter for parameter in model.parameters() if parameter.requires_grad]
    a, b = (
        torch.autograd.grad((values * slopes).sum(), parameters, allow_unused=True)
        for values in (found[0][batch.completion_mask], expected[0])
    )
    for one, other in zip(a, b, strict=True):
        assert (one - other).abs().max() < 1e-5 * max(1.0, other.abs().max().item())
    assert not found[1].requires_grad
    assert any("more gradient accumulation saves memory" in str(w.message) for w in caught) == (name == "its own way")
    # The model is left as it was.
    assert model.config.to_dict() == config
    assert model(batch.prompt_ids).logits.shape[-1] == 50


def test_the_logits_of_a_chunk_alone_are_made(monkeypatch):
    """Four tokens at a time, and none for padding."""
    sizes = []

    def noted(hidden, weight, targets, *options):
        sizes.append(len(hidden))
        return linear_log_probs(hidden, weight, targets), torch.zeros(len(hidden), dtype=hidden.dtype)

    monkeypatch.setattr(log_probs, "linear_log_probs_and_entropy", noted)
    model, batch = MODELS["tied"](), batch_of()
    log_probs.log_probs_and_entropy(model, batch)
    assert sizes == [10]


def test_dropout_does_not_look_like_a_strange_head():
    config = LlamaConfig(**SIZES, attention_dropout=0.5)
    model = made(config).train()
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        log_probs.log_probs_and_entropy(model, batch_of())
    assert model.training


def test_a_head_of_another_kind_is_called_itself():
    class Doubled(nn.Linear):
        def forward(self, hidden):
            return 2 * super().forward(hidden)

    model = MODELS["untied"]()
    head = Doubled(16, 50, bias=False).double()
    model.set_output_embeddings(head)
    batch = batch_of()
    with pytest.warns(UserWarning, match="more than a product"):
        found, _ = log_probs.log_probs_and_entropy(model, batch)
    assert (found[batch.completion_mask] - plain(model, batch)[0]).abs().max() < 1e-5


@pytest.mark.parametrize("said", [True, False])
def test_a_head_that_is_known_is_not_tried_out(said, monkeypatch):
    monkeypatch.delattr(log_probs, "_probe")
    model, batch = MODELS["tied"](), batch_of()
    found, _ = log_probs.log_probs_and_entropy(model, batch, linear_head=said)
    assert (found[batch.completion_mask] - plain(model, batch)[0]).abs().max() < 1e-5


# Layouts


@pytest.mark.parametrize(
    ("layout", "expected"),
    [
        ("groups", 3 + 2 + 3 + 0 + 2 + 1),
        ("shared", 2 * 3 + 4 * 3),
        ("padded", 4 * (3 + 3)),
        ("packed", 2 * (3 + 2) + 3 + 0 + 2 + 1),
    ],
)
def test_the_model_runs_over_no_more_tokens_than_it_must(layout, expected):
    """Prompts of 3 and 2 tokens, completions of 4, 1, 3 and 2 tokens, of which the last predicts nothing."""
    model, batch, seen = MODELS["tied"](), batch_of(), []
    log_probs.log_probs_and_entropy(model, batch, LAYOUTS[layout])
    model.get_input_embeddings().register_forward_hook(lambda module, inputs, output: seen.append(inputs[0].numel()))
    log_probs.log_probs_and_entropy(model, batch, LAYOUTS[layout])
    assert sum(seen) == expected


def test_recomputed_activations_are_not_kept():
    model, batch = MODELS["tied"](), batch_of()

    def kept_bytes(layout):
        log_probs.log_probs_and_entropy(model, batch, layout)
        own = {parameter.data_ptr() for parameter in model.parameters()}
        kept = {}

        def keep(tensor):
            if tensor.data_ptr() not in own:
                kept[tensor.data_ptr()] = tensor.numel() * tensor.element_size()
            return tensor

        with torch.autograd.graph.saved_tensors_hooks(keep, lambda tensor: tensor):
            values, _ = log_probs.log_probs_and_entropy(model, batch, layout)
        return sum(kept.values()), values

    everything, _ = kept_bytes(PackedSequences())
    inputs, values = kept_bytes(PackedSequences(recompute=True))
    assert inputs < 0.5 * everything
    values.sum().backward()
    assert model.model.layers[0].self_attn.q_proj.weight.grad.abs().max() > 0
