"""Rollouts generated ahead: by a policy one rollout old, from the same prompts, and never at the expense of another."""

import copy
import threading
import time

import pytest
import torch
from lightning import Callback

from aggregate_po import TokenCorrection
from aggregate_po.recipes import grpo
from lightning_modules import PolicyModule
from lightning_modules.data.schemes import Replay
from tests.lightning_modules.training import (
    BatchRecorder,
    RecordingEngine,
    copied,
    fitted,
    largest_difference,
    plain_log_prob_matrix,
    small_data,
)


class ElsewhereEngine(RecordingEngine):
    """Samples from a copy of the policy, as an out-of-process engine does, and records its threads."""

    concurrent = True

    def __init__(self, fail_at=None):
        super().__init__()
        self.fail_at, self.loaded, self.threads, self.busy = fail_at, [], [], threading.Lock()

    def load_policy(self, model):
        assert self.busy.acquire(blocking=False), "loaded while it was drawing"
        self.busy.release()
        super().load_policy(copy.deepcopy(model))
        self.loaded.append(copied(self._model))

    def generate(self, prompts, sampling):
        with self.busy:
            self.threads.append(threading.current_thread() is threading.main_thread())
            if not self.threads[-1]:
                time.sleep(0.2)  # so that training is ahead of it
            if len(self.generated) == self.fail_at:
                raise ConnectionError("the engine is gone")
            return super().generate(prompts, sampling)


class Staleness(Callback):
    """The parameters before each update, and the staleness that is logged with it."""

    def __init__(self):
        self.parameters, self.logged = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.parameters.append(copied(pl_module.model))

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        self.logged.append(trainer.callback_metrics["rollout/staleness"].item())


def overlapped(tmp_path, model_folder, steps, engine=None, overlap=True, ckpt_path=None, **options):
    engine, staleness, recorder = engine or ElsewhereEngine(), Staleness(), BatchRecorder()
    data = small_data(rollouts=engine, updates_per_rollout=2, overlap=overlap, **options)
    module = PolicyModule(model_folder, grpo(), learning_rate=1e-2, warmup_steps=0)
    callbacks = [staleness, recorder]
    run = fitted(
        tmp_path, model_folder, data=data, module=module, max_steps=steps, callbacks=callbacks, ckpt_path=ckpt_path
    )
    return run, engine, staleness, recorder


def test_each_rollout_after_the_first_is_generated_by_the_policy_of_the_rollout_before(tmp_path, model_folder):
    _, engine, staleness, _ = overlapped(tmp_path, model_folder, steps=6)
    assert len(engine.generated) == 3
    assert engine.threads == [True, False, False]
    assert staleness.logged == [0, 0, 2, 2, 2, 2]
    for rollout, step in enumerate([0, 0, 2]):
        assert largest_difference(engine.loaded[rollout], staleness.parameters[step]) == 0
    assert largest_difference(staleness.parameters[0], staleness.parameters[2]) > 1e-3


def test_replayed_groups_are_no_older_than_allowed(tmp_path, model_folder):
    """Groups are sampled two steps ahead, so those of the rollout before are four steps old."""
    some_signal.calls = 0
    options = {"schemes": [Replay(max_age=2)], "reward": some_signal}
    _, _, staleness, recorder = overlapped(tmp_path, model_folder, steps=8, **options)
    assert staleness.logged == [0, 0, 2, 2, 2, 2, 2, 2]
    assert [metrics["replay/age"] for metrics in recorder.metrics[::2]] == [0, 2, 0, 0]


def some_signal(completion, example):
    """One in four is right, in three groups of four."""
    some_signal.calls += 1
    return float(some_signal.calls % 4 == 0 and (some_signal.calls // 4) % 4 != 0)


def test_the_prompts_are_those_of_a_run_without_overlap(tmp_path, model_folder):
    _, ahead, _, _ = overlapped(tmp_path / "ahead", model_folder, steps=6)
    _, plain, staleness, _ = overlapped(tmp_path / "plain", model_folder, steps=6, overlap=False)
    assert ahead.prompts == plain.prompts
    assert [sampling.seed for sampling in ahead.sampling] == [sampling.seed for sampling in plain.sampling]
    assert plain.threads == [True] * 3
    assert staleness.logged == [0] * 6


def test_stale_rollouts_are_corrected_like_any_other_mismatch(tmp_path, model_folder):
    """The trainer's log-probabilities are those of the policy when the rollout is taken up."""
    options = {"old_log_probs": "trainer", "correction": TokenCorrection(2.0)}
    run, engine, staleness, recorder = overlapped(tmp_path, model_folder, steps=4, **options)
    generated, prompts = engine.generated[1], engine.prompts[1]
    run.module.model.load_state_dict(staleness.parameters[2], strict=False)
    with torch.no_grad():
        current = plain_log_prob_matrix(run.module.model, prompts, generated)
    weights = torch.where(generated.mask, (current - generated.log_probs).clamp(max=torch.tensor(2.0).log()), 0)
    assert weights.abs().max() > 1e-2
    batches = recorder.batches[2:]
    trained = torch.cat([batch.policy.correction.log_token[batch.policy.response_mask] for batch in batches])
    everything = weights[generated.mask]
    assert len(trained) > 0
    distance = (trained.double().unsqueeze(-1) - everything).abs().amin(dim=-1)
    assert distance.max() < 1e-4
    assert run.metrics["sampling/sampling_logp_difference/max"] > 1e-2


class NumberedEngine(ElsewhereEngine):
    """Says how many policies it was given."""

    def metrics(self):
        return {"rollout/weight_version": len(self.loaded)}


class Measuring(Callback):
    """Uses the engine, with newer weights, while a rollout of older ones waits to be trained on."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 2:
            sampler = trainer.datamodule.sampler
            sampler.sample([sampler.prompt_of({"prompt": "1 + 1"})], temperature=0.0, seed=0)


def test_what_is_logged_of_the_engine_is_from_when_it_drew(tmp_path, model_folder):
    engine, recorder = NumberedEngine(), BatchRecorder()
    data = small_data(rollouts=engine, overlap=True)
    fitted(tmp_path, model_folder, data=data, max_steps=3, callbacks=[Measuring(), recorder])
    assert [metrics["rollout/weight_version"] for metrics in recorder.metrics] == [1, 2, 3]
    assert len(engine.loaded) == 4


def test_no_rollout_is_generated_that_nobody_would_train_on(tmp_path, model_folder):
    _, engine, _, _ = overlapped(tmp_path, model_folder, steps=2)
    assert len(engine.generated) == 1
    assert "rollout" not in {thread.name for thread in threading.enumerate()}


def test_no_rollout_is_generated_beyond_the_last_epoch(tmp_path, model_folder):
    engine = ElsewhereEngine()
    data = small_data(rollouts=engine, overlap=True)
    fitted(tmp_path, model_folder, data=data, max_steps=-1, max_epochs=2)
    assert len(engine.prompts) == 2


def failing_reward(completion, example):
    raise RuntimeError("no verdict")


@pytest.mark.parametrize("overlap", [False, True])
def test_a_failure_closes_the_engine_and_ends_its_thread(tmp_path, model_folder, overlap):
    class ClosedEngine(ElsewhereEngine):
        closed = 0

        def close(self):
            self.closed += 1

    engine = ClosedEngine(fail_at=1 if overlap else None)
    reward = {} if overlap else {"reward": failing_reward}
    with pytest.raises((RuntimeError, ConnectionError)):
        fitted(tmp_path, model_folder, data=small_data(rollouts=engine, overlap=overlap, **reward), max_steps=4)
    assert engine.closed == 1
    assert "rollout" not in {thread.name for thread in threading.enumerate()}


def test_what_was_not_set_up_can_be_torn_down():
    small_data().teardown("fit")


def test_a_resumed_run_consumes_the_prompts_that_remain(tmp_path, model_folder):
    _, undisturbed, _, _ = overlapped(tmp_path / "undisturbed", model_folder, steps=8)
    half, first, _, _ = overlapped(tmp_path / "half", model_folder, steps=3)
    half.trainer.save_checkpoint(tmp_path / "half.ckpt")
    _, second, staleness, _ = overlapped(tmp_path / "rest", model_folder, 8, ckpt_path=tmp_path / "half.ckpt")
    assert first.prompts == undisturbed.prompts[:2]
    assert second.prompts == undisturbed.prompts[2:]
    # What was under way is not in the checkpoint: it is generated again, by the current policy.
    assert staleness.logged == [2, 0, 0, 2, 2]


def test_a_failure_in_training_waits_for_no_server(tmp_path, model_folder):
    """The run ends while the engine still generates, in a thread that does not keep the process alive."""

    class HangingEngine(ElsewhereEngine):
        begun, over, rollout_thread = threading.Event(), threading.Event(), None

        def generate(self, prompts, sampling):
            if threading.current_thread() is not threading.main_thread():
                HangingEngine.rollout_thread = threading.current_thread()
                self.begun.set()
                assert self.over.wait(60)
            return super().generate(prompts, sampling)

    class Interrupt(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            assert HangingEngine.begun.wait(60)
            raise RuntimeError("stopped by hand")

    engine = HangingEngine()
    data = small_data(rollouts=engine, updates_per_rollout=2, overlap=True)
    with pytest.raises(RuntimeError, match="stopped by hand"):
        fitted(tmp_path, model_folder, grpo(), data=data, max_steps=4, callbacks=[Interrupt()])
    thread = HangingEngine.rollout_thread
    assert (thread.is_alive(), thread.daemon, engine.over.is_set()) == (True, True, False)
    engine.over.set()
    thread.join()


def test_a_failure_in_the_background_ends_the_run(tmp_path, model_folder):
    with pytest.raises(ConnectionError, match="the engine is gone"):
        overlapped(tmp_path, model_folder, steps=6, engine=ElsewhereEngine(fail_at=1))


def test_other_uses_of_the_engine_wait_for_it(tmp_path, model_folder):
    """Held-out prompts in the middle of a rollout; the engine refuses to be loaded while it samples."""

    class Evaluate(Callback):
        def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
            sampler = trainer.datamodule.sampler
            sampler.sample([sampler.prompt_of({"prompt": "What is 1 + 2?"})], 1.0, seed=0)

    engine = ElsewhereEngine()
    data = small_data(rollouts=engine, updates_per_rollout=2, overlap=True)
    fitted(tmp_path, model_folder, grpo(), data=data, max_steps=4, callbacks=[Evaluate()])
    assert len(engine.generated) == 2 + 4


def test_an_engine_in_the_training_process_cannot_overlap():
    with pytest.raises(ValueError, match=r"^`overlap` is True, but TransformersEngine generates in the training"):
        small_data(overlap=True)
