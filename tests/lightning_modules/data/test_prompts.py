"""Prompts of a run: templates, and long prompts that are left out of the order, of a resume and of evaluations."""

import logging

import pytest
import torch
from transformers import AutoTokenizer

from aggregate_po.recipes import gmpo
from lightning_modules import Mixture, PolicyModule, RolloutDataModule
from lightning_modules.callbacks.checkpoints import AtomicCheckpointIO, RunCheckpoint
from lightning_modules.data.schemes import SamplingScheme
from lightning_modules.prompts import PromptOrder
from tests.lightning_modules.training import RecordingEngine, copied, fitted, quiet_trainer, small_data

EXAMPLES = [{"prompt": f"{number}+" * (20 if number % 3 == 0 else 1)} for number in range(1, 16)]
SHORT = [example for example in EXAMPLES if len(example["prompt"]) < 20]


def run(folder, model_folder, dataset=EXAMPLES, limit=10, ckpt_path=None, max_steps=3, **options):
    """A run, and the prompts of its rollouts as texts."""
    engine = RecordingEngine()
    data = small_data(dataset=dataset, max_prompt_length=limit, rollouts=engine, updates_per_rollout=2, **options)
    trainer = {"enable_checkpointing": True, "plugins": [AtomicCheckpointIO()], "max_steps": max_steps}
    callbacks = [RunCheckpoint(str(folder / "checkpoints"))]
    made = fitted(folder, model_folder, data=data, ckpt_path=ckpt_path, callbacks=callbacks, **trainer)
    tokenizer = AutoTokenizer.from_pretrained(model_folder)
    return made, [tokenizer.decode(row) for rows in engine.prompts for row in rows]


def test_a_run_takes_the_short_prompts_in_their_order_and_goes_on_in_it(tmp_path, model_folder):
    made, prompts = run(tmp_path, model_folder)
    order = PromptOrder(len(SHORT), 0).slice(0, 12)
    expected = [SHORT[index]["prompt"] for index in order]
    assert prompts == expected[:8]
    _, prompts = run(tmp_path, model_folder, ckpt_path="last", max_steps=5)
    assert prompts == expected[8:]
    alone, _ = run(tmp_path / "alone", model_folder, SHORT, limit=None)
    assert all(
        torch.equal(found, copied(alone.module.model)[name]) for name, found in copied(made.module.model).items()
    )


def test_a_mixture_goes_on_after_a_resume_where_it_was(tmp_path, model_folder):
    mixed = Mixture([SHORT[:4], SHORT[4:6]], [1, 1])
    expected = [mixed[index]["prompt"] for index in PromptOrder(8, 0).slice(0, 12)]
    _, prompts = run(tmp_path, model_folder, Mixture([SHORT[:4], SHORT[4:6]], [1, 1]))
    assert prompts == expected[:8]
    _, prompts = run(tmp_path, model_folder, mixed, ckpt_path="last", max_steps=5)
    assert prompts == expected[8:]


def test_sampling_schemes_know_the_indices_and_the_number_of_short_prompts(tmp_path, model_folder):
    """They may make a prompt longer than those of the data set."""
    seen = []

    class Noted(SamplingScheme):
        def candidates(self, count, below, context):
            assert context.size == len(SHORT)
            return below(count)

        def groups(self, count, below, rollout):
            groups = below(count)
            seen.extend(prompt.index for prompt in groups.prompts)
            example = groups.prompts[0].example
            assert rollout.prompt_of({**example, "prompt": example["prompt"] * 9}).token_ids
            return groups

    run(tmp_path, model_folder, schemes=[Noted()], max_steps=3)
    indices = [EXAMPLES.index(example) for example in SHORT]
    assert seen == PromptOrder(indices, 0).slice(0, 8)


def test_held_out_prompts_are_left_out_too(tmp_path, model_folder, caplog):
    caplog.set_level(logging.INFO, logger="lightning.pytorch.utilities.rank_zero")
    engine = RecordingEngine()
    data = small_data(validation=EXAMPLES, max_prompt_length=10, rollouts=engine, evaluations=["greedy"])
    quiet_trainer(tmp_path).validate(PolicyModule(model_folder, gmpo()), data, verbose=False)
    assert len(engine.prompts[0]) == len(SHORT)
    (line,) = [line for line in caplog.messages if "max_prompt_length" in line]
    assert line.startswith("`validation`: 5 of 15 prompts (33.33%) have more than `max_prompt_length` = 10 tokens")


@pytest.mark.parametrize("name", ["dataset", "validation"])
def test_a_maximum_length_that_no_prompt_keeps_is_refused(tmp_path, model_folder, name):
    data = small_data(**{name: [{"prompt": "long prompt"}] * 4, "max_prompt_length": 10})
    if name == "validation":
        data.dataset = SHORT
    with pytest.raises(ValueError, match=f"`max_prompt_length` is 10, but all 4 prompts of `{name}` are longer; raise"):
        quiet_trainer(tmp_path).fit(PolicyModule(model_folder, gmpo()), data)


def test_the_maximum_length_is_positive():
    with pytest.raises(ValueError, match="`max_prompt_length` is 0; pass a whole number, 1 or more"):
        small_data(max_prompt_length=0)


def test_a_template_reaches_the_engine_and_no_reward(tmp_path, model_folder):
    seen = []

    def reward(completion, example):
        seen.append(example["prompt"])
        return float(len(completion))

    engine = RecordingEngine()
    data = RolloutDataModule(
        SHORT, reward, prompt_template="<{prompt}>", rollouts=engine, group_size=2, prompts_per_rollout=2,
        max_completion_length=4,
    )  # fmt: skip
    fitted(tmp_path, model_folder, data=data)
    decode = AutoTokenizer.from_pretrained(model_folder).decode
    assert [decode(row) for row in engine.prompts[0]] == [f"<{prompt}>" for prompt in seen[::2]]
