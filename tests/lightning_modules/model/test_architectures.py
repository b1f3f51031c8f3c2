"""The table of architectures in the documentation: each row is what training, sampling and a plan find."""

import re
import warnings
from pathlib import Path

import pytest
import torch

from lightning_modules.model.layouts import PackedSequences
from lightning_modules.model.policy import Policy
from lightning_modules.model.probe import Probes
from lightning_modules.model.serving import serving_layout
from lightning_modules.planning.settings import TrainerSettings
from lightning_modules.planning.trial import tried_out
from lightning_modules.rollouts import SamplingParameters, TransformersEngine
from tests.lightning_modules.architectures import OPTIONS, small_config, small_model
from tests.lightning_modules.training import plain_log_prob_matrix

PAGE = Path(__file__).resolve().parents[3] / "docs" / "architectures.md"
ROWS = {
    cells[0].strip("`"): cells[1:]
    for line in PAGE.read_text(encoding="utf-8").splitlines()
    if line.startswith("| `") and len(cells := re.split(r" \| ", line.strip("| "))) == 4
}
# One of each kind; the others are tested with the slow ones.
FAST = {"qwen2", "qwen3_moe", "gpt_oss", "gpt2", "qwen3_5_text", "lfm2", "jamba", "mamba", "minimax", "bert"}
PROMPTS = [[5, 6, 7, 8, 9, 10], [11, 12], [13, 14, 15, 16]]


def plan_layout(name):
    settings = TrainerSettings.of({"accelerator": "cpu"})
    return tried_out(Policy("a/b"), small_config(name), TransformersEngine().try_policy, settings)[0]


def marked(names):
    return [pytest.param(name, marks=[] if name in FAST else [pytest.mark.slow]) for name in names]


def test_every_architecture_has_a_row():
    assert sorted(ROWS) == sorted(OPTIONS)


@pytest.mark.parametrize("name", marked(OPTIONS))
@pytest.mark.filterwarnings("ignore")
def test_a_row_says_what_training_and_plan_choose(name):
    layout, packed, _ = ROWS[name]
    model = small_model(name)
    assert Probes(model).of_layout(PackedSequences()).passes == (packed == "yes")
    choices = {
        "training": lambda: serving_layout(model),
        "plan": lambda: plan_layout(name),
    }
    for choose in choices.values():
        if layout == "refused":
            with pytest.raises(ValueError, match=f"{type(model).__name__}"):
                choose()
        else:
            assert f"`{type(choose()).__name__}`" == layout


@pytest.mark.parametrize("name", marked(OPTIONS))
def test_a_row_says_how_completions_are_sampled(name):
    """Those sampled have the log-probabilities of a plain forward pass over one row."""
    _, _, sampling = ROWS[name]
    model, engine = small_model(name), TransformersEngine()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        if sampling == "refused":
            with pytest.raises(ValueError, match="TransformersEngine, which cannot sample from BertLMHeadModel: its"):
                engine.load_policy(model)
            return
        engine.load_policy(model)
    said = [str(warning.message) for warning in caught if "TransformersEngine samples" in str(warning.message)]
    assert [("without a cache" in text) for text in said] == ([True] if sampling == "no cache" else [])
    stops = tuple(range(1, 300, 7))
    generated = engine.generate(PROMPTS, SamplingParameters(6, stops, samples_per_prompt=3, seed=1))
    assert len(generated.mask.sum(dim=-1).unique()) > 1  # rows left the batch at different times
    with torch.no_grad():
        expected = plain_log_prob_matrix(model, PROMPTS, generated)
    assert (generated.log_probs - expected)[generated.mask].abs().max() < 1e-3
