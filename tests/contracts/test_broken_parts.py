"""No law of `aggregate_po.testing` is empty: for each there is a part that breaks it and, if it can be, no other."""

import inspect
from unittest import SkipTest

import pytest
from hypothesis import Phase, settings

from aggregate_po import AdvantageEstimator, ExponentRule, Normalizer, Penalty, RatioTransform, TokenAggregator
from aggregate_po.testing import (
    AdvantageContract,
    AggregatorContract,
    ExponentRuleContract,
    NormalizerContract,
    PenaltyContract,
    TransformContract,
    check_aggregator,
)
from tests.contracts import broken_parts

KINDS = {
    TokenAggregator: AggregatorContract,
    RatioTransform: TransformContract,
    Normalizer: NormalizerContract,
    ExponentRule: ExponentRuleContract,
    AdvantageEstimator: AdvantageContract,
    Penalty: PenaltyContract,
}
BROKEN = [cls for _, cls in inspect.getmembers(broken_parts, inspect.isclass) if "breaks" in vars(cls)]

# Shrinking takes long, and is tried below. What is kept is expected to be kept by every input, so a few do.
FIND = settings(max_examples=200, phases=[Phase.generate])
KEEP = settings(max_examples=6, phases=[Phase.generate])


def contract_of(cls):
    return next(contract for kind, contract in KINDS.items() if issubclass(cls, kind))


def failures(cls):
    """Messages of the laws that an instance breaks."""
    found, contract = {}, contract_of(cls)
    for name in contract.laws():
        tries = FIND if name.removeprefix("test_") in cls.breaks else KEEP
        instance = type(contract.__name__, (contract,), {contract._attribute: cls(), "settings": tries})()
        if instance.applies(name):
            try:
                getattr(instance, name)()
            except SkipTest:
                continue
            except AssertionError as error:
                found[name.removeprefix("test_")] = str(error)
    return found


@pytest.mark.parametrize("cls", BROKEN, ids=[cls.__name__ for cls in BROKEN])
def test_part_is_caught_by_the_laws_that_it_breaks(cls):
    found = failures(cls)
    assert set(found) == cls.breaks, "\n\n".join(found.values())
    sentences = contract_of(cls).laws()
    for name, message in found.items():
        first, *more = message.splitlines()
        assert first == f"{cls()!r} breaks test_{name}: {sentences['test_' + name]}"
        assert more
        assert name == "works_somewhere" or any(line.strip() == "on the input" for line in more)


@pytest.mark.parametrize("contract", KINDS.values())
def test_every_law_is_broken_by_a_part(contract):
    caught = {f"test_{name}" for cls in BROKEN if contract_of(cls) is contract for name in cls.breaks}
    assert caught == set(contract.laws())


def test_check_lists_every_broken_law_with_the_smallest_input():
    with pytest.raises(AssertionError) as caught:
        check_aggregator(broken_parts.WrongClosedForm())
    message = str(caught.value)
    assert message.startswith("WrongClosedForm() breaks 2 of 12 laws.\n\n")
    assert "breaks test_weights_are_the_derivative: `token_weights` is the derivative of" in message
    assert "breaks test_gradient_of_the_objective: In an objective, the closed-form total weights" in message
    for name in ("actual", "expected", "log_ratio = [", "response_mask = [1, 1]", "advantages = [", "log_probs = ["):
        assert name in message
    assert len(message.splitlines()) < 50


@pytest.mark.parametrize(
    ("contract", "law", "part", "shown"),
    [
        (AggregatorContract, "inference_mode", broken_parts.FailsInInferenceMode(), "  RuntimeError: "),
        (AggregatorContract, "finite", broken_parts.InfiniteWhereEmpty(), "tokens, completion "),
        (AggregatorContract, "completions_do_not_see_each_other", broken_parts.LessTheBatchMean(), "log_ratio = [["),
        (NormalizerContract, "only_the_totals_divide", broken_parts.DividesByTheMicroBatch(), "lengths = ["),
        (AdvantageContract, "order_of_prompts", broken_parts.LaterPromptsCountMore(), "rewards = ["),
    ],
)
def test_report_shows_what_the_law_is_about(contract, law, part, shown):
    """The error of a part that raises; one completion, or all of them where they are compared."""
    instance = type(contract.__name__, (contract,), {contract._attribute: part})()
    with pytest.raises(AssertionError, match=rf"breaks test_{law}: ") as caught:
        getattr(instance, f"test_{law}")()
    assert shown in str(caught.value)
