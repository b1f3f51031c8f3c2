"""The probe of a model: what is wrong is found, rounding is not, and nothing is left behind."""

import warnings

import pytest
import torch
from transformers import Qwen2ForCausalLM

from lightning_modules.model import layouts
from lightning_modules.model.layouts import (
    PackedGroups,
    PackedSequences,
    PaddedSequences,
    SequenceLayout,
    SharedPrompts,
)
from lightning_modules.model.lora import LoRA
from lightning_modules.model.probe import Probes
from lightning_modules.model.serving import serving_layout
from tests.lightning_modules.architectures import small_config, small_model


class OneTokenLate(PaddedSequences):
    """Predicts each token from the tokens up to the one before the last."""

    def last_layer(self, model, batch):
        return super().last_layer(model, batch).roll(1, dims=0)


class WithoutPromptGradient(SharedPrompts):
    """Gives the right log-probabilities, and no gradient through the prompts."""

    def last_layer(self, model, batch):
        class Detached(layouts.TokenCache):
            def select(self, rows):
                super().select(rows)
                for layer in self.cache.layers:
                    layer.keys, layer.values = layer.keys.detach(), layer.values.detach()

        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(layouts, "TokenCache", Detached)
            return super().last_layer(model, batch)


class NotANumber(PaddedSequences):
    """Gives NaN for one token."""

    def last_layer(self, model, batch):
        states = super().last_layer(model, batch)
        return torch.cat([states[:-1], states[-1:] * torch.nan])


class Broken(PaddedSequences):
    """Fails."""

    def last_layer(self, model, batch):
        raise AttributeError("no such thing")


@pytest.mark.parametrize("half", [False, True], ids=["float32", "bfloat16"])
@pytest.mark.parametrize(
    ("layout", "said"),
    [
        (OneTokenLate(), r"gives log-probabilities that are [\d.e+-]+ nats off, where [\d.e+-]+ is rounding"),
        (WithoutPromptGradient(), r"gives a gradient that is 82% off"),
        (NotANumber(), "gives log-probabilities that are inf nats off"),
        (Broken(), "fails with AttributeError: no such thing"),
    ],
)
def test_a_wrong_layout_is_refused_by_name_with_the_error_and_the_remedy(layout, said, half):
    model = small_model("llama")
    serving = "PackedGroups or SharedPrompts or PaddedSequences or PackedSequences"
    remedy = f"with LlamaForCausalLM; pass {serving}, or leave `layout` out"
    with (
        torch.autocast("cpu", dtype=torch.bfloat16, enabled=half),
        pytest.raises(ValueError, match=f"`layout` is {type(layout).__name__}, which {said}.*{remedy}"),
    ):
        serving_layout(model, layout)


class LeakyQwen2(Qwen2ForCausalLM):
    """Passes a mask on, with which sequences in one row see each other."""

    def forward(self, input_ids=None, attention_mask=None, **options):
        if attention_mask is None:
            attention_mask = torch.ones_like(input_ids)
        return super().forward(input_ids=input_ids, attention_mask=attention_mask, **options)


def test_packing_is_refused_where_sequences_would_see_each_other():
    model = LeakyQwen2(small_config("qwen2", initializer_range=0.5)).eval()
    with pytest.raises(ValueError, match=r"with LeakyQwen2; pass PackedGroups or SharedPrompts or PaddedS"):
        serving_layout(model, PackedSequences())
    with pytest.raises(ValueError, match=r"PackedSequences, which gives .* nats off, .* pass SharedPrompts or Padded"):
        serving_layout(small_model("lfm2"), PackedSequences())


def test_a_right_layout_is_taken_without_a_word():
    model = small_model("llama")
    with warnings.catch_warnings():
        warnings.simplefilter("error")
        for layout in (
            PackedGroups(),
            SharedPrompts(),
            PaddedSequences(),
            PackedSequences(),
            PackedSequences(recompute=True),
        ):
            assert serving_layout(model, layout) is layout
        assert isinstance(serving_layout(model), PackedGroups)


def test_a_layout_that_is_chosen_in_place_of_the_default_is_told_with_the_reason():
    with pytest.warns(UserWarning, match=r"`layout` is PaddedSequences for JambaForCausalLM.* nats off"):
        assert isinstance(serving_layout(small_model("jamba")), PaddedSequences)


def test_a_model_that_no_layout_serves_is_refused():
    with pytest.raises(
        ValueError, match=r"BertLMHeadModel cannot be trained: SharedPrompts gives .*pass a causal model"
    ):
        serving_layout(small_model("bert"))


# Rounding: no false alarms, whatever the scale of the logits.


@pytest.mark.parametrize("scale", [0.0, 0.1, 1.0], ids=["flat", "usual", "peaky"])
@pytest.mark.parametrize("precision", ["float32", "autocast", "bfloat16"])
@pytest.mark.parametrize("kind", ["llama", "qwen3_moe", "mixtral", "gemma2", "gpt_oss"])
def test_rounding_is_no_deviation(kind, precision, scale):
    model = small_model(kind)
    with torch.random.fork_rng(devices=[]), torch.no_grad():
        torch.manual_seed(1)
        head = model.get_output_embeddings().weight
        head.copy_(scale * torch.randn_like(head) + 0.02 * torch.randn_like(head))
    model = model.bfloat16() if precision == "bfloat16" else model
    with torch.autocast("cpu", dtype=torch.bfloat16, enabled=precision == "autocast"):
        probes = Probes(model)
        layouts = [SharedPrompts()] if kind == "gpt_oss" else [PackedGroups(), SharedPrompts()]  # has no `sdpa`
        deviations = [probes.of_layout(layout) for layout in layouts]
    assert all(deviation.passes for deviation in deviations), "; ".join(map(str, deviations))


@pytest.mark.parametrize("kind", ["jamba", "mamba", "qwen3_5_text", "lfm2"])
@pytest.mark.parametrize("layout", [PackedGroups(), SharedPrompts(), PackedSequences()])
def test_both_precisions_find_the_same(kind, layout):
    """Rounding in bfloat16 alone would hide some of these errors."""
    model = small_model(kind)
    single = Probes(model).of_layout(layout).passes
    with torch.autocast("cpu", dtype=torch.bfloat16):
        assert Probes(model).of_layout(layout).passes == single


# What is left behind


@pytest.mark.parametrize("training", [False, True])
@pytest.mark.parametrize("adapters", [False, True])
def test_the_probe_leaves_the_model_and_the_random_state_as_they_were(training, adapters):
    model = small_model("llama", attention_dropout=0.5)
    if adapters:
        LoRA(rank=2).adapt(model)
    model.train(training)
    config, random = model.config.to_dict(), torch.get_rng_state()
    weights = {name: value.clone() for name, value in model.state_dict().items()}
    assert isinstance(serving_layout(model), PackedGroups)
    assert torch.equal(torch.get_rng_state(), random)
    assert model.config.to_dict() == config
    assert model.training == training
    assert all(parameter.grad is None for parameter in model.parameters())
    assert all(torch.equal(value, weights[name]) for name, value in model.state_dict().items())
    assert not model.get_input_embeddings()._forward_hooks


def test_a_probe_takes_few_passes():
    model, passes = small_model("llama"), []
    serving_layout(model)  # the output layer is tried out once
    model.model.register_forward_hook(lambda module, inputs, output: passes.append(output[0].shape[:2]))
    serving_layout(model)
    assert len(passes) == 8
    assert sum(rows * time for rows, time in passes) < 120  # tokens


class Noted(SequenceLayout):
    """Notes the micro-batches that it is asked for."""

    def __init__(self):
        self.batches = []

    def size(self, extent):
        return 0

    def last_layer(self, model, batch):
        self.batches.append(batch)
        return SharedPrompts().last_layer(model, batch)


def test_the_rows_have_unequal_lengths_and_share_a_prompt():
    layout = Noted()
    serving_layout(small_model("llama"), layout)
    (batch,) = layout.batches
    assert batch.prompt_mask.sum(dim=-1).tolist() == [3, 7]
    assert batch.completion_mask.sum(dim=-1).tolist() == [5, 3, 4]
    assert batch.prompt_of.tolist() == [0, 0, 1]
    ids = torch.cat([batch.prompt_ids[batch.prompt_mask], batch.completion_ids[batch.completion_mask]])
    assert len(ids.unique()) == len(ids)
