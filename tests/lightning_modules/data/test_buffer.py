"""The buffer makes a rollout when the last one is used up, and not before."""

from itertools import islice

import pytest
import torch
from lightning import Callback

from aggregate_po import PolicyBatch
from aggregate_po.recipes import gmpo
from lightning_modules import PolicyModule
from lightning_modules.batch import RolloutBatch, left_padded
from lightning_modules.data.buffer import PreparedRollout, RolloutBuffer, saved_position
from lightning_modules.data.loader import RolloutLoader
from lightning_modules.prompts import PromptStream
from tests.lightning_modules.training import RecordingEngine, copied, fitted, largest_difference, small_data


class Rollouts:
    """Rollouts of `size` batches that carry their number and their place; counts the calls."""

    def __init__(self, size):
        self.size, self.calls = size, []

    def __call__(self, number):
        self.calls.append(number)
        batches = [labeled_batch(number, place) for place in range(self.size)]
        return PreparedRollout(batches, {"number": number})


def labeled_batch(number, place):
    prompt_ids, prompt_mask = left_padded([[number], [place]])
    mask = torch.ones(2, 1, dtype=torch.bool)
    policy = PolicyBatch(torch.zeros(2, 1), mask, torch.zeros(2))
    return RolloutBatch(prompt_ids, prompt_mask, torch.tensor([0, 1]), torch.ones(2, 1).long(), mask, policy)


def label(batch):
    return tuple(batch.prompt_ids.flatten().tolist())


def test_length_is_that_of_a_rollout():
    assert len(RolloutLoader(RolloutBuffer(Rollouts(3), 3))) == 3


def test_the_rest_of_an_update_ends_with_its_last_micro_batch():
    def rollout(number):
        batches = [labeled_batch(number, place).replace(closes_update=place in (1, 4)) for place in range(5)]
        return PreparedRollout(batches)

    loader = RolloutLoader(RolloutBuffer(rollout, 5))
    assert loader.rest_of_update == []
    rest = [[label(batch)[1] for batch in loader.rest_of_update] for _ in loader]
    assert rest == [[1], [], [3, 4], [4], []]
    assert loader.rest_of_update == []


def test_a_rollout_is_made_when_the_last_one_is_used_up():
    rollouts = Rollouts(3)
    buffer = RolloutBuffer(rollouts, 3)
    iterator = iter(buffer)
    assert rollouts.calls == []
    assert label(next(iterator)) == (0, 0)
    assert rollouts.calls == [0]
    assert [label(batch) for batch in islice(iterator, 2)] == [(0, 1), (0, 2)]
    assert rollouts.calls == [0]
    assert list(iterator) == []
    assert rollouts.calls == [0]
    assert [label(batch) for batch in buffer] == [(1, 0), (1, 1), (1, 2)]
    assert rollouts.calls == [0, 1]


def test_a_rollout_that_was_left_is_gone_on_with():
    rollouts = Rollouts(3)
    buffer = RolloutBuffer(rollouts, 3)
    next(iter(buffer))
    assert [label(batch) for batch in buffer] == [(0, 1), (0, 2)]
    assert rollouts.calls == [0]


@pytest.mark.parametrize("taken", range(7))
def test_state_resumes_with_exactly_the_batches_that_remain(taken):
    expected = [(number, place) for number in range(3) for place in range(3)]
    buffer = RolloutBuffer(Rollouts(3), 3)
    seen = []
    while len(seen) < taken:
        seen += [label(batch) for batch in islice(buffer, taken - len(seen))]
    again = Rollouts(3)
    resumed = RolloutBuffer(again, 3)
    resumed.load_state_dict(buffer.state_dict())
    while len(seen) < len(expected):
        seen += [label(batch) for batch in resumed]
    assert seen == expected
    assert again.calls == [number for number in range(3) if 3 * number >= taken]


def test_state_does_not_change_with_the_loader():
    buffer = RolloutBuffer(Rollouts(3), 3)
    iterator = iter(buffer)
    next(iterator)
    state = buffer.state_dict()
    list(iterator)
    list(buffer)
    resumed = RolloutBuffer(Rollouts(3), 3)
    resumed.load_state_dict(state)
    assert [label(batch) for batch in resumed] == [(0, 1), (0, 2)]


def test_metrics_of_the_rollout_stay_with_the_loader_and_its_state():
    buffer = RolloutBuffer(Rollouts(3), 3)
    assert buffer.metrics == {}
    list(buffer)
    next(iter(buffer))
    assert buffer.metrics == {"number": 1}
    assert not any("metrics" in batch for batches in buffer.state_dict()["left"] for batch in batches)
    resumed = RolloutBuffer(Rollouts(3), 3)
    resumed.load_state_dict(buffer.state_dict())
    assert resumed.metrics == {"number": 1}


def test_a_state_of_0_1_0_is_understood():
    """Batches of an old checkpoint have the metrics of their rollout, and there are no stages."""
    buffer = RolloutBuffer(Rollouts(3), 3)
    next(iter(buffer))
    state = buffer.state_dict()
    old = {
        "rollouts": state["rollouts"],
        "left": [[{**batch, "metrics": {"reward": 0.5}} for batch in batches] for batches in state["left"]],
    }
    resumed = RolloutBuffer(Rollouts(3), 3, stages={"prompts": PromptStream([], None, None)})
    resumed.load_state_dict(old)
    assert [label(batch) for batch in resumed] == [(0, 1), (0, 2)]
    assert resumed.metrics == {"reward": 0.5}
    assert "metrics" in old["left"][0][0]


def checkpoint_of(step, **states):
    loops = {"fit_loop": {"state_dict": {}}}
    return {"global_step": step, "loops": loops, "callbacks": {}, **states}


def test_a_position_saved_by_a_data_module_of_another_class_is_refused():
    """Lightning stores and restores its state under the name of its class."""
    buffer = RolloutBuffer(Rollouts(4), 4)
    next(iter(buffer))
    saved = checkpoint_of(3, RolloutDataModule={"buffer": buffer.state_dict()})
    assert saved_position(saved, "RolloutDataModule", buffer) == (0, 1)
    message = "`ckpt_path` holds the rollouts of the data module RolloutDataModule, and none of Mine, .* the same name"
    with pytest.raises(ValueError, match=message):
        saved_position(saved, "Mine", buffer)
    with pytest.raises(ValueError, match="holds no rollouts"):
        saved_position(checkpoint_of(3), "Mine", buffer)
    assert saved_position(checkpoint_of(0), "Mine", buffer) == (0, 0)


class WeightsByStep(Callback):
    """The parameters after each optimizer step."""

    def __init__(self):
        self.weights = {}

    def on_train_start(self, trainer, pl_module):
        self.weights[0] = copied(pl_module.model)

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.weights[trainer.global_step] = copied(pl_module.model)


@pytest.mark.parametrize(("updates", "epochs", "accumulate"), [(1, 1, 1), (2, 1, 1), (2, 2, 3)])
def test_each_rollout_is_made_with_the_newest_weights(tmp_path, model_folder, updates, epochs, accumulate):
    used = []

    class Engine(RecordingEngine):
        def load_policy(self, model):
            super().load_policy(model)
            used.append((data.trainer.global_step, copied(model)))

    data = small_data(rollouts=Engine(), updates_per_rollout=updates, epochs_per_rollout=epochs)
    recorder = WeightsByStep()
    module = PolicyModule(model_folder, gmpo(), learning_rate=1e-2, warmup_steps=0)
    steps = 3 * updates * epochs
    options = {"max_steps": steps, "accumulate_grad_batches": accumulate, "callbacks": [recorder]}
    fitted(tmp_path, model_folder, data=data, module=module, **options)
    assert [step for step, _ in used] == [0, steps // 3, 2 * steps // 3]
    for step, weights in used:
        assert largest_difference(weights, recorder.weights[step]) == 0
        assert step == 0 or largest_difference(weights, recorder.weights[step - 1]) > 1e-3
