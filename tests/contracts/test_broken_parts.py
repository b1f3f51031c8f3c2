"""No property of `aggregate_po.testing` is vacuous: a part violates each one and, if possible, no other."""

import inspect
from unittest import SkipTest

import pytest
from hypothesis import Phase, settings

from aggregate_po import (
    AdvantageEstimator,
    ExponentRule,
    GroupObjective,
    Normalizer,
    Penalty,
    PrefixAggregate,
    RatioTransform,
    SuffixWeight,
    TokenAggregator,
    TokenWeighting,
)
from aggregate_po.testing import (
    AdvantageContract,
    AggregatorContract,
    ExponentRuleContract,
    GroupObjectiveContract,
    NormalizerContract,
    PenaltyContract,
    PrefixAggregateContract,
    SuffixWeightContract,
    TokenWeightingContract,
    TransformContract,
    check_advantage,
    check_aggregator,
)
from tests.contracts import broken_parts

KINDS = {
    TokenAggregator: AggregatorContract,
    RatioTransform: TransformContract,
    Normalizer: NormalizerContract,
    TokenWeighting: TokenWeightingContract,
    ExponentRule: ExponentRuleContract,
    AdvantageEstimator: AdvantageContract,
    Penalty: PenaltyContract,
    PrefixAggregate: PrefixAggregateContract,
    SuffixWeight: SuffixWeightContract,
    GroupObjective: GroupObjectiveContract,
}
BROKEN = [cls for _, cls in inspect.getmembers(broken_parts, inspect.isclass) if "breaks" in vars(cls)]

# Shrinking takes long, and is tried below. What is kept is expected to be kept by every input, so a few do.
FIND = settings(max_examples=200, phases=[Phase.generate])
KEEP = settings(max_examples=6, phases=[Phase.generate])


def contract_of(cls):
    return next(contract for kind, contract in KINDS.items() if issubclass(cls, kind))


def failures(cls):
    """Return the failure messages of the properties that an instance violates."""
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
def test_part_fails_the_properties_that_it_violates(cls):
    found = failures(cls)
    assert set(found) == cls.breaks, "\n\n".join(found.values())
    sentences = contract_of(cls).laws()
    for name, message in found.items():
        first, *more = message.splitlines()
        assert first == f"{cls()!r} fails {name}: {sentences['test_' + name]}"
        assert more
        assert name == "works_somewhere" or any(line.strip() == "on the input" for line in more)


@pytest.mark.parametrize("contract", KINDS.values())
def test_every_property_is_violated_by_a_part(contract):
    caught = {f"test_{name}" for cls in BROKEN if contract_of(cls) is contract for name in cls.breaks}
    assert caught == set(contract.laws())


def test_check_lists_every_failure_with_the_smallest_input():
    with pytest.raises(AssertionError) as caught:
        check_aggregator(broken_parts.WrongClosedForm())
    message = str(caught.value)
    assert message.startswith("WrongClosedForm() fails 3 of 14 properties.\n\n")
    assert "fails weights_are_the_derivative: `token_weights` equals the derivative of" in message
    assert "fails gradient_of_the_objective: In an objective, the closed-form total weights" in message
    for name in ("actual", "expected", "log_ratio = [", "response_mask = [1, 1]", "advantages = [", "log_probs = ["):
        assert name in message
    assert len(message.splitlines()) < 90


class OneRowPerPrompt(AdvantageEstimator):
    def __call__(self, step):
        return step.rounded(step.groups)


@pytest.mark.parametrize(
    ("check", "part", "law", "finding"),
    [
        (check_advantage, OneRowPerPrompt(), "shapes", r"shape \(1, 1\) .*, not shape \(1,\) or \(1, \d+\) "),
        (check_aggregator, broken_parts.WeightsInSinglePrecision(), "shapes", "token_weights: shape"),
        (check_aggregator, broken_parts.Detached(), "lets_gradient_through", "log_aggregate lets no gradient through"),
    ],
)
def test_a_property_on_which_the_others_depend_is_reported_alone(check, part, law, finding):
    with pytest.raises(AssertionError, match=finding) as caught:
        check(part, examples=20)
    heading, _, first, *rest = str(caught.value).splitlines()
    assert heading == f"{part!r} fails a property on which the others depend."
    assert first.startswith(f"{part!r} fails {law}: ")
    assert not any("fails" in line for line in rest)


@pytest.mark.parametrize(
    ("contract", "law", "part", "shown"),
    [
        (AggregatorContract, "inference_mode", broken_parts.FailsInInferenceMode(), "  RuntimeError: "),
        (AggregatorContract, "finite", broken_parts.InfiniteWhereEmpty(), "tokens, completion "),
        (AggregatorContract, "mean_of_a_constant", broken_parts.HalfIsNoMean(), "may differ by  2e-09\n"),
        (AggregatorContract, "completions_do_not_see_each_other", broken_parts.LessTheBatchMean(), "log_ratio = [["),
        (NormalizerContract, "only_the_totals_divide", broken_parts.DividesByTheMicroBatch(), "lengths = ["),
        (AdvantageContract, "order_of_prompts", broken_parts.LaterPromptsCountMore(), "rewards = ["),
    ],
)
def test_report_shows_the_completions_that_the_property_is_about(contract, law, part, shown):
    """The error of a part that raises; one completion, or all of them where they are compared."""
    instance = type(contract.__name__, (contract,), {contract._attribute: part})()
    with pytest.raises(AssertionError, match=rf"fails {law}: ") as caught:
        getattr(instance, f"test_{law}")()
    assert shown in str(caught.value)
