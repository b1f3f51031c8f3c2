"""Inner epochs end when the ratios have moved too far, and what is dropped is counted."""

import math

import pytest
import torch
from lightning import Callback

from aggregate_po.recipes import espo
from lightning_modules import PolicyModule, RatioDeviationStop
from lightning_modules.data.buffer import RolloutBuffer
from tests.lightning_modules.data.test_buffer import Rollouts, label
from tests.lightning_modules.training import RecordingEngine, fitted, plain_log_prob_matrix, small_data


def test_an_inner_epoch_can_be_looked_at_before_it_begins():
    buffer = RolloutBuffer(Rollouts(6), 6, inner_epochs=3)
    assert buffer.next_inner_epoch() == []
    iterator = iter(buffer)
    next(iterator)
    assert buffer.next_inner_epoch() == []
    next(iterator)
    assert [label(batch) for batch in buffer.next_inner_epoch()] == [(0, 2), (0, 3)]
    assert [label(batch) for batch in iterator] == [(0, 2), (0, 3), (0, 4), (0, 5)]
    assert buffer.next_inner_epoch() == []


def test_the_rest_of_a_rollout_can_be_dropped():
    rollouts = Rollouts(6)
    buffer = RolloutBuffer(rollouts, 6, inner_epochs=3)
    seen = []
    for batch in buffer:
        seen.append(label(batch))
        if len(seen) == 2:
            assert buffer.end_rollout() == 4
    assert seen == [(0, 0), (0, 1)]
    assert [label(batch) for batch in buffer] == [(1, place) for place in range(6)]
    assert buffer.end_rollout() == 0


class Steps(Callback):
    """Records the rollout of each optimizer step, by the count of the engine, and the metrics of the callback."""

    def __init__(self, engine):
        self.engine, self.rollouts, self.metrics = engine, [], []

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch.closes_update:
            self.rollouts.append(len(self.engine.generated))
            self.metrics.append(
                {
                    name: float(value)
                    for name, value in trainer.callback_metrics.items()
                    if name in ("ratio/deviation", "dropped_updates")
                }
            )


def trained(folder, model_folder, bound, learning_rate=0.0, steps=8, **options):
    """Rollouts of three inner epochs of two updates each."""
    engine = RecordingEngine()
    data = small_data(rollouts=engine, updates_per_rollout=2, epochs_per_rollout=3)
    module = PolicyModule(model_folder, espo(), learning_rate=learning_rate or 1e-12, warmup_steps=0)
    stop, counted = RatioDeviationStop(bound), Steps(engine)
    run = fitted(folder, model_folder, data=data, module=module, max_steps=steps, callbacks=[stop, counted], **options)
    return run, stop, counted


def test_an_unmoved_policy_goes_through_all_inner_epochs(tmp_path, model_folder):
    _, stop, counted = trained(tmp_path, model_folder, bound=0.01)
    assert counted.rollouts == [1] * 6 + [2] * 2
    assert stop.dropped_updates == 0
    assert counted.metrics[1]["ratio/deviation"] < 1e-5


@pytest.mark.parametrize("accumulate", [1, 2])
def test_a_policy_that_moved_too_far_leaves_the_rollout(tmp_path, model_folder, accumulate):
    _, stop, counted = trained(tmp_path, model_folder, 0.01, 1e-2, steps=6, accumulate_grad_batches=accumulate)
    assert counted.rollouts == [1, 1, 2, 2, 3, 3]
    assert stop.dropped_updates == 12
    assert counted.metrics[-1]["dropped_updates"] == 12


def test_the_deviation_is_that_of_the_whole_rollout_under_the_policy_of_the_moment(tmp_path, model_folder):
    run, _, counted = trained(tmp_path, model_folder, bound=100.0, learning_rate=1e-3, steps=2)
    engine = run.data.rollouts
    (generated,), (prompts,) = engine.generated, engine.prompts
    with torch.no_grad():
        log_ratio = plain_log_prob_matrix(run.module.model, prompts, generated) - generated.log_probs
    expected = (log_ratio.exp() - 1).abs()[generated.mask].mean()
    assert 0.001 < expected < 10
    # The callback of this test runs after the one that measures.
    assert counted.metrics[-1]["ratio/deviation"] == pytest.approx(float(expected), rel=1e-3)


def test_the_deviation_stands_only_where_it_was_measured(tmp_path, model_folder):
    _, _, counted = trained(tmp_path, model_folder, bound=0.01)
    measured = [not math.isnan(metrics["ratio/deviation"]) for metrics in counted.metrics]
    assert measured == [False, True, False, True, False, False, False, True]
    assert all("dropped_updates" in metrics for metrics in counted.metrics)


@pytest.mark.parametrize(("epochs", "warnings"), [(1, 1), (2, 0)])
def test_a_single_epoch_gives_nothing_to_stop_and_a_warning(tmp_path, model_folder, recwarn, epochs, warnings):
    data = small_data(epochs_per_rollout=epochs)
    fitted(tmp_path, model_folder, data=data, max_steps=3, callbacks=[RatioDeviationStop()])
    messages = [str(one.message) for one in recwarn]
    assert sum(message.startswith("`epochs_per_rollout` is 1, so Ratio") for message in messages) == warnings


def test_the_count_is_part_of_the_checkpoint():
    stop = RatioDeviationStop(0.3)
    stop.dropped_updates = 5
    other = RatioDeviationStop(0.3)
    other.load_state_dict(stop.state_dict())
    assert other.dropped_updates == 5


def test_a_bound_that_stops_everything_is_refused():
    with pytest.raises(ValueError, match=r"^`bound` is 0.0; pass a positive mean of |r - 1|"):
        RatioDeviationStop(0.0)
