"""A checkpoint that any hook has saved resumes as the run that was not interrupted, bit for bit."""

from datetime import timedelta

import pytest
import torch
from lightning import Callback
from lightning.pytorch.callbacks import EarlyStopping, ModelCheckpoint

from aggregate_po.recipes import gmpo
from lightning_modules import AtomicCheckpointIO, PolicyModule, RatioDeviationStop, RunCheckpoint, RunReport
from lightning_modules.addition import AdditionProblems
from lightning_modules.loops import aligned_loops
from tests.lightning_modules.training import (
    RecordingEngine,
    copied,
    fitted,
    largest_difference,
    quiet_trainer,
    small_data,
    text_reward,
)

STEPS = 6  # of the run that is not interrupted
HOOKS = [
    "on_train_start",
    "on_train_epoch_start",
    "on_train_batch_start",
    "on_before_zero_grad",
    "on_before_backward",
    "on_after_backward",
    "on_before_optimizer_step",
    "on_train_batch_end",
    "on_train_epoch_end",
    "on_train_end",
    "on_fit_end",
]


class SavesInEveryHook(Callback):
    """Saves a checkpoint in each call of each hook of training."""

    def __init__(self, folder):
        self.folder, self.paths = folder, {hook: [] for hook in HOOKS}

    def save(self, trainer, hook):
        path = self.folder / f"{hook}-{len(self.paths[hook])}.ckpt"
        trainer.save_checkpoint(path)
        self.paths[hook].append(path)


def saving_hook(hook):
    return lambda self, trainer, *arguments, **options: self.save(trainer, hook)


for hook in HOOKS:
    setattr(SavesInEveryHook, hook, saving_hook(hook))


class Trail(Callback):
    """Counters of Lightning, and the learning rate, at each optimizer step."""

    def __init__(self):
        self.steps = {}

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch.closes_update:
            loop = trainer.fit_loop.epoch_loop
            counters = trainer.current_epoch, batch_idx, loop.total_batch_idx, loop._batches_that_stepped
            self.steps[trainer.global_step] = counters, trainer.optimizers[0].param_groups[0]["lr"]


@pytest.fixture
def fit(tmp_path, model_folder):
    def fit(accumulate=2, updates=2, max_steps=STEPS, callbacks=(), data=None, **options):
        data = data or small_data(updates_per_rollout=updates)
        # A reward that fails is another one than that of the resume.
        module = PolicyModule(model_folder, gmpo(), learning_rate=1e-3, warmup_steps=3, resume_with_changes=True)
        trail = Trail()
        run = fitted(
            tmp_path,
            model_folder,
            data=data,
            module=module,
            max_steps=max_steps,
            accumulate_grad_batches=accumulate,
            callbacks=[*callbacks, trail],
            **{"check_val_every_n_epoch": 1_000_000, **options},
        )
        run.trail = trail.steps
        return run

    return fit


@pytest.fixture(scope="module")
def undisturbed():
    """Parameters, optimizer state and trail of undisturbed runs by accumulation and updates; runs only once."""
    return {}


def assert_ends_as_undisturbed(run, fit, undisturbed, accumulate, updates):
    if (accumulate, updates) not in undisturbed:
        whole = fit(accumulate, updates)
        undisturbed[accumulate, updates] = copied(whole.module.model), whole.trail
    parameters, trail = undisturbed[accumulate, updates]
    assert run.trainer.global_step == STEPS
    assert largest_difference(copied(run.module.model), parameters) == 0
    assert run.trail == {step: trail[step] for step in run.trail}
    assert run.trail


@pytest.mark.parametrize("hook", HOOKS)
def test_a_checkpoint_of_any_hook(hook, fit, undisturbed, tmp_path):
    """Of an update of two micro-batches; in the middle of the run, in the middle of an update."""
    saves = SavesInEveryHook(tmp_path)
    fit(2, 1, max_steps=4, callbacks=[saves])
    paths = saves.paths[hook]
    resumed = fit(2, 1, ckpt_path=paths[len(paths) // 2])
    assert_ends_as_undisturbed(resumed, fit, undisturbed, 2, 1)


@pytest.mark.slow
@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("accumulate", [1, 2, 4])
def test_every_hook_of_every_split(accumulate, updates, fit, undisturbed, tmp_path):
    """The run ends at the end of a rollout, and in the middle of one where there can be one."""
    for max_steps in {4, 5 - updates}:
        saves = SavesInEveryHook(tmp_path)
        ended = fit(accumulate, updates, max_steps=max_steps, callbacks=[saves])
        ended.trainer.save_checkpoint(tmp_path / "after.ckpt")
        paths = {path for paths in saves.paths.values() for path in (paths[0], paths[len(paths) // 2], paths[-1])}
        for path in [*sorted(paths), tmp_path / "after.ckpt"]:
            resumed = fit(accumulate, updates, ckpt_path=path)
            assert_ends_as_undisturbed(resumed, fit, undisturbed, accumulate, updates)


def test_tokens_of_a_rollout_are_counted_once(fit, tmp_path):
    """Also if its first update is repeated."""
    whole, saves, resumed = RunReport(0), SavesInEveryHook(tmp_path), RunReport(0)
    fit(max_steps=4, callbacks=[whole])
    fit(max_steps=3, callbacks=[RunReport(0), saves])
    fit(max_steps=4, callbacks=[resumed], ckpt_path=saves.paths["on_train_batch_start"][5])  # within the second rollout
    assert resumed.state_dict()["tokens"] == whole.state_dict()["tokens"] > 0


# Whatever ends a run


class StopsInAnUpdate(Callback):
    """Stops in the middle of the third update, as `max_time` may."""

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if trainer.global_step == 2 and not batch.closes_update:
            trainer.should_stop = True


class LogsAnEpoch(Callback):
    def on_train_epoch_end(self, trainer, pl_module):
        pl_module.log("never_better", 1.0)


ENDS = {
    "max_steps": {"max_steps": 4},
    "max_steps within a rollout": {"max_steps": 3},
    "max_epochs": {"max_steps": -1, "max_epochs": 2},
    "max_time": {"callbacks": [StopsInAnUpdate()]},
    "EarlyStopping": {
        "callbacks": [LogsAnEpoch(), EarlyStopping("never_better", patience=1, check_on_train_epoch_end=True)]
    },
}


@pytest.mark.parametrize("updates", [1, 2])
@pytest.mark.parametrize("end", ENDS)
def test_going_on_after_the_end(end, updates, fit, undisturbed, tmp_path):
    saves = RunCheckpoint(str(tmp_path), every_n_train_steps=1000)
    options = {"enable_checkpointing": True, "plugins": [AtomicCheckpointIO()], **ENDS[end]}
    options["callbacks"] = [saves, *options.get("callbacks", [])]
    assert 0 < fit(updates=updates, **options).trainer.global_step < STEPS
    resumed = fit(updates=updates, ckpt_path=tmp_path / "last.ckpt")
    assert_ends_as_undisturbed(resumed, fit, undisturbed, 2, updates)


CHECKPOINTS = {
    "each epoch": {"save_on_train_epoch_end": True},
    "each step, of a run that was resumed": {"every_n_train_steps": 1},
    "each micro-batch": {"train_time_interval": timedelta(0)},
}


@pytest.mark.parametrize("kind", CHECKPOINTS)
def test_checkpoints_of_lightning(kind, fit, undisturbed, tmp_path):
    """The last of them is saved in the middle of an update, where it can be."""
    saves = ModelCheckpoint(
        tmp_path, save_top_k=-1, filename="{step}", enable_version_counter=True, **CHECKPOINTS[kind]
    )
    fit(max_steps=3, callbacks=[saves], enable_checkpointing=True)
    for path in sorted(tmp_path.glob("*.ckpt")):
        resumed = fit(ckpt_path=path)
        assert_ends_as_undisturbed(resumed, fit, undisturbed, 2, 2)


class FailsOnce:
    """Reward that fails once, in the third rollout."""

    def __init__(self):
        self.calls = 0

    def __call__(self, completion, example):
        self.calls += 1
        if self.calls == 40:
            raise TimeoutError("the judge did not answer")
        return text_reward(completion, example)


def test_a_checkpoint_of_an_exception_repeats_the_rollout_that_failed(fit, undisturbed, tmp_path):
    saves = ModelCheckpoint(tmp_path, save_on_exception=True, filename="failed")
    data = small_data(updates_per_rollout=2, reward=FailsOnce())
    with pytest.raises(TimeoutError):
        fit(data=data, callbacks=[saves], enable_checkpointing=True)
    resumed = fit(ckpt_path=tmp_path / "failed.ckpt")
    assert_ends_as_undisturbed(resumed, fit, undisturbed, 2, 2)


@pytest.mark.slow
def test_validation_in_the_run_and_after_it(fit, tmp_path):
    """Lightning validates after each epoch, and drops its loaders when `validate` is called."""
    options = {"updates_per_rollout": 2, "validation": AdditionProblems(4, held_out=True)}
    whole = fit(data=small_data(**options), check_val_every_n_epoch=1)
    saves = SavesInEveryHook(tmp_path)
    ended = fit(max_steps=3, data=small_data(**options), callbacks=[saves], check_val_every_n_epoch=1)
    ended.trainer.validate(ended.module, ended.data, verbose=False)
    ended.trainer.save_checkpoint(tmp_path / "after.ckpt")
    paths = [saves.paths[hook][-1] for hook in ("on_train_batch_end", "on_train_epoch_end", "on_train_end")]
    for path in [*paths, tmp_path / "after.ckpt"]:
        resumed = fit(data=small_data(**options), ckpt_path=path, check_val_every_n_epoch=1)
        assert largest_difference(copied(resumed.module.model), copied(whole.module.model)) == 0
        assert resumed.trail == {step: whole.trail[step] for step in resumed.trail}


@pytest.mark.slow
def test_a_run_without_a_last_step_resumes_by_its_epochs(fit, tmp_path):
    """Lightning restores no state of a loader between two epochs, unless it counts steps."""
    saves = SavesInEveryHook(tmp_path)
    whole = fit(max_steps=-1, max_epochs=3)
    fit(max_steps=-1, max_epochs=2, callbacks=[saves])
    for hook in ("on_train_epoch_start", "on_train_batch_end", "on_train_epoch_end", "on_train_end"):
        resumed = fit(max_steps=-1, max_epochs=3, ckpt_path=saves.paths[hook][-1])
        assert largest_difference(copied(resumed.module.model), copied(whole.module.model)) == 0
        assert resumed.trail == {step: whole.trail[step] for step in resumed.trail}


def test_loaders_that_lightning_reloads_go_on_with_the_next_rollout(fit, undisturbed):
    assert_ends_as_undisturbed(fit(reload_dataloaders_every_n_epochs=1), fit, undisturbed, 2, 2)


def test_a_rollout_that_was_left_early(fit, tmp_path):
    """Two inner epochs of two updates; the second is dropped in each rollout."""
    options = {"updates_per_rollout": 2, "epochs_per_rollout": 2}
    whole = fit(data=small_data(**options), callbacks=[RatioDeviationStop(1e-9)])
    saves = SavesInEveryHook(tmp_path)
    fit(max_steps=2, data=small_data(**options), callbacks=[RatioDeviationStop(1e-9), saves])
    for hook in ("on_train_batch_start", "on_train_batch_end", "on_train_end"):
        stop = RatioDeviationStop(1e-9)
        resumed = fit(data=small_data(**options), callbacks=[stop], ckpt_path=saves.paths[hook][-1])
        assert stop.dropped_updates == 6
        assert largest_difference(copied(resumed.module.model), copied(whole.module.model)) == 0
        assert [counters[0] for counters, _ in whole.trail.values()] == [0, 0, 1, 1, 2, 2]
        assert all(counters[0] == whole.trail[step][0][0] for step, (counters, _) in resumed.trail.items())


@pytest.mark.parametrize(("accumulate", "closing"), [(1, [1, 0, 1]), (4, [7, 3, 7])])
def test_other_micro_batches_after_a_resume(accumulate, closing, fit, tmp_path):
    """In the middle of a rollout of two updates, which had two micro-batches each."""
    saves = SavesInEveryHook(tmp_path)
    fit(max_steps=3, callbacks=[saves])
    for path in (saves.paths["on_train_batch_end"][-1], saves.paths["on_train_end"][-1]):
        resumed = fit(accumulate, ckpt_path=path)
        counters = {step: (epoch, index) for step, ((epoch, index, *_), _) in resumed.trail.items()}
        assert counters == dict(zip((4, 5, 6), zip((1, 2, 2), closing, strict=True), strict=True))


# In one process


def training_prompts(engine):
    calls = zip(engine.prompts, engine.sampling, strict=True)
    return [prompts for prompts, sampling in calls if sampling.samples_per_prompt > 1]


@pytest.mark.parametrize("first", [3, 4])
@pytest.mark.parametrize("evaluated", [False, True])
def test_a_second_fit_goes_on_with_the_next_rollout(first, evaluated, fit):
    """Step by step as the whole run, but with a new optimizer, as Lightning has it."""
    held_out = AdditionProblems(4, held_out=True)
    whole, parts = (
        small_data(rollouts=RecordingEngine(), updates_per_rollout=2, validation=held_out) for _ in range(2)
    )
    expected = fit(data=whole).trail
    run = fit(max_steps=first, data=parts)
    if evaluated:
        run.trainer.validate(run.module, parts, verbose=False)
    run.trainer.fit_loop.epoch_loop.max_steps = STEPS
    with pytest.warns(match=f"`fit` goes on at step {first} with a new optimizer"):
        run.trainer.fit(run.module, parts)
    assert training_prompts(parts.rollouts) == training_prompts(whole.rollouts)
    assert [counters for counters, _ in run.trail.values()] == [counters for counters, _ in expected.values()]


def test_a_new_trainer_begins_a_new_run(fit, undisturbed):
    data = small_data(updates_per_rollout=2)
    fit(max_steps=3, data=data)
    assert_ends_as_undisturbed(fit(data=data), fit, undisturbed, 2, 2)


def test_an_evaluation_of_a_checkpoint_leaves_the_position_of_a_run(fit, tmp_path):
    options = {"updates_per_rollout": 2, "validation": AdditionProblems(4, held_out=True)}
    run = fit(max_steps=3, data=small_data(**options))
    position = run.data.buffer.position
    fit(max_steps=1, data=small_data(**options)).trainer.save_checkpoint(tmp_path / "other.ckpt")
    run.trainer.validate(run.module, run.data, ckpt_path=tmp_path / "other.ckpt", verbose=False, weights_only=False)
    assert run.data.buffer.position == position == (1, 2)
    trainer, data = quiet_trainer(tmp_path), small_data(**options)  # before anything was trained
    trainer.validate(run.module, data, ckpt_path=tmp_path / "other.ckpt", verbose=False, weights_only=False)


# The counters


def test_counters_at_a_position():
    """Worked by hand: five optimizer steps of two micro-batches; two rollouts of two updates, and half of the third."""
    loops = {"epoch_loop.state_dict": {"_batches_that_stepped": 7, "other": 1}, "kept": 3}
    aligned = aligned_loops(loops, rollouts=2, batches=2, optimizer_steps=5, batches_per_update=2)
    within = {"ready": 3, "started": 3, "processed": 2, "completed": 2}
    assert aligned["epoch_progress"] == {"total": within, "current": within}
    batches = aligned["epoch_loop.batch_progress"]
    assert batches["total"] == {"ready": 10, "started": 10, "processed": 10, "completed": 9}
    assert batches["current"] == {"ready": 2, "started": 2, "processed": 2, "completed": 1}
    assert aligned["epoch_loop.state_dict"] == {"_batches_that_stepped": 4, "other": 1}
    assert aligned["kept"] == 3
    assert loops["epoch_loop.state_dict"]["_batches_that_stepped"] == 7


def test_an_update_that_was_not_made_is_repeated_within_a_process(fit):
    """The buffer is asked again after one of two micro-batches."""
    buffer = fit(max_steps=1).data.buffer
    assert buffer.position == (0, 2)
    first = next(iter(buffer))
    assert buffer.position == (0, 2)
    assert torch.equal(next(iter(buffer)).completion_ids, first.completion_ids)
