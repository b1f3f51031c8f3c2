"""A sampler that is not the policy is told after the first update, with the size of the difference."""

import re
import warnings
from types import SimpleNamespace

import pytest
import torch

from aggregate_po import PolicyBatch
from aggregate_po.recipes import grpo
from lightning_modules import PolicyModule
from lightning_modules.ratio_check import RatioCheck
from lightning_modules.rollouts import TransformersEngine
from tests.lightning_modules.training import RecordingEngine, fitted, small_data

WARNING = "The ratios of a rollout's first update should be 1"


class Shifted(TransformersEngine):
    """Notes log-probabilities that are too low by `shifts`, one for each rollout."""

    def __init__(self, *shifts):
        super().__init__()
        self.shifts = list(shifts)

    def generate(self, prompts, sampling):
        generated = super().generate(prompts, sampling)
        generated.log_probs.sub_(self.shifts.pop(0) * generated.mask)
        return generated


def warnings_of(tmp_path, model_folder, engine, **options):
    names = {"precision", "max_steps", "accumulate_grad_batches"} & options.keys()
    trainer = {name: options.pop(name) for name in names}
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        module = PolicyModule(model_folder, grpo(), learning_rate=options.pop("learning_rate", 1e-3))
        fitted(tmp_path, model_folder, module=module, data=small_data(rollouts=engine, **options), **trainer)
    return [str(warning.message) for warning in caught if WARNING in str(warning.message)]


@pytest.mark.parametrize("precision", ["32-true", "bf16-mixed", "bf16-true"])
@pytest.mark.parametrize("updates", [1, 2])
def test_the_policys_own_engine_is_no_reason(tmp_path, model_folder, precision, updates):
    """Later updates move the policy away, by much more than rounding at this learning rate."""
    options = {"updates_per_rollout": updates, "epochs_per_rollout": 2, "max_steps": 4 * updates, "learning_rate": 0.05}
    assert warnings_of(tmp_path, model_folder, TransformersEngine(), precision=precision, **options) == []


@pytest.mark.parametrize(("precision", "shift", "told"), [("32-true", 0.02, True), ("bf16-mixed", 0.02, False)])
def test_the_tolerance_is_that_of_the_precision(tmp_path, model_folder, precision, shift, told):
    assert bool(warnings_of(tmp_path, model_folder, Shifted(shift), precision=precision)) == told


def test_the_warning_has_the_figures_and_comes_once(tmp_path, model_folder):
    (said,) = warnings_of(tmp_path, model_folder, Shifted(0.0, 0.5, 0.5), max_steps=3)
    mean, completion = map(float, re.search(r"is ([\d.]+) on average and ([\d.]+) in the mean", said).groups())
    assert mean == pytest.approx(0.5, abs=0.02)
    assert completion <= 0.5  # those of fewer than 8 tokens count as if they had as many
    assert "rounding explains 0.01 and 0.04" in said
    assert "`data.old_log_probs: trainer`" in said


def test_old_log_probs_of_the_trainer_are_a_remedy(tmp_path, model_folder):
    assert warnings_of(tmp_path, model_folder, Shifted(0.5), old_log_probs="trainer") == []


@pytest.mark.parametrize("accumulated", [1, 2])
def test_micro_batches_of_the_first_update_count(tmp_path, model_folder, accumulated):
    options = {"accumulate_grad_batches": accumulated, "updates_per_rollout": 2, "max_steps": 2}
    assert len(warnings_of(tmp_path, model_folder, RecordingEngine(shift=0.3), **options)) == 1


def checked(log_ratio, lengths):
    """The warnings for some completions, on a trainer that is at the first update."""
    mask = torch.arange(log_ratio.shape[1]) < torch.tensor(lengths).unsqueeze(-1)
    policy = PolicyBatch(torch.zeros(log_ratio.shape), mask, torch.ones(len(lengths)))
    batch = SimpleNamespace(policy=policy, closes_update=True)
    loader = SimpleNamespace(metrics={"rollout/staleness": 0})
    trainer = SimpleNamespace(accumulate_grad_batches=1, train_dataloader=loader, precision="32-true", world_size=1)
    check = RatioCheck()
    with warnings.catch_warnings(record=True) as caught:
        warnings.simplefilter("always")
        check.update(log_ratio, batch, 0, trainer)
    return [str(warning.message) for warning in caught]


def test_one_completion_is_found_among_many():
    log_ratio = torch.zeros(100, 20)
    log_ratio[7] = 0.5  # 0.005 on average
    (said,) = checked(log_ratio, [20] * 100)
    assert "is 0.005 on average and 0.5 in the mean of one completion" in said


def test_one_token_is_no_reason():
    log_ratio = torch.zeros(100, 20)
    log_ratio[7, 0] = -0.3
    assert checked(log_ratio, [20] * 7 + [1] + [20] * 92) == []


def test_padding_does_not_count():
    assert checked(torch.tensor([[0.0, 5.0, torch.nan]]), [1]) == []
