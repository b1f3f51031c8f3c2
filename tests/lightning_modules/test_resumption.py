"""Resumes with another configuration: refused by name, or applied so that they take effect."""

import functools
import shutil

import pytest
import torch
from lightning import Callback, LightningModule

from aggregate_po import ArithmeticMean, GeometricMean, NestedMean, PolicyObjective
from aggregate_po.advantages import GroupCentered
from aggregate_po.penalties import K3Penalty, RatioVariance
from aggregate_po.recipes import gmpo, grpo, tpo
from lightning_modules import AtomicCheckpointIO, PolicyModule, RatioDeviationStop, RunCheckpoint, Sentences
from lightning_modules.callbacks import checkpoint_files
from lightning_modules.data.schemes import DynamicSampling
from lightning_modules.resumption import saved_configuration
from lightning_modules.rollouts import TransformersEngine
from tests.lightning_modules.data.test_schemes import Counting
from tests.lightning_modules.training import fitted, quiet_trainer, small_data, text_reward

SGD = functools.partial(torch.optim.SGD, lr=0.25)


def other_reward(completion, example):
    return float(len(completion))


class Foreign(LightningModule):
    def __init__(self):
        super().__init__()
        self.layer = torch.nn.Linear(1, 1)

    def training_step(self, batch, batch_idx):
        return self.layer(batch).sum()

    def configure_optimizers(self):
        return torch.optim.SGD(self.parameters(), lr=0.1)


def run(folder, model_folder, module=(), data=(), callbacks=(), objective=None, **trainer):
    """Run to step 3, in the middle of a rollout, or on from there with `ckpt_path`."""
    settings = {"learning_rate": 1e-3, "warmup_steps": 0, **dict(module)}
    policy = PolicyModule(model_folder, objective or gmpo(), **settings)
    return fitted(
        folder,
        model_folder,
        data=small_data(**{"updates_per_rollout": 2, **dict(data)}),
        module=policy,
        **{"max_steps": 3, "enable_checkpointing": True, "plugins": [AtomicCheckpointIO()], **trainer},
        callbacks=[RunCheckpoint(str(folder / "checkpoints")), *callbacks],
    )


@pytest.fixture
def resumed(tmp_path, model_folder):
    """Return a function that makes a run of three steps, and resumes it with another configuration."""

    def resume(accept=None, before=None, **options):
        run(tmp_path, model_folder, **(before or {}))
        if accept is not None:
            options["module"] = {**options.get("module", {}), "resume_with_changes": accept}
        return run(tmp_path, model_folder, ckpt_path="last", **{"max_steps": 6, **options})

    return resume


CHANGES = {
    "learning_rate": ({"module": {"learning_rate": 1e-5}}, "`model.learning_rate` was 0.001 and is 1e-05"),
    "warmup_steps": ({"module": {"warmup_steps": 4}}, "`model.warmup_steps` was 0 and is 4"),
    "weight_decay": ({"module": {"weight_decay": 0.1}}, "`model.weight_decay` was 0.0 and is 0.1"),
    "optimizer": ({"module": {"optimizer": SGD}}, r"`model.optimizer` was None and is torch.optim.sgd.SGD\(lr=0.25\)"),
    "objective": ({"objective": grpo()}, "`model.objective.aggregator` was aggregate_po.*GeometricMean"),
    "clip": ({"objective": gmpo(log_clip=0.3)}, "`model.objective.token_transform.*was .*0.4.*is .*0.3"),
    "penalty": (
        {"objective": gmpo(penalties=[RatioVariance(0.1)])},
        "`model.objective.penalties` was .* is .*RatioVariance",
    ),
    "group_size": ({"data": {"group_size": 2}}, "`data.group_size` was 4 and is 2"),
    "prompts": ({"data": {"prompts_per_rollout": 2}}, "`data.prompts_per_rollout` was 4 and is 2"),
    "updates": ({"data": {"updates_per_rollout": 1}}, "`data.updates_per_rollout` was 2 and is 1"),
    "epochs": ({"data": {"epochs_per_rollout": 2}}, "`data.epochs_per_rollout` was 1 and is 2"),
    "length": ({"data": {"max_completion_length": 5}}, "`data.max_completion_length` was 6 and is 5"),
    "prompt length": ({"data": {"max_prompt_length": 12}}, "`data.max_prompt_length` was None and is 12"),
    "template": ({"data": {"prompt_template": "Q: {prompt}"}}, "`data.prompt_template` was None and is 'Q: {prompt}'"),
    "temperature": ({"data": {"temperature": 0.5}}, "`data.temperature` was 1.0 and is 0.5"),
    "seed": ({"data": {"seed": 1}}, "`data.seed` was 0 and is 1"),
    "reward": ({"data": {"reward": other_reward}}, "`data.reward` was .*text_reward' and is .*other_reward'"),
    "rewards": ({"data": {"reward": [text_reward, other_reward]}}, "`data.reward` was .* and is "),
    "truncated": ({"data": {"truncated": "mask"}}, "`data.truncated` was 'score' and is 'mask'"),
    "advantages": ({"data": {"advantages": GroupCentered()}}, "`data.advantages` was .*GroupNormalized.*GroupCent"),
    "data": ({"data": {"dataset": [{"prompt": "1"}]}}, "`data.dataset` was "),
    "schemes": ({"data": {"schemes": [DynamicSampling()]}}, r"`data.schemes` was \[\] and is .*DynamicSampling"),
    "old_log_probs": ({"data": {"old_log_probs": "trainer"}}, "`data.old_log_probs` was 'sampler' and is 'trainer'"),
    "precision": ({"precision": "bf16-mixed"}, "`trainer.precision` was '32-true' and is 'bf16-mixed'"),
    "clipping": ({"gradient_clip_val": 0.5}, "`trainer.gradient_clip_val` was None and is 0.5"),
    "callback": ({"callbacks": [RatioDeviationStop(0.5)]}, "`trainer.callbacks.RatioDeviationStop` was None and is "),
}


@pytest.mark.parametrize(("options", "message"), CHANGES.values(), ids=CHANGES.keys())
def test_a_change_is_refused_by_name_or_applied(resumed, tmp_path, model_folder, options, message):
    with pytest.raises(ValueError, match=f"another configuration: {message}.*`--resume_with_changes`"):
        resumed(**options)
    module = {**options.get("module", {}), "resume_with_changes": True}
    applied = run(tmp_path, model_folder, ckpt_path="last", max_steps=6, **{**options, "module": module})
    assert applied.trainer.global_step == 6
    # The next checkpoint holds the new configuration.
    run(tmp_path, model_folder, ckpt_path="last", max_steps=7, **options)
    with pytest.raises(ValueError, match="another configuration"):
        run(tmp_path, model_folder, ckpt_path="last", max_steps=8)


FREE = {
    "max_steps": {"max_steps": 5},
    "accumulation": {"accumulate_grad_batches": 2},
    "validation": {"data": {"validation": [{"prompt": "1"}]}},
    "skipped steps": {"module": {"max_skipped_steps": 9}},
    "micro-batches": {"data": {"tokens_per_micro_batch": 1000}},
    "clock": {"max_time": "00:01:00:00"},
    "nothing": {},
}


@pytest.mark.parametrize("options", FREE.values(), ids=FREE.keys())
def test_what_does_not_change_the_training_is_free(resumed, options):
    assert resumed(**options).trainer.global_step >= 5


@pytest.mark.parametrize("own", [True, False])
def test_a_checkpoint_need_not_be_writable(tmp_path, model_folder, monkeypatch, own):
    def refused(path, *arguments, **options):
        raise PermissionError(1, "Operation not permitted", str(path))

    run(tmp_path / "first", model_folder)
    monkeypatch.setattr(checkpoint_files.os, "utime", refused)
    path = tmp_path / "first" / "checkpoints" / "last.ckpt"
    folder = tmp_path / ("first" if own else "second")
    assert run(folder, model_folder, ckpt_path=path, max_steps=4).trainer.global_step == 4


def test_a_checkpoint_of_another_program_is_refused_by_name(tmp_path, model_folder):
    path = tmp_path / "foreign.ckpt"
    trainer = quiet_trainer(tmp_path)
    trainer.fit(Foreign(), torch.utils.data.DataLoader(torch.ones(4, 1)))
    trainer.save_checkpoint(path)
    message = r"foreign.ckpt', which is no checkpoint of a run of this library.*`model.model_name`"
    with pytest.raises(ValueError, match=message):  # before anything is loaded
        saved_configuration(path)
    with pytest.raises(ValueError, match=message):
        run(tmp_path / "mine", model_folder, ckpt_path=path)


def test_an_engine_may_get_other_arguments_but_not_become_another(resumed, tmp_path, model_folder):
    class Other(TransformersEngine):
        def __init__(self, address):
            super().__init__()
            self.address = address

    before = {"data": {"rollouts": Other("http://one")}}
    assert resumed(before=before, data={"rollouts": Other("http://two")}).trainer.global_step == 6
    with pytest.raises(ValueError, match=r"`data.rollouts` was .*Other' and is .*TransformersEngine'"):
        run(tmp_path, model_folder, ckpt_path="last", max_steps=8, data={"rollouts": TransformersEngine()})


def test_another_tokenizer_is_refused_even_with_changes(resumed, tmp_path, model_folder):
    resumed(accept=True)
    other = shutil.copytree(model_folder, tmp_path / "other")
    file = other / "tokenizer_config.json"
    file.write_text(file.read_text() + "\n")
    with pytest.raises(ValueError, match=r"another model: `model.model_name, tokenizer_config.json` .*start a new run"):
        run(tmp_path, str(other), module={"resume_with_changes": True}, ckpt_path="last", max_steps=8)


def test_a_model_that_has_moved_is_the_same(resumed, tmp_path, model_folder):
    resumed()
    moved = shutil.copytree(model_folder, tmp_path / "moved")
    assert run(tmp_path, str(moved), ckpt_path="last", max_steps=8).trainer.global_step == 8


@pytest.mark.parametrize(
    ("module", "rates"),
    [
        ({"learning_rate": 1e-5}, [1e-5, 1e-5, 1e-5]),
        ({"warmup_steps": 5}, [0.8e-3, 1e-3, 1e-3]),  # steps 4, 5 and 6
        ({"learning_rate": 1e-2, "warmup_steps": 10}, [4e-3, 5e-3, 6e-3]),
        ({"optimizer": SGD}, [0.25, 0.25, 0.25]),
        ({"optimizer": SGD, "warmup_steps": 5}, [0.2, 0.25, 0.25]),
    ],
)
def test_a_new_learning_rate_is_in_force_from_the_next_step(resumed, module, rates):
    seen = []

    class Rates(Callback):
        def on_before_optimizer_step(self, trainer, pl_module, optimizer):
            seen.append(optimizer.param_groups[0]["lr"])

    result = resumed(accept=True, module=module, callbacks=[Rates()])
    assert seen == pytest.approx(rates)
    assert result.metrics["learning_rate"] == pytest.approx(rates[-1])


def test_the_state_of_the_optimizer_stays_but_for_another_optimizer(resumed, tmp_path, model_folder):
    seen = []

    class States(Callback):
        def on_train_start(self, trainer, pl_module):
            seen.append(sum(len(state) for state in trainer.optimizers[0].state.values()))

    resumed(accept=True, module={"weight_decay": 0.5}, callbacks=[States()])
    assert seen[-1] > 0
    group = run(
        tmp_path,
        model_folder,
        module={"optimizer": SGD, "resume_with_changes": True},
        callbacks=[States()],
        ckpt_path="last",
        max_steps=8,
    ).trainer.optimizers[0]
    assert seen[-1] == 0
    assert isinstance(group, torch.optim.SGD)


@pytest.mark.parametrize("updates", [1, 4])
def test_another_split_of_rollouts_begins_with_a_new_rollout(resumed, updates):
    """Each later step has the completions of its share of a rollout."""
    sizes = []

    class Sizes(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            sizes.append((batch_idx, int(batch.policy.response_mask.any(dim=-1).sum())))

    resumed(accept=True, data={"updates_per_rollout": updates}, callbacks=[Sizes()])
    assert [number for number, _ in sizes] == [0, 0, 0] if updates == 1 else [0, 1, 2]
    assert max(size for _, size in sizes) <= 16 // updates


@pytest.mark.parametrize(
    ("before", "objective", "data", "numbers"),
    [
        (gmpo(), grpo(), {}, [1, 0, 1]),
        (gmpo(), gmpo(penalties=[RatioVariance(0.1)]), {}, [0, 1, 0]),
        (gmpo(), tpo(), {}, [0, 1, 0]),
        (gmpo(), PolicyObjective(NestedMean(GeometricMean(), ArithmeticMean())), {"spans": Sentences()}, [0, 1, 0]),
        (tpo(), gmpo(penalties=[RatioVariance(0.1)]), {}, [1, 0, 1]),
        (tpo(), gmpo(penalties=[K3Penalty(0.1)]), {}, [0, 1, 0]),
        (gmpo(penalties=[K3Penalty(0.1)]), gmpo(penalties=[K3Penalty(0.2)]), {}, [1, 0, 1]),
        (tpo(), gmpo(), {}, [1, 0, 1]),
    ],
    ids=["other mean", "penalty", "groups", "spans", "from groups", "reference", "other coefficient", "no groups"],
)
def test_an_objective_for_which_a_rollout_lacks_something_begins_with_a_new_one(
    resumed, before, objective, data, numbers
):
    seen = []

    class Numbers(Callback):
        def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
            seen.append(batch_idx)

    resumed(accept=True, before={"objective": before}, objective=objective, data=data, callbacks=[Numbers()])
    assert seen == numbers


def test_a_checkpoint_without_a_configuration_resumes_with_a_warning(tmp_path, model_folder):
    run(tmp_path, model_folder)
    path = tmp_path / "old.ckpt"
    checkpoint = torch.load(tmp_path / "checkpoints" / "last.ckpt", weights_only=False)
    del checkpoint["configuration"]
    torch.save(checkpoint, path)
    with pytest.warns(UserWarning, match="does not say what it was trained with"):
        run(tmp_path, model_folder, module={"learning_rate": 1e-5}, ckpt_path=path, max_steps=4)


@pytest.mark.parametrize(
    ("data", "seen"),
    [
        ({"reward": other_reward}, 4),
        ({"reward": [text_reward, other_reward]}, 4),
        ({"dataset": [{"prompt": "1"}]}, 4),
        ({"temperature": 0.5}, 4),
        ({"updates_per_rollout": 1}, 8),
        ({}, 8),
    ],
    ids=["reward", "rewards", "data", "temperature", "updates", "nothing"],
)
def test_schemes_forget_what_was_sampled_and_rewarded_otherwise(tmp_path, model_folder, data, seen):
    run(tmp_path, model_folder, data={"schemes": [Counting()]}, max_steps=2)
    resumed = run(
        tmp_path,
        model_folder,
        module={"resume_with_changes": True},
        data={"schemes": [Counting()], **data},
        max_steps=3,
        ckpt_path="last",
    )
    assert resumed.data.schemes[0].seen == seen
