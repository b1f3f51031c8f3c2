"""Policies of other architectures in a whole training: chosen, refused, and exported as they were."""

import json
import warnings

import pytest
import torch
from transformers import AutoConfig, AutoModelForCausalLM

from aggregate_po.recipes import gmpo
from lightning_modules import PolicyModule
from lightning_modules.model.layouts import PackedGroups, PackedSequences, PaddedSequences, SharedPrompts
from lightning_modules.planning.job import job_plan
from lightning_modules.planning.settings import TrainerSettings
from tests.lightning_modules.architectures import small_model
from tests.lightning_modules.model.test_rope import LONG
from tests.lightning_modules.training import RecordingEngine, fitted, small_data

pytestmark = pytest.mark.filterwarnings("ignore")
FLAGS = {"output_router_logits": True, "output_hidden_states": True, "output_attentions": True, "return_dict": False}


@pytest.fixture
def saved(tmp_path, tokenizer):
    """Returns the folder of a small model with the tokenizer of the tests."""

    def save(kind, flags=(), **options):
        folder = tmp_path / "model"
        small_model(kind, vocab_size=len(tokenizer), **options).save_pretrained(folder)
        tokenizer.save_pretrained(folder)
        config = json.loads((folder / "config.json").read_text())
        (folder / "config.json").write_text(json.dumps({**config, **dict(flags)}))
        return str(folder)

    return save


@pytest.mark.parametrize(
    ("kind", "layout"),
    [
        ("qwen2", PackedGroups),
        ("qwen3_5_text", PaddedSequences),
        ("lfm2", SharedPrompts),
        ("minimax", PaddedSequences),
    ],
)
@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed"])
def test_training_and_plan_choose_the_same_layout_and_ratios_begin_at_one(tmp_path, saved, kind, layout, precision):
    folder = saved(kind)
    run = fitted(tmp_path, folder, precision=precision)
    assert type(run.module.policy.layout) is layout
    assert run.metrics["ratio/max"].item() == pytest.approx(1, abs=1e-4 if precision == "32-true" else 0.5)
    assert run.metrics["grad_norm"].item() > 0
    settings = TrainerSettings.of({"accelerator": "cpu", "precision": precision})
    plan = job_plan(PolicyModule(folder, gmpo()), small_data(), settings)
    assert (plan.layout, plan.layout_from) == (layout.__name__, "tried out on a small random model")
    assert plan.unknown == () or kind == "minimax"  # grouped matrices of experts have no size without data


@pytest.mark.parametrize(
    ("kind", "layout", "said"),
    [
        ("qwen3_5_text", SharedPrompts(), "`layout` is SharedPrompts, which fails with"),
        ("lfm2", PackedSequences(), "`layout` is PackedSequences, which gives log-probabilities"),
        ("bert", None, r"BertLMHeadModel"),
    ],
)
def test_training_and_plan_refuse_the_same(tmp_path, saved, kind, layout, said):
    folder = saved(kind)
    with pytest.raises(ValueError, match=said):
        fitted(tmp_path, folder, module=PolicyModule(folder, gmpo(), layout=layout))
    with pytest.raises(ValueError, match=said):
        job_plan(PolicyModule(folder, gmpo(), layout=layout), small_data(), TrainerSettings.of({"accelerator": "cpu"}))


def test_a_large_model_is_planned_without_being_tried_out(saved, monkeypatch):
    monkeypatch.setattr("lightning_modules.planning.trial._MOST_PARAMETERS", 1000)
    module = PolicyModule(saved("qwen2"), gmpo())
    plan = job_plan(module, small_data(), TrainerSettings.of({"accelerator": "cpu"}))
    assert (plan.layout, plan.layout_from) == ("SharedPrompts", "not tried out, the model is large")


def test_output_flags_are_exported_as_they_were(tmp_path, saved):
    folder = saved("qwen3_moe", flags=FLAGS)
    run = fitted(tmp_path, folder)
    run.module.policy.save_pretrained(tmp_path / "exported")
    config = AutoConfig.from_pretrained(tmp_path / "exported")
    # A configuration with this one cannot be saved, unless the attention is eager.
    assert {name: getattr(config, name) for name in FLAGS} == {**FLAGS, "output_attentions": False}


@pytest.mark.parametrize("limit", [None, 64])
def test_rotary_factors_are_those_of_the_longest_sequence_of_the_run(tmp_path, saved, limit):
    """Prompts of the default task have about 12 tokens, of which 16 are unscaled."""
    folder = saved("phi3", rope_parameters=LONG, original_max_position_embeddings=16)
    engine = RecordingEngine()
    engine.max_model_length = limit
    data = small_data(rollouts=engine)
    run = fitted(tmp_path, folder, data=data)
    longest = limit or max(len(prompt.token_ids) for prompt in map(data.sampler.prompt_of, data.dataset)) + 6
    assert longest > 16
    assert run.metrics["ratio/max"].item() == pytest.approx(1, abs=1e-4)
    rotary = run.module.model.model.rotary_emb
    states = torch.zeros(1, 1, 32)
    assert rotary(states, torch.tensor([[longest - 1]]))[0].shape == (1, 1, 8)
    with pytest.raises(ValueError, match=f"has {longest + 1} tokens"):
        rotary(states, torch.tensor([[longest]]))


def test_a_reference_has_the_same_factors(tmp_path, saved):
    folder = saved("phi3", rope_parameters=LONG, original_max_position_embeddings=16)
    run = fitted(tmp_path, folder, data=small_data(kl_in_reward=0.1))
    assert "forward" in vars(run.module.policy.reference.model.rotary_emb)
    assert AutoModelForCausalLM.from_pretrained(folder).model.rotary_emb.rope_type == "longrope"


def test_the_default_says_nothing(tmp_path, model_folder):
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        fitted(tmp_path, model_folder)
    assert [str(w.message) for w in caught if "layout" in str(w.message) or "samples" in str(w.message)] == []
