"""Curriculum: running pass rates, which prompts they skip, and what a checkpoint has of them."""

import pytest
import torch

from lightning_modules import Mixture
from lightning_modules.data.schemes import Curriculum, DynamicPruning
from lightning_modules.data.schemes.history import PromptHistory
from tests.lightning_modules.data.schemes.candidates import ALONE, Endless, context, known, prompts_alone
from tests.lightning_modules.training import BatchRecorder, RecordingEngine, fitted, small_data


def chosen(scheme, count, size=8, seed=0):
    return [one.index for one in scheme.candidates(count, Endless(size), context(size, seed=seed))]


def test_prompts_outside_the_band_are_skipped_and_unknown_ones_taken():
    scheme = Curriculum(low=0.25, high=0.75, exploration=0.0)
    known(scheme._rates, {0: 0.0, 1: 0.25, 2: 0.5, 4: 0.75, 5: 1.0, 6: 0.2})
    assert chosen(scheme, 5) == [1, 2, 3, 4, 7]
    assert chosen(scheme, 7) == [1, 2, 3, 4, 7, 1, 2]  # in the second pass


def test_a_share_of_the_others_is_sampled_nevertheless():
    scheme = Curriculum(exploration=0.2)
    known(scheme._rates, dict.fromkeys(range(7), 0.0))
    order = Endless(8)
    found = [one for _ in range(2000) for one in scheme.candidates(2, order, context())]
    explored = [one for one in found if one.index < 7]
    assert len(explored) / (order.position * 7 / 8) == pytest.approx(0.2, abs=0.02)
    assert {one.index for one in explored} == set(range(7))
    again = scheme.candidates(40, Endless(8), context())
    assert again == scheme.candidates(40, Endless(8), context())
    assert again != scheme.candidates(40, Endless(8), context(seed=1))


def test_a_data_set_without_enough_prompts_is_used_whatever_the_rates():
    scheme, order = Curriculum(exploration=0.0), Endless(8)
    known(scheme._rates, dict.fromkeys(range(8), 1.0))
    assert len(scheme.candidates(3, order, context())) == 3
    assert order.position < 8 * 6


def test_the_running_rate_is_an_exponential_average_of_prompts_of_the_data_set():
    history = PromptHistory(0.75)
    known(history, {3: 0.4})
    known(history, {3: 0.8, 5: 1.0})
    assert history.average(3) == pytest.approx(0.75 * 0.4 + 0.25 * 0.8)
    assert history.average(5) == 1.0
    assert history.average(4) is None
    history.add(prompts_alone([None]), torch.tensor([0.5]), ALONE)
    history.add(prompts_alone([7], scored=False), torch.tensor([0.5]), ALONE)
    assert len(history) == 2
    assert history.mean == pytest.approx((0.5 + 1.0) / 2)
    restored = PromptHistory(0.75)
    restored.load_state_dict(history.state_dict())
    assert restored.state_dict().keys() == {"indices", "averages"}
    assert [restored.average(index) for index in (3, 5)] == [history.average(index) for index in (3, 5)]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"low": 0.9, "high": 0.1}, r"`low` is 0\.9 and `high` is 0\.1; pass a band"),
        ({"exploration": 1.5}, r"`exploration` is 1\.5; pass a fraction, from 0 to 1"),
        ({"momentum": 1.0}, r"`momentum` is 1\.0; pass a fraction, from 0 to below 1"),
        ({"high": float("nan")}, "`high` is nan; pass a finite number"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        Curriculum(**arguments)


# In a training

DATASET = [{"prompt": f"{number} + {number}"} for number in range(8)]


def is_hard(prompt):
    return int(prompt.split()[0]) % 2 == 1


def reward_of_easy_prompts(completion, example):
    return 0.0 if is_hard(example["prompt"]) else 0.5


class ElsewhereEngine(RecordingEngine):
    concurrent = True


@pytest.mark.parametrize("overlap", [False, True])
@pytest.mark.filterwarnings("error:completions that were sampled ahead were not used")
def test_hard_prompts_are_sampled_once_and_then_skipped(tmp_path, model_folder, overlap):
    engine, recorder = ElsewhereEngine(), BatchRecorder()
    scheme = Curriculum(exploration=0.0)
    data = small_data(
        dataset=DATASET, reward=reward_of_easy_prompts, rollouts=engine, schemes=[scheme], overlap=overlap
    )
    run = fitted(tmp_path, model_folder, data=data, callbacks=[recorder], max_steps=4)
    sampled = [[run.module.policy.tokenizer.decode(prompt) for prompt in prompts] for prompts in engine.prompts]
    assert sorted(sampled[0] + sampled[1]) == sorted(example["prompt"] for example in DATASET)
    assert [len(prompts) for prompts in sampled] == [4, 4, 4, 4]
    assert not any(map(is_hard, sampled[2] + sampled[3]))
    last = recorder.metrics[-1]
    assert last["prompts/skipped"] > 0
    assert (last["curriculum/known"], last["curriculum/in_band"], last["curriculum/pass_rate"]) == (8, 0.5, 0.25)
    saved = run.data.state_dict()["buffer"]["stages"]["scheme_0"]
    assert torch.equal(saved["indices"].sort().values, torch.arange(8))


@pytest.mark.parametrize("scheme", [Curriculum(), DynamicPruning()])
def test_a_prompt_that_a_mixture_repeats_has_one_number(tmp_path, model_folder, scheme):
    dataset = Mixture([[{"prompt": "0 + 0"}], [{"prompt": f"1 + {number}"} for number in range(4)]], weights=[1, 1])
    assert len(dataset) == 8
    data = small_data(dataset=dataset, schemes=[scheme], prompts_per_rollout=8)
    fitted(tmp_path, model_folder, data=data)
    indices = scheme.state_dict()["indices"].tolist()
    assert sorted(dataset[index]["prompt"] for index in indices) == ["0 + 0", *(f"1 + {n}" for n in range(4))]
