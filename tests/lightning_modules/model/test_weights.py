"""Weights as an engine takes them: under the names of a checkpoint, with adapters added."""

import peft
import pytest
import torch
from transformers import AutoModelForCausalLM

from lightning_modules.model.weights import policy_weights


class LoraLayer(torch.nn.Module):
    """A linear layer with an adapter, as `peft` puts it in the place of the layer alone."""

    merged = disable_adapters = False

    def __init__(self, base_layer, active_adapters=("default",)):
        super().__init__()
        self.base_layer, self.active_adapters = base_layer, list(active_adapters)
        rank, (out, inputs) = 2, base_layer.weight.shape
        self.lora_A = torch.nn.ModuleDict({"default": torch.nn.Linear(inputs, rank, bias=False)})
        self.lora_B = torch.nn.ModuleDict({"default": torch.nn.Linear(rank, out, bias=False)})

    def get_delta_weight(self, adapter):
        return 0.5 * self.lora_B[adapter].weight @ self.lora_A[adapter].weight

    def forward(self, inputs):
        adapter = self.lora_B["default"](self.lora_A["default"](inputs))
        return self.base_layer(inputs) + 0.5 * adapter


def test_tied_weights_come_under_both_names(model):
    weights = dict(policy_weights(model))
    assert torch.equal(weights["lm_head.weight"], weights["model.embed_tokens.weight"])
    assert weights.keys() == model.state_dict().keys()
    assert len(dict(model.named_parameters())) == len(weights) - 1


def test_adapters_are_added_and_left_out(model, model_folder):
    names = list(model.state_dict())
    for layer in model.model.layers:
        layer.self_attn.q_proj = LoraLayer(layer.self_attn.q_proj)
        layer.mlp.down_proj = LoraLayer(layer.mlp.down_proj)
    before = {name: value.clone() for name, value in model.state_dict().items()}
    weights = dict(policy_weights(model))
    assert sorted(weights) == sorted(names)
    with torch.autocast("cpu", torch.bfloat16):  # in which engines load a policy that trains in mixed precision
        assert all(torch.equal(weight, weights[name]) for name, weight in policy_weights(model))
    plain = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    ids = torch.tensor([[5, 9, 40, 41]])
    assert (plain(ids).logits - model(ids).logits).abs().max() > 1e-2
    plain.load_state_dict(weights)
    assert (plain(ids).logits - model(ids).logits).abs().max() < 1e-4
    assert all(torch.equal(value, before[name]) for name, value in model.state_dict().items())


@pytest.mark.parametrize(
    ("merged", "disabled", "active"), [(True, False, True), (False, True, True), (False, False, False)]
)
def test_adapters_that_do_not_act_are_not_added(model, merged, disabled, active):
    expected = model.model.layers[0].self_attn.q_proj.weight.clone()
    lora = LoraLayer(model.model.layers[0].self_attn.q_proj, ["default"] if active else ["another"])
    lora.merged, lora.disable_adapters = merged, disabled
    model.model.layers[0].self_attn.q_proj = lora
    assert torch.equal(dict(policy_weights(model))["model.layers.0.self_attn.q_proj.weight"], expected)


@pytest.mark.parametrize("wrapped", [True, False], ids=["get_peft_model", "add_adapter"])
def test_adapters_of_the_library(model, model_folder, wrapped):
    config = peft.LoraConfig(r=4, target_modules=["q_proj", "v_proj", "down_proj"], init_lora_weights=False)
    names = list(model.state_dict())
    if wrapped:
        model = peft.get_peft_model(model, config).eval()
    else:
        model.add_adapter(config)
    weights = dict(policy_weights(model))
    assert sorted(weights) == sorted(names)
    with torch.autocast("cpu", torch.bfloat16):  # in which engines load a policy that trains in mixed precision
        assert all(torch.equal(weight, weights[name]) for name, weight in policy_weights(model))
    plain = AutoModelForCausalLM.from_pretrained(model_folder, dtype=torch.float32)
    ids = torch.tensor([[5, 9, 40, 41]])
    assert (plain(ids).logits - model(ids).logits).abs().max() > 1e-2
    plain.load_state_dict(weights)
    assert (plain(ids).logits - model(ids).logits).abs().max() < 1e-4
