"""The functions on the page about other trainers, run with stand-ins that follow the signatures of their sources."""

import re
import sys
from dataclasses import dataclass, replace
from functools import partial
from pathlib import Path
from types import ModuleType
from typing import ClassVar

import pytest
import torch

from aggregate_po import ConstantLength, PolicyObjective, SequenceMean, TokenMean
from aggregate_po.normalizers import LengthWeighted
from aggregate_po.recipes import apmpo, ctpo, gmpo, grpo, gspo, holder_po, pmpo, real, tic_grpo
from tests.parity.cases import CASES, assert_close, differentiate

PAGE = Path(__file__).resolve().parents[2] / "docs" / "other-trainers.md"
BLOCK = re.compile(r'^```py title="(\w+)\.py"\n(.*?)^```$', re.DOTALL | re.MULTILINE)
TEXT = PAGE.read_text(encoding="utf-8")
SCRIPTS = dict(BLOCK.findall(TEXT))
STEP = CASES["across the clip"]
OBJECTIVES = {
    "grpo": grpo(),
    "gmpo": gmpo(),
    "pmpo": pmpo(),
    "ctpo": ctpo(),
    "gspo": gspo(),
    "tic_grpo": tic_grpo(),
}


def with_normalizer(objective, normalizer):
    return PolicyObjective(**{**vars(objective), "normalizer": normalizer})


def loaded(name, monkeypatch, module, **stand_ins):
    """Names that a script of the page defines, with a module of its trainer replaced."""
    parts = module.split(".")
    for end in range(1, len(parts) + 1):
        monkeypatch.setitem(sys.modules, ".".join(parts[:end]), ModuleType(parts[end - 1]))
    vars(sys.modules[module]).update(stand_ins)
    exec(compile(SCRIPTS[name], name, "exec"), namespace := {"__name__": name})
    return namespace


def parts(micro_batches):
    """Rows of the step in micro-batches, each as log-probabilities and batch."""
    for rows in torch.arange(len(STEP.log_probs)).chunk(micro_batches):
        yield rows, type(STEP)(STEP.log_probs[rows], STEP.batch.select(rows))


def assert_whole_step(objective, loss_of_part, micro_batches):
    """The losses of the micro-batches add up to that of the objective on the step, and so do the gradients."""
    value, gradient = differentiate(lambda log_probs, batch: -objective(log_probs, batch), STEP)
    total, found = 0.0, torch.zeros_like(gradient)
    for rows, part in parts(micro_batches):
        loss, found[rows] = differentiate(partial(loss_of_part, rows=rows), part)
        total = total + loss
    assert_close(total, value, 1e-10)
    assert_close(found, gradient, 1e-10)


def per_token():
    """Advantages that differ within completions."""
    generator = torch.Generator().manual_seed(1)
    return torch.randn(STEP.log_probs.shape, generator=generator, dtype=torch.float64)


def assert_gradient_of_token_advantages(objective, loss_of_part, advantages):
    """The gradients of the micro-batches are that of the objective with an advantage for each token."""
    case = type(STEP)(STEP.log_probs, replace(STEP.batch, advantages=advantages))
    _, gradient = differentiate(lambda log_probs, batch: -objective(log_probs, batch), case)
    found = torch.zeros_like(gradient)
    for rows, part in parts(3):
        _, found[rows] = differentiate(partial(loss_of_part, rows=rows), part)
    assert_close(found, gradient, 1e-10)


# --- SkyRL -----------------------------------------------------------------------------------------------------------


class PolicyLossRegistry:
    """Keeps functions by their names, as SkyRL's registry does before Ray runs."""

    functions: ClassVar = {}

    @classmethod
    def register(cls, name, func):
        cls.functions[name] = func


@pytest.fixture
def skyrl(monkeypatch):
    module = "skyrl.backends.skyrl_train.utils.ppo_utils"
    namespace = loaded("skyrl_objective", monkeypatch, module, PolicyLossRegistry=PolicyLossRegistry)
    assert PolicyLossRegistry.functions == {"aggregate_po": namespace["objective_loss"]}
    return namespace


def reduced(reduction):
    """Advantages per token, divided as SkyRL does before training, for its `loss_reduction`."""
    mask = STEP.batch.response_mask.double()
    divisors = {
        "token_mean": mask.sum(),
        "sequence_mean": len(mask) * mask.sum(dim=1, keepdim=True),
        "seq_mean_token_sum_norm": torch.tensor(len(mask) * 40.0),
    }
    return STEP.batch.advantages.unsqueeze(1) * mask / divisors[reduction]


REDUCTIONS = {
    "sequence_mean": SequenceMean(),
    "token_mean": TokenMean(),
    "seq_mean_token_sum_norm": ConstantLength(40),
}


@pytest.mark.parametrize("micro_batches", [1, 3, 6])
@pytest.mark.parametrize("reduction", REDUCTIONS)
@pytest.mark.parametrize("name", OBJECTIVES)
def test_skyrl(skyrl, name, reduction, micro_batches):
    skyrl["OBJECTIVE"] = with_normalizer(OBJECTIVES[name], LengthWeighted())
    advantages = reduced(reduction)

    def loss(log_probs, batch, rows):
        found, _ = skyrl["objective_loss"](
            log_probs, batch.old_log_probs, advantages[rows], config=None, loss_mask=batch.response_mask.double()
        )
        return found

    assert_whole_step(with_normalizer(OBJECTIVES[name], REDUCTIONS[reduction]), loss, micro_batches)


def test_skyrl_with_advantages_that_differ_within_a_completion(skyrl):
    skyrl["OBJECTIVE"] = with_normalizer(gmpo(), LengthWeighted())
    mask, advantages = STEP.batch.response_mask, per_token()
    divided = torch.where(mask, advantages / (len(mask) * mask.sum(dim=1, keepdim=True)), 0)

    def loss(log_probs, batch, rows):
        return skyrl["objective_loss"](
            log_probs, batch.old_log_probs, divided[rows], config=None, loss_mask=batch.response_mask.double()
        )[0]

    assert_gradient_of_token_advantages(with_normalizer(gmpo(), SequenceMean()), loss, advantages)


def test_skyrl_as_on_the_page(skyrl):
    assert repr(skyrl["OBJECTIVE"]) == repr(with_normalizer(gmpo(), LengthWeighted()))


# --- prime-rl --------------------------------------------------------------------------------------------------------


@dataclass
class LossInputs:
    """One completion, with the fields that prime-rl's class has for it."""

    trainer_logprobs: torch.Tensor
    inference_logprobs: torch.Tensor
    ref_logprobs: torch.Tensor | None
    advantages: torch.Tensor
    loss_mask: torch.Tensor
    loss_weights: torch.Tensor | None = None


@dataclass
class LossOutputs:
    """Loss of one completion."""

    loss: torch.Tensor
    metrics: dict[str, torch.Tensor]


@pytest.fixture
def prime(monkeypatch):
    stand_ins = {"LossInputs": LossInputs, "LossOutputs": LossOutputs}
    return loaded("prime_objective", monkeypatch, "prime_rl.trainer.rl.loss", **stand_ins)


@pytest.mark.parametrize("name", OBJECTIVES)
def test_prime_rl(prime, name):
    objective = prime["OBJECTIVE"] = with_normalizer(OBJECTIVES[name], TokenMean())
    tokens = STEP.batch.response_mask.sum()

    def loss(log_probs, batch, rows):
        """Completions one by one, and the sum divided by the tokens of the step."""
        inputs = [
            LossInputs(new, old, None, advantage.expand_as(new), mask)
            for new, old, advantage, mask in zip(
                log_probs, batch.old_log_probs, batch.advantages, batch.response_mask, strict=True
            )
        ]
        return sum(prime["objective_loss"](one).loss for one in inputs) / tokens

    assert_whole_step(objective, loss, micro_batches=3)


def test_prime_rl_with_advantages_that_differ_within_a_completion(prime):
    prime["OBJECTIVE"] = with_normalizer(gmpo(), TokenMean())
    advantages, tokens = per_token(), STEP.batch.response_mask.sum()

    def loss(log_probs, batch, rows):
        columns = log_probs, batch.old_log_probs, advantages[rows], batch.response_mask
        inputs = [LossInputs(new, old, None, own, mask) for new, old, own, mask in zip(*columns, strict=True)]
        return sum(prime["objective_loss"](one).loss for one in inputs) / tokens

    assert_gradient_of_token_advantages(prime["OBJECTIVE"], loss, advantages)


def test_prime_rl_of_a_completion_without_a_token(prime):
    log_probs = torch.zeros(3, requires_grad=True)
    empty = LossInputs(log_probs, torch.zeros(3), None, torch.ones(3), torch.zeros(3).bool())
    assert prime["objective_loss"](empty).loss == 0
    assert repr(prime["OBJECTIVE"]) == repr(with_normalizer(gmpo(), TokenMean()))


@pytest.mark.parametrize(
    ("objective", "message"),
    [(holder_po(), "`totals.progress` is None"), (apmpo(), "`totals.reward_mean` is None"), (real(), "group")],
    ids=["progress", "rewards", "groups"],
)
def test_what_both_trainers_do_not_pass_is_an_error(skyrl, prime, objective, message):
    """The table says so of both; penalties that adapt would not be noticed, and the page says that."""
    log_probs, batch = STEP.log_probs, STEP.batch
    skyrl["OBJECTIVE"] = with_normalizer(objective, LengthWeighted())
    prime["OBJECTIVE"] = with_normalizer(objective, TokenMean())
    with pytest.raises(ValueError, match=message):
        skyrl["objective_loss"](log_probs, batch.old_log_probs, reduced("token_mean"), None, batch.response_mask)
    one = LossInputs(log_probs[0], batch.old_log_probs[0], None, torch.ones_like(log_probs[0]), batch.response_mask[0])
    with pytest.raises(ValueError, match=message):
        prime["objective_loss"](one)
    rows = {line.split("](")[0].strip("| ["): line for line in TEXT.splitlines() if line.startswith("| [")}
    assert "without penalties, progress or rewards" in rows["SkyRL"]
    assert "without progress, rewards, or penalties that adapt" in rows["prime-rl"]
    assert "Objectives of a group" in TEXT


def test_the_page_has_no_other_scripts():
    assert set(SCRIPTS) == {"skyrl_objective", "prime_objective"}
