"""Flags in the configuration of a model that ask for further outputs: they change nothing, and are kept."""

import pytest
import torch

from lightning_modules.model.layouts import PackedGroups, PackedSequences, PaddedSequences, SharedPrompts
from lightning_modules.model.outputs import logits_only
from lightning_modules.model.probe import Probe
from lightning_modules.rollouts import SamplingParameters, TransformersEngine
from lightning_modules.rollouts.weight_check import policy_log_probs
from tests.lightning_modules.architectures import small_model

FLAGS = [
    {"output_router_logits": True},
    {"output_attentions": True, "attn_implementation": "eager"},
    {"output_hidden_states": True},
    {"return_dict": False},
    {"use_cache": False},
    {
        "output_router_logits": True,
        "output_hidden_states": True,
        "return_dict": False,
        "use_cache": False,
        "output_attentions": True,
        "attn_implementation": "eager",
    },
]


@pytest.mark.parametrize("flags", FLAGS, ids=lambda flags: ", ".join(flags))
@pytest.mark.parametrize("kind", ["qwen3_moe", "mixtral", "olmoe", "llama", "lfm2"])
def test_flags_change_neither_sampling_nor_log_probs(kind, flags):
    plain, flagged = small_model(kind, attn_implementation=flags.get("attn_implementation", "sdpa")), None
    flagged = small_model(kind, **flags)
    config = flagged.config.to_dict()
    completions = []
    for model in (plain, flagged):
        engine = TransformersEngine()
        engine.load_policy(model)
        completions.append(engine.generate([[5, 6, 7], [8, 9]], SamplingParameters(4, (1,), samples_per_prompt=2)))
    assert torch.equal(completions[0].token_ids, completions[1].token_ids)
    assert torch.equal(completions[0].log_probs, completions[1].log_probs)
    first, second = Probe(plain), Probe(flagged)
    assert torch.equal(first.log_probs, second.log_probs)
    for layout in (PackedGroups(), SharedPrompts(), PaddedSequences(), PackedSequences()):
        assert first.of_layout(layout) == second.of_layout(layout)
    assert torch.equal(policy_log_probs(plain, [5, 6, 7])[0], policy_log_probs(flagged, [5, 6, 7])[0])
    assert flagged.config.to_dict() == config  # with which the model is exported


def fail_with(config):
    assert (config.output_hidden_states, config.return_dict) == (False, True)
    raise KeyError


def test_flags_are_restored_after_an_error():
    model = small_model("llama", output_hidden_states=True, return_dict=False)
    with pytest.raises(KeyError), logits_only(model):
        fail_with(model.config)
    assert model.config.output_hidden_states
    assert not model.config.return_dict
