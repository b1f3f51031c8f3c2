"""A number that is infinite or NaN is refused by the name of its argument."""

import math

import pytest
import torch

import lightning_modules
from aggregate_po.recipes import gmpo
from lightning_modules.addition import AdditionProblems
from lightning_modules.flow.mixture import MixtureWarmStart
from lightning_modules.rewards import boxed_answer
from tests.aggregate_po.numeric_arguments import numeric_arguments

# One valid value for each argument that has no default.
REQUIRED = {
    "model_name": "model",
    "model": MixtureWarmStart(),
    "path": "pipeline",
    "objective": gmpo(),
    "dataset": AdditionProblems(2),
    "reward": boxed_answer,
    "url": "http://localhost:8000",
    "sources": [AdditionProblems(2)],
    "urls": ["http://localhost:8000"],
    "weights": None,
    "optimizer": torch.optim.SGD([torch.nn.Parameter(torch.zeros(()))]),
}
# Made by the library from arguments that were checked, or from what was computed.
RECORDS = (
    *("Sequences", "RolloutBatch", "EvaluationLoader", "Groups", "GroupSampler", "PreparedRollout", "Rollout"),
    *("Sampled", "Sharding", "SamplingParameters", "ServerClient", "Fleet", "Completion", "Tally"),
    *("Estimate", "Tolerance", "Deviation", "Verdict", "WorkerProcess"),
    *("Findings", "PassRates", "TrialRollout", "Grader", "GradedCompletion", "BenchmarkResult"),
    *("Grades", "Audit", "PromptHistory", "Candidate", "Prompt"),
    *("TokenRow", "SignedLogBins", "StepFiles", "ParameterGradients", "Weights", "Run", "TokenNumbers", "Table"),
    *("StableDiffusion3", "TrajectoryEvaluation"),
)
ARGUMENTS = numeric_arguments(lightning_modules, REQUIRED, RECORDS)


def test_arguments_are_found():
    names = {str(argument.values[0]) for argument in ARGUMENTS}
    assert {"PolicyModule.learning_rate", "RolloutDataModule.temperature", "RatioDeviationStop.bound"} <= names


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_by_name(argument, number):
    value = [number] if argument.name in ("reward_weights", "weights") else number
    with pytest.raises(ValueError, match=rf"`\w+` is .*{number}.*pass ") as refused:
        argument.given(value)
    assert argument.name in str(refused.value)
