"""Group objectives in training: terms known before the first backward pass, and passes without a trace."""

from contextlib import nullcontext
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch
from lightning import Callback

from aggregate_po import PolicyBatch
from aggregate_po.advantages import GroupNormalized
from aggregate_po.recipes import gmpo, real, tpo
from lightning_modules import PolicyModule
from lightning_modules.batch import RolloutBatch, left_padded
from lightning_modules.data.schemes import DynamicPruning, SamplingScheme
from lightning_modules.group_terms import UpdateGroups
from lightning_modules.model.trained import PolicyPass
from tests.lightning_modules.training import (
    BatchRecorder,
    ExactPolicy,
    fitted,
    largest_difference,
    quiet_trainer,
    small_data,
)

SCORES = GroupNormalized(ddof=0, delta=0)
ONE_PROCESS = {"world_size": 1, "distributed_sampler_kwargs": None, "accumulate_grad_batches": 2}


def micro_batch(advantages, groups, closes_update):
    prompt_ids, prompt_mask = left_padded([[1]])
    mask = torch.ones(len(groups), 2, dtype=torch.bool)
    policy = PolicyBatch(torch.zeros(mask.shape), mask, torch.tensor(advantages), groups=torch.tensor(groups))
    prompts = torch.zeros(len(groups)).long()
    return RolloutBatch(prompt_ids, prompt_mask, prompts, mask.long(), mask, policy, closes_update=closes_update)


def trainer_with(*rest):
    return SimpleNamespace(train_dataloader=SimpleNamespace(rest_of_update=rest), **ONE_PROCESS)


def passed(batch, log_prob):
    """A forward pass in which all tokens have the same log-probability."""
    log_probs = torch.full(batch.policy.response_mask.shape, log_prob)
    return PolicyPass(log_probs, torch.zeros_like(log_probs), batch.policy)


def test_each_micro_batch_gets_the_terms_of_its_rows_from_one_pass_over_the_others():
    first, second = micro_batch([1.0, -1.0, 1.0], [0, 1, 2], False), micro_batch([-1.0, 1.0, 2.0], [0, 1, 2], True)
    asked = []

    def pass_of(batch):
        asked.append(batch)
        torch.rand(3)  # dropout
        return passed(batch, -0.2)

    groups = UpdateGroups(real())
    state = torch.get_rng_state()
    given = groups.with_terms(passed(first, 0.1), first, pass_of, trainer_with(second))
    assert torch.equal(torch.get_rng_state(), state)
    then = groups.with_terms(passed(second, -0.2), second, pass_of, trainer_with())
    assert len(asked) == 1
    # Each pair of completions of one group is compared; the last group has positive labels only.
    log_values = torch.tensor([[0.1, -0.2], [-0.2, 0.1]])
    positive, negative = (log_values / 0.5).unbind(dim=-1)
    expected = -torch.log1p((-positive).exp()) - torch.log1p(negative.exp())
    for policy in (given, then):
        torch.testing.assert_close(policy.group_values, torch.cat([expected, torch.zeros(1)]).double())
        assert policy.group_advantages[2] == 0
    assert (given.group_advantages[:2] * torch.tensor([1, -1]) > 0).all()
    assert torch.equal(then.group_advantages[:2] > 0, torch.tensor([False, True]))
    assert groups.metrics == {"group_objective/without_gradient": pytest.approx(1 / 3)}


def test_an_objective_without_groups_is_left_alone():
    batch = micro_batch([1.0], [0], False)
    assert UpdateGroups(gmpo()).with_terms(passed(batch, 0.0), batch, None, None) is batch.policy


def test_a_loader_that_hides_the_other_micro_batches_is_refused():
    batch, trainer = micro_batch([1.0], [0], False), SimpleNamespace(train_dataloader=[], **ONE_PROCESS)
    with pytest.raises(ValueError, match="the data loader list has no `rest_of_update`"):
        UpdateGroups(real()).with_terms(passed(batch, 0.0), batch, None, trainer)


class Passes(Callback):
    """Counts forward passes by whether they have a gradient, and keeps what each gave."""

    def __init__(self):
        self.with_gradient, self.without = [], []

    def on_fit_start(self, trainer, pl_module):
        policy, inner = pl_module.policy, pl_module.policy.log_probs_and_entropy

        def counted(sequences):
            results = inner(sequences)
            (self.with_gradient if torch.is_grad_enabled() else self.without).append(results[0].detach().clone())
            return results

        policy.log_probs_and_entropy = counted


class Dropout(Callback):
    """Trains with dropout, as a user may."""

    def on_train_start(self, trainer, pl_module):
        for layer in pl_module.model.model.layers:
            layer.self_attn.attention_dropout = 0.3
        pl_module.model.train()


def run(folder, model_folder, objective, accumulate, **options):
    callbacks = [recorder := BatchRecorder(), passes := Passes(), *options.pop("callbacks", [])]
    data = small_data(advantages=SCORES, updates_per_rollout=2, epochs_per_rollout=2, **options)
    module = ExactPolicy(model_folder, objective, learning_rate=0.01, warmup_steps=0)
    sizes = {"accumulate_grad_batches": accumulate, "max_steps": 4, "precision": "64-true"}
    result = fitted(folder, model_folder, data=data, module=module, callbacks=callbacks, **sizes)
    return SimpleNamespace(**vars(result), recorder=recorder, passes=passes)


@pytest.mark.parametrize("recipe", [real, tpo])
def test_micro_batches_change_nothing_and_cost_a_pass_each_but_the_first(tmp_path, model_folder, recipe):
    whole, *split = (run(tmp_path, model_folder, recipe(), accumulate) for accumulate in (1, 2, 3))
    for other, accumulate in zip(split, (2, 3), strict=True):
        for one, same in zip(whole.recorder.gradients, other.recorder.gradients, strict=True):
            assert max(float(gradient.abs().max()) for gradient in one.values()) > 1e-4
            assert largest_difference(one, same) < 1e-11
        assert (len(other.passes.with_gradient), len(other.passes.without)) == (4 * accumulate, 4 * (accumulate - 1))
        torch.testing.assert_close(other.metrics["policy_loss"], whole.metrics["policy_loss"])
        name = "group_objective/without_gradient"
        assert other.metrics[name] == whole.metrics[name]
    assert whole.passes.without == []


def test_dropout_is_the_same_in_both_passes(tmp_path, model_folder):
    result = run(tmp_path, model_folder, tpo(), 3, callbacks=[Dropout()])
    for update in range(4):
        trained, asked = result.passes.with_gradient[3 * update :], result.passes.without[2 * update :]
        assert all(torch.equal(trained[1 + place], asked[place]) for place in range(2))


def test_completions_of_advantage_zero_are_trained_on(tmp_path, model_folder):
    data = small_data(reward=lambda completion, example: 1.0, epochs_per_rollout=2)
    module = PolicyModule(model_folder, tpo(), learning_rate=0.01, warmup_steps=0)
    result = fitted(
        tmp_path, model_folder, data=data, module=module, callbacks=[recorder := BatchRecorder()], max_steps=2
    )
    assert result.metrics["completions/trained_ratio"].item() == 1
    first, second = (max(float(part.abs().max()) for part in update.values()) for update in recorder.gradients)
    assert first < 1e-6  # the policy is its own target
    assert second > 100 * first  # AdamW moves along what rounding leaves, and the target leads back
    assert len(recorder.batches[0].policy.groups.unique()) == 4


def test_groups_of_one_label_are_counted(tmp_path, model_folder):
    data = small_data(reward=lambda completion, example: 1.0)
    result = fitted(tmp_path, model_folder, real(), data)
    assert result.metrics["group_objective/without_gradient"].item() == 1
    assert result.metrics["policy_loss"].item() == 0


@pytest.mark.parametrize(
    "scheme",
    [DynamicPruning(prompt_rate=0.0), DynamicPruning(completion_rate=0.0)],  # the latter from the second epoch on
    ids=["completions", "prompts"],
)
def test_a_scheme_that_weights_completions_is_refused_before_anything_is_sampled(tmp_path, model_folder, scheme):
    def reward(completion, example):
        raise AssertionError("a completion was sampled")

    data = small_data(schemes=[scheme], reward=reward)
    with pytest.raises(ValueError, match=r"has DynamicPruning\(.*`group_objective` LabelLogistic\(temperature=0.5\)"):
        fitted(tmp_path, model_folder, real(), data)


class UndeclaredWeights(SamplingScheme):
    """Doubles the weights of all candidates and does not say so."""

    def groups(self, count, below, rollout):
        return below(count)

    def candidates(self, count, below, context):
        return [replace(one, weight=2.0) for one in below(count)]


def test_weights_that_no_scheme_has_declared_are_refused_once_they_occur(tmp_path, model_folder):
    data = small_data(schemes=[UndeclaredWeights()])
    with pytest.raises(ValueError, match=r"weighted the advantages, which `group_objective` LabelLogistic"):
        fitted(tmp_path, model_folder, real(), data)


def test_a_scheme_that_prunes_prompts_without_weights_is_accepted(tmp_path, model_folder):
    data = small_data(schemes=[DynamicPruning(completion_rate=0.0, method="fraction")])
    assert fitted(tmp_path, model_folder, real(), data).metrics["prompts/skipped"].item() == 0


class StopOnce(Callback):
    """Stops a run after the first micro-batch of its second optimizer step."""

    def __init__(self):
        self.stopped = False

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if batch_idx == 4 and not self.stopped:
            self.stopped = True
            raise KeyError("stop")


def test_a_run_that_goes_on_in_the_middle_of_a_step_begins_the_step_again(tmp_path, model_folder):
    undisturbed = run(tmp_path, model_folder, tpo(), 3)
    data = small_data(advantages=SCORES, updates_per_rollout=2, epochs_per_rollout=2)
    module = ExactPolicy(model_folder, tpo(), learning_rate=0.01, warmup_steps=0)
    recorder, stop = BatchRecorder(), StopOnce()
    for _ in range(2):
        trainer = quiet_trainer(
            tmp_path,
            accumulate_grad_batches=3,
            max_steps=2,
            precision="64-true",
            callbacks=[recorder, stop, CheckpointAfterStep(tmp_path / "one.ckpt")],
        )
        path = tmp_path / "one.ckpt" if stop.stopped else None
        with pytest.raises(KeyError) if not stop.stopped else nullcontext():
            trainer.fit(module, data, ckpt_path=path, weights_only=False)
    assert stop.stopped
    for actual, expected in zip(recorder.gradients, undisturbed.recorder.gradients[:2], strict=True):
        assert largest_difference(actual, expected) == 0


class CheckpointAfterStep(Callback):
    """Saves a checkpoint after the first optimizer step."""

    def __init__(self, path):
        self.path = path

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch.closes_update and trainer.global_step == 1:
            trainer.save_checkpoint(self.path)
