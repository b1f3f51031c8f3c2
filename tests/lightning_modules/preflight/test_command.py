"""`aggregate-po preflight` on the tiny model, within the process."""

import pytest
import torch

from aggregate_po import (
    ArithmeticMean,
    GeometricMean,
    NestedMean,
    PolicyObjective,
    PositionWeights,
    SequenceCorrection,
)
from aggregate_po.advantages import KalmanInnovation
from aggregate_po.recipes import gmpo, kpo, real, tpo
from lightning_modules import DynamicSampling, PolicyModule
from lightning_modules.addition import AdditionProblems
from lightning_modules.cli import run
from lightning_modules.data.schemes import DynamicPruning, Replay
from lightning_modules.model.lora import LoRA
from lightning_modules.planning.settings import TrainerSettings
from lightning_modules.preflight import TrialData, preflight
from lightning_modules.preflight.command import PreflightCLI, preflight_command
from tests.lightning_modules.command_line import arguments
from tests.lightning_modules.training import RecordingEngine, fitted, quiet_trainer, small_data


def coin(completion, example):
    """A reward of 0 or 1 that depends on the text alone."""
    return float(len(completion) % 2)


def other_coin(completion, example):
    return float(len(completion) % 3 == 1)


def trial_data(**options):
    defaults = {"group_size": 4, "prompts_per_rollout": 4, "max_completion_length": 6, "truncated": "score"}
    return TrialData(AdditionProblems(16), options.pop("reward", coin), **{**defaults, **options})


def found(tmp_path, model_folder, data, completions=32, other_reward=None, **options):
    module = PolicyModule(model_folder, gmpo(), **options)
    return preflight(quiet_trainer(tmp_path, inference_mode=False), module, data, completions, other_reward), module


def test_the_command_prints_figures_and_a_verdict_and_writes_nothing(model_folder, tmp_path, capsys):
    folder = tmp_path / "run"
    _, *options = arguments(model_folder, folder, "--data.reward=tests.lightning_modules.preflight.test_command.coin")
    preflight_command(
        [
            *options,
            "--completions=30",
            "--other_reward=tests.lightning_modules.preflight.test_command.other_coin",
        ]
    )
    printed = capsys.readouterr().out
    assert "completions:  32 = 8 prompts x 4" in printed
    assert "other_coin gives another reward on" in printed
    assert "GiB at the peak" in printed
    assert "for a rollout of 16;" in printed
    assert "This run" in printed
    assert not folder.exists()


def test_memory_that_no_plan_knows_is_no_obstacle(model_folder, tmp_path, capsys, monkeypatch):
    def unknown(arguments):
        raise ValueError("a plan knows no tensor parallelism.")

    monkeypatch.setattr(TrainerSettings, "of", unknown)
    _, *options = arguments(model_folder, tmp_path / "run")
    preflight_command([*options, "--completions=8"])
    printed = capsys.readouterr().out
    assert "memory:       not estimated: a plan knows no tensor parallelism." in printed
    assert "completions:  8" in printed


def test_the_figures_are_those_of_the_completions(model_folder, tmp_path):
    findings, _ = found(tmp_path, model_folder, trial_data(), other_reward=other_coin)
    trial = findings.trial
    assert trial.rewards.flatten().tolist() == [coin(text, None) for text in trial.texts]
    differing = sum(coin(text, None) != other_coin(text, None) for text in trial.texts)
    assert findings.disagreement.count == differing > 0
    assert findings.disagreement.completions == 32
    assert len({example["prompt"] for example in trial.examples}) == 8
    assert (trial.lengths <= 6).all()
    assert (trial.lengths[~trial.finished] == 6).all()
    assert trial.pass_seconds > 0


def test_advantages_are_those_of_the_estimator_of_the_run(model_folder, tmp_path):
    equal = {"reward": lambda completion, example: 1.0, "group_size": 2}
    plain, _ = found(tmp_path, model_folder, trial_data(**equal), completions=8)
    innovative, _ = found(tmp_path, model_folder, trial_data(advantages=KalmanInnovation(), **equal), completions=8)
    assert plain.verdict()[0].startswith("This run would not learn")
    assert innovative.verdict()[0].startswith("This run can learn: 100.0% of the groups have an advantage")


def test_the_first_completions_are_those_of_the_first_rollout(model_folder, tmp_path):
    """A preflight measures what the run would see."""
    seen = []

    def noted(completion, example):
        seen.append(completion)
        return coin(completion, example)

    found(tmp_path, model_folder, trial_data(reward=noted), completions=16)
    trial, seen[:] = list(seen), []
    module, data = PolicyModule(model_folder, gmpo()), trial_data(reward=noted)
    quiet_trainer(tmp_path, max_steps=1, limit_val_batches=0).fit(module, data)
    assert trial == seen


def test_later_completions_have_the_prompts_and_seeds_of_later_rollouts(model_folder, tmp_path):
    of_trial, of_run = RecordingEngine(), RecordingEngine()
    found(tmp_path, model_folder, trial_data(rollouts=of_trial), completions=32)
    module, data = PolicyModule(model_folder, gmpo()), trial_data(rollouts=of_run)
    quiet_trainer(tmp_path, max_steps=2, limit_val_batches=0).fit(module, data)
    assert of_trial.prompts == of_run.prompts
    assert [sampling.seed for sampling in of_trial.sampling] == [sampling.seed for sampling in of_run.sampling]
    assert len(of_run.sampling) == 2


def test_the_model_is_left_as_it_was_and_without_gradients(model_folder, tmp_path):
    _, module = found(tmp_path, model_folder, trial_data(), lora=LoRA(rank=2))
    fresh = PolicyModule(model_folder, gmpo(), lora=LoRA(rank=2))
    fresh.configure_model()
    assert all(parameter.grad is None for parameter in module.parameters())
    frozen = {name: weight for name, weight in fresh.model.state_dict().items() if "lora" not in name}
    assert frozen
    assert all(torch.equal(module.model.state_dict()[name], weight) for name, weight in frozen.items())


def test_schemes_do_not_select_what_is_measured(model_folder, tmp_path):
    plain, _ = found(tmp_path, model_folder, trial_data())
    filtered, _ = found(tmp_path, model_folder, trial_data(schemes=[DynamicSampling()]))
    assert torch.equal(plain.trial.rewards, filtered.trial.rewards)


def test_a_run_of_one_update_per_rollout_is_told_that_every_mean_is_the_same(model_folder, tmp_path):
    with pytest.warns(UserWarning, match="all ratios are 1"):
        found(tmp_path, model_folder, trial_data())


def test_a_run_that_replays_old_groups_is_not_told_so(model_folder, tmp_path, recwarn):
    found(tmp_path, model_folder, trial_data(schemes=[Replay()]))
    assert not [warning for warning in recwarn if "all ratios are 1" in str(warning.message)]


@pytest.mark.parametrize(
    ("objective", "options", "words"),
    [
        (tpo(), {"correction": SequenceCorrection(2.0), "old_log_probs": "trainer"}, "`correction` has weights"),
        (real(), {"schemes": [DynamicPruning()]}, "`schemes` has DynamicPruning"),
        (kpo(), {"token_weights": PositionWeights()}, "`token_weights` is PositionWeights"),
        (PolicyObjective(NestedMean(GeometricMean(), ArithmeticMean())), {}, "`span_ids` is None"),
    ],
    ids=["correction", "schemes", "weights", "spans"],
)
def test_what_the_objective_has_no_definition_for_is_refused_before_sampling(
    objective, options, words, model_folder, tmp_path
):
    def reward(completion, example):
        raise AssertionError("a completion was sampled")

    data, module = trial_data(reward=reward, **options), PolicyModule(model_folder, objective)
    with pytest.raises(ValueError, match=words):
        preflight(quiet_trainer(tmp_path, inference_mode=False), module, data)
    with pytest.raises(ValueError, match=words):
        fitted(tmp_path, model_folder, objective, small_data(reward=reward, **options))


def test_options_are_checked(model_folder, tmp_path, capsys):
    with pytest.raises(ValueError, match="`completions` is 0; pass 1 or more"):
        found(tmp_path, model_folder, trial_data(), completions=0)
    with pytest.raises(SystemExit):
        run(["fit", "--help"], PreflightCLI, TrialData)
    text = capsys.readouterr().out
    assert "--other_reward" in text
    assert "Number of completions to sample" in text
