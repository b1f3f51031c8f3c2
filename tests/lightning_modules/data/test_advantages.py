"""Inputs of an advantage estimator, and use of its result."""

import contextlib
import io

import pytest
import torch
import yaml

from aggregate_po.advantages import (
    BatchScaled,
    BestOfGroup,
    BetaNormalized,
    ComponentNormalized,
    GroupCentered,
    GroupNormalized,
    KalmanBaseline,
    KalmanInnovation,
    LeaveOneOut,
    LengthCorrected,
    LengthWeightedCentered,
    MeanNormalized,
    OverlongShaping,
    WhitenedCentered,
    WhitenedReturns,
)
from aggregate_po.recipes import dapo
from lightning_modules.argument_parser import PolicyArgumentParser
from lightning_modules.cli import run
from lightning_modules.data.module import RolloutDataModule
from lightning_modules.seeding import derived_seed
from tests.lightning_modules.data.test_module import FINISHED, LENGTHS, ScriptedEngine, rollout_of
from tests.lightning_modules.training import NotedAdvantages, RecordingEngine, fitted, small_data

FIRST = [1.0, 0.75, 0.0, 0.5, 2.0, 1.0, 0.0, 3.0]
SECOND = [0.0, 1.0, 1.0, 0.0, 1.0, 0.0, 0.0, 1.0]


def first_reward():
    remaining = iter(FIRST)

    def first(completion, example):
        return next(remaining)

    return first


def second_reward():
    remaining = iter(SECOND)

    def second(completion, example):
        return next(remaining)

    return second


def scripted(tmp_path, model_folder, **options):
    """A rollout of two prompts and eight completions, with what the estimator saw of it."""
    noted = NotedAdvantages(options.pop("advantages", GroupCentered()))
    defaults = {"rollouts": ScriptedEngine(LENGTHS, FINISHED), "prompts_per_rollout": 2, "advantages": noted}
    data = small_data(**{"reward": [first_reward(), second_reward()], **defaults, **options})
    return rollout_of(tmp_path, model_folder, dapo(), data=data), noted.steps[0]


# What is seen


def test_the_whole_rollout_is_one_step(tmp_path, model_folder):
    run, step = scripted(tmp_path, model_folder, reward_weights=[1.0, 0.5], seed=7)
    assert step.rewards.tolist() == [one + 0.5 * other for one, other in zip(FIRST, SECOND, strict=True)]
    assert step.group_size == 4
    assert step.lengths.tolist() == LENGTHS
    assert step.components.tolist() == [list(pair) for pair in zip(FIRST, SECOND, strict=True)]
    assert step.component_weights == (1.0, 0.5)
    assert step.seed == derived_seed(7, 0)
    assert run.metrics["rewards/first/mean"].item() == pytest.approx(sum(FIRST) / 8)
    assert run.metrics["rewards/second/mean"].item() == pytest.approx(sum(SECOND) / 8)
    assert run.metrics["reward"].item() == pytest.approx(sum(FIRST) / 8 + sum(SECOND) / 16)


def test_each_rollout_has_its_seed(tmp_path, model_folder):
    noted = NotedAdvantages()
    fitted(tmp_path, model_folder, data=small_data(advantages=noted, seed=3), max_steps=2)
    assert [step.seed for step in noted.steps] == [derived_seed(3, 0), derived_seed(3, 1)]


@pytest.mark.parametrize(("rule", "zeroed"), [("score", False), ("zero_reward", True), ("mask", False)])
def test_the_rule_for_cut_off_completions_holds_for_every_reward(tmp_path, model_folder, rule, zeroed):
    _, step = scripted(tmp_path, model_folder, truncated=rule)
    finished = torch.tensor(FINISHED).unsqueeze(-1)
    components = torch.tensor([FIRST, SECOND]).T
    assert torch.equal(step.components, torch.where(finished, components, 0) if zeroed else components)
    assert torch.equal(step.rewards, step.components.sum(dim=-1))
    assert step.lengths.tolist() == LENGTHS  # also of those that are not trained on


@pytest.mark.parametrize("estimator", [ComponentNormalized(), OverlongShaping(ComponentNormalized(), 3, 1)], ids=str)
def test_estimators_may_read_everything(tmp_path, model_folder, estimator):
    run, step = scripted(tmp_path, model_folder, reward_weights=[0.3, 0.7], advantages=estimator)
    (batch,) = run.batches
    assert torch.equal(batch.policy.advantages, estimator(step).float())
    assert batch.policy.advantages.any()


def test_single_rewards_do_not_know_of_the_divergence(tmp_path, model_folder):
    engine = RecordingEngine(shift=0.3)
    data = small_data(rollouts=engine, advantages=ComponentNormalized(), kl_in_reward=0.1)
    with pytest.raises(ValueError, match=r"^`rewards` is not the weighted sum of `components`"):
        fitted(tmp_path, model_folder, data=data)


# What becomes of it


def test_advantages_per_token_reach_the_batch(tmp_path, model_folder):
    estimator = WhitenedReturns(discount=0.5)
    run, step = scripted(tmp_path, model_folder, advantages=estimator)
    (batch,) = run.batches
    assert torch.equal(batch.policy.advantages, estimator(step).float())
    assert batch.policy.advantages.shape == batch.policy.response_mask.shape == (8, 3)
    assert run.metrics["grad_norm"].item() > 0


def test_a_completion_is_trained_if_one_token_of_it_has_an_advantage(tmp_path, model_folder):
    advantages = torch.zeros(8, 3)
    advantages[5, 1] = 0.5
    run, _ = scripted(tmp_path, model_folder, advantages=lambda step: advantages)
    assert sum(len(batch.completion_ids) for batch in run.batches) == 1
    assert torch.equal(torch.cat([batch.policy.advantages for batch in run.batches]), advantages[5:6, :2])


class WideEngine(ScriptedEngine):
    """Pads beyond the longest completion."""

    def generate(self, prompts, sampling):
        generated = super().generate(prompts, sampling)
        return type(generated)(
            *(
                torch.nn.functional.pad(one, (0, 2))
                for one in (generated.token_ids, generated.mask, generated.log_probs)
            ),
            generated.finished,
        )


def test_advantages_per_token_are_padded_as_the_completions_are(tmp_path, model_folder):
    engine, estimator = WideEngine(LENGTHS, FINISHED), WhitenedReturns(discount=0.5)
    run, step = scripted(tmp_path, model_folder, rollouts=engine, advantages=estimator)
    assert torch.equal(run.batches[0].policy.advantages, estimator(step).float())


@pytest.mark.parametrize(
    ("result", "shown"),
    [
        (lambda step: step.rewards.mean(), r"shape \(\)"),
        (lambda step: step.groups, r"shape \(2, 4\)"),
        (lambda step: step.rewards[:4], r"shape \(4,\)"),
        (lambda step: step.rewards.unsqueeze(-1), r"shape \(8, 1\)"),
        (lambda step: torch.zeros(8, 3, 1), r"shape \(8, 3, 1\)"),
    ],
)
def test_a_result_of_another_shape_is_an_error(tmp_path, model_folder, result, shown):
    message = rf"^`NotedAdvantages.__call__` returned {shown}; return shape `batch` or `batch time`"
    with pytest.raises(ValueError, match=message):
        scripted(tmp_path, model_folder, advantages=result)


@pytest.mark.parametrize("advantages", [GroupCentered, lambda rewards, group_size: rewards, None, "GroupCentered"])
def test_what_is_no_estimator_is_an_error(advantages):
    with pytest.raises(
        TypeError, match=r"^`advantages` is .*; pass an instance of a subclass of .*AdvantageEstimator, "
    ):
        small_data(advantages=advantages)


def test_errors_of_rewards_come_at_construction():
    with pytest.raises(ValueError, match=r"^`reward_weights` is \[1.0\], but `reward` has 2"):
        small_data(reward=[first_reward(), second_reward()], reward_weights=[1.0])


# Configuration


def configured(*arguments):
    """The data module that the command line makes of its arguments."""
    parser = PolicyArgumentParser()
    parser.add_argument("--config", action="config")
    parser.add_class_arguments(RolloutDataModule, "data")
    return parser.instantiate_classes(parser.parse_args(list(map(str, arguments)))).data


@pytest.fixture
def base(tmp_path):
    (tmp_path / "problems.jsonl").write_text('{"prompt": "1"}\n')
    return [f"--data.dataset={tmp_path / 'problems.jsonl'}", "--data.reward=lightning_modules.rewards.boxed_answer"]


@pytest.mark.parametrize(
    "estimator",
    [
        *(GroupNormalized(), GroupCentered(), LeaveOneOut(), LengthWeightedCentered(), MeanNormalized(), BestOfGroup()),
        *(BatchScaled(), WhitenedReturns(), WhitenedCentered(), ComponentNormalized(), BetaNormalized()),
        *(KalmanBaseline(), KalmanInnovation()),
    ],
    ids=lambda estimator: type(estimator).__name__,
)
def test_an_estimator_named_on_the_command_line_has_its_own_defaults(base, estimator):
    """And nothing of the estimator that it takes the place of."""
    name = type(estimator).__name__
    assert configured(*base, "--data.advantages", f"aggregate_po.advantages.{name}").advantages == estimator


@pytest.mark.parametrize(
    ("arguments", "estimator"),
    [
        (["GroupNormalized", "--data.advantages.ddof", "0"], GroupNormalized(ddof=0)),
        (["WhitenedReturns", "--data.advantages.discount", "0.9"], WhitenedReturns(0.9)),
        (["KalmanBaseline", "--data.advantages.order", "two_pass"], KalmanBaseline("two_pass")),
        (["BetaNormalized", "--data.advantages.reward_range", "[-1, 1]"], BetaNormalized((-1.0, 1.0))),
    ],
    ids=lambda value: value[0] if isinstance(value, list) else "",
)
def test_options_of_an_estimator_on_the_command_line(base, arguments, estimator):
    data = configured(*base, "--data.advantages", f"aggregate_po.advantages.{arguments[0]}", *arguments[1:])
    assert data.advantages == estimator


NESTED = """
data:
  reward:
    - lightning_modules.rewards.boxed_answer
    - tests.lightning_modules.training.text_reward
  reward_weights: [1.0, 0.25]
  advantages:
    class_path: aggregate_po.advantages.OverlongShaping
    init_args:
      estimator:
        class_path: aggregate_po.advantages.LengthCorrected
        init_args:
          estimator:
            class_path: aggregate_po.advantages.GroupNormalized
            init_args: {ddof: 0}
      max_completion_length: 512
      cache_length: 64
"""


def test_wrapped_estimators_and_several_rewards_in_a_file(base, tmp_path):
    (tmp_path / "nested.yaml").write_text(NESTED)
    data = configured(*base, f"--config={tmp_path / 'nested.yaml'}")
    assert data.advantages == OverlongShaping(LengthCorrected(GroupNormalized(ddof=0)), 512, 64)
    assert (data.rewards.names, data.rewards.weights) == (["boxed_answer", "text_reward"], (1.0, 0.25))


def test_the_whole_command_line_keeps_the_choice(base, tmp_path):
    """The saved configuration of a run builds the same estimator again."""
    output, file = io.StringIO(), tmp_path / "again.yaml"
    arguments = [*base, "--data.advantages=aggregate_po.advantages.GroupNormalized", "--data.advantages.ddof=0"]
    arguments += ["--model.model_name=nowhere", "--model.objective=aggregate_po.recipes.gmpo"]
    with contextlib.redirect_stdout(output), pytest.raises(SystemExit) as stop:
        run(["fit", *arguments, "--print_config"])
    assert not stop.value.code
    config = yaml.safe_load(output.getvalue())
    file.write_text(yaml.safe_dump({"data": config["data"]}))
    assert configured(f"--config={file}").advantages == GroupNormalized(ddof=0)


def test_an_estimator_that_does_not_exist_is_named(base, capfd):
    with pytest.raises(SystemExit):
        configured(*base, "--data.advantages=aggregate_po.advantages.Nope")
    error = capfd.readouterr().err
    assert "data.advantages" in error
    assert "import path" in error
