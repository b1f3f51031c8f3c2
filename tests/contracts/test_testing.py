"""The properties of `aggregate_po.testing` hold for every part of the library, and the reports are as documented."""

import subprocess
import sys
from functools import partial

import pytest
import torch
from hypothesis import settings

from aggregate_po import (
    ESSMatching,
    FixedExponent,
    GeometricMean,
    LinearExponent,
    PositionWeights,
    PowerMean,
    Product,
    RewardExponent,
    TopEntropy,
)
from aggregate_po.advantages import KalmanBaseline, MeanNormalized, StepValues
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
    check_penalty,
    check_transform,
)
from tests.aggregate_po.advantages.estimators import ALL, STEPWISE
from tests.contracts.strategies import (
    AGGREGATORS,
    GROUP_OBJECTIVES,
    NORMALIZERS,
    PENALTIES,
    PREFIXES,
    SEQUENCE_TRANSFORMS,
    SUFFIX_WEIGHTS,
    TOKEN_TRANSFORMS,
    label,
    shared,
)
from tests.third_party import AsinhMean, LehmerMean, PseudoHuberMean, SelfDualMean, TanhLimit

# Many parts are one class with other numbers, so each is tried on fewer inputs.
FEW = settings(max_examples=max(6, settings().max_examples // 40))


def contract(kind, part, **attributes):
    return type(f"{kind.__name__} of {label(part)}", (kind,), {kind._attribute: part, "settings": FEW, **attributes})


def aggregator_contract(part):
    rounding = 1e-7 if isinstance(part, PowerMean) and isinstance(part.exponent, ESSMatching) else 1e-11
    return contract(AggregatorContract, part, rounding=rounding)


def advantage_contract(part):
    """Contract without the properties that the estimator does not have by design, as its docstring says."""
    if isinstance(part, (MeanNormalized, StepValues)):
        return contract(AdvantageContract, part, rewards=(0.0, torch.finfo(torch.float32).max))
    order = getattr(part, "order", None)
    if order == "sampled":
        return contract(AdvantageContract, part, test_order_within_a_prompt=None)
    if order == "shuffled":
        return contract(AdvantageContract, part, test_order_within_a_prompt=None, test_order_of_prompts=None)
    return contract(AdvantageContract, part)


WEIGHTINGS = [TopEntropy(0.3), PositionWeights(power=-0.5, base=0.9), PositionWeights(40.0), PositionWeights(-90.0)]
RULES = [ESSMatching(), LinearExponent(), LinearExponent(duration=0.5), RewardExponent(), FixedExponent(0.5)]
TRANSFORMS = {label(part): part for part in (*TOKEN_TRANSFORMS, *SEQUENCE_TRANSFORMS) if part is not None}
CONTRACTS = [
    *map(aggregator_contract, AGGREGATORS),
    *map(partial(contract, TransformContract), TRANSFORMS.values()),
    *map(partial(contract, NormalizerContract), NORMALIZERS),
    *map(partial(contract, TokenWeightingContract), WEIGHTINGS),
    *map(partial(contract, ExponentRuleContract), RULES),
    *map(partial(contract, PenaltyContract, rounding=1e-10), PENALTIES),
    *map(partial(contract, GroupObjectiveContract), GROUP_OBJECTIVES),
    *map(advantage_contract, [*ALL, *STEPWISE]),
    *map(partial(contract, PrefixAggregateContract), filter(None, PREFIXES)),
    *map(partial(contract, SuffixWeightContract), SUFFIX_WEIGHTS),
]
LAWS = [(kind, name) for kind in CONTRACTS for name in kind.laws() if kind().applies(name)]


@pytest.mark.parametrize(("kind", "name"), LAWS, ids=[f"{kind.__name__}-{name}" for kind, name in LAWS])
def test_part_has_the_property(kind, name):
    getattr(kind(), name)()


class UsersMean(AggregatorContract):
    settings = shared


class TestLehmerMean(UsersMean):
    aggregator = LehmerMean(2.0)


class TestSelfDualMean(UsersMean):
    aggregator = SelfDualMean()


class TestPseudoHuberMean(UsersMean):
    aggregator = PseudoHuberMean()


class TestAsinhMean(UsersMean):
    aggregator = AsinhMean()
    test_common_factor_passes_through = None  # it claims to be a mean, but no homogeneous one
    test_weights_sum_to_one = None


class TestTanhLimit(TransformContract):
    transform = TanhLimit(2.0)
    settings = shared


def test_properties_of_means_are_checked_for_means_only():
    asked = {part: set(check_aggregator(part, examples=1)) for part in (GeometricMean(), AsinhMean(), Product())}
    of_means = {"mean_of_a_constant", "mean_is_between_the_extremes", "scale_of_the_weights"}
    assert asked[AsinhMean()] - asked[Product()] == of_means
    assert asked[GeometricMean()] - asked[AsinhMean()] == {"common_factor_passes_through", "weights_sum_to_one"}


def test_properties_that_hold_print_as_sentences():
    kept = check_aggregator(Product(), examples=1)
    assert isinstance(kept, list)
    lines = repr(kept).splitlines()
    assert lines[0] == "Product() has 15 properties:"
    assert len(lines) == 16
    assert kept[:2] == ["shapes", "lets_gradient_through"]
    assert any(
        line.split(maxsplit=1)[0] == "order_of_tokens" and line.endswith("not change the value.") for line in lines
    )


def test_check_is_quiet(capfd):
    check_transform(TanhLimit(2.0), examples=3)
    assert capfd.readouterr() == ("", "")


def test_skipped_properties_are_not_checked():
    names = check_advantage(KalmanBaseline(), skip=["order_within_a_prompt"], examples=3)
    assert "order_within_a_prompt" not in names
    assert "order_of_prompts" in names


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"skip": ["order_of_tokens", "gravity"]}, "AggregatorContract has no gravity; see"),
        ({"roundign": 1e-3}, "AggregatorContract has no roundign"),
    ],
)
def test_unknown_names_are_refused(options, message):
    with pytest.raises(TypeError, match=message):
        check_aggregator(GeometricMean(), **options)


def test_parts_of_another_kind_are_refused():
    for part in (LehmerMean, TanhLimit(2.0), None):
        with pytest.raises(TypeError, match=r"give it an instance of a subclass of aggregate_po\.TokenAggregator"):
            check_aggregator(part)
    with pytest.raises(TypeError, match="Penalty"):
        check_penalty(GeometricMean())


def test_settings_of_the_profile_are_respected():
    tried = []

    class Counted(AggregatorContract):
        aggregator = GeometricMean()

        def measured(self, tokens):
            tried.append(tokens)
            return super().measured(tokens)

    Counted().test_inference_mode()
    assert len(tried) == 2 * settings().max_examples


def test_without_hypothesis_the_import_says_what_to_install(monkeypatch):
    for name in [name for name in sys.modules if name.startswith("aggregate_po.testing")]:
        monkeypatch.delitem(sys.modules, name)
    monkeypatch.setitem(sys.modules, "hypothesis", None)
    with pytest.raises(ImportError, match=r"run pip install .*\[testing\]"):
        import aggregate_po.testing  # noqa: F401


USERS_FILE = """
import hypothesis
from aggregate_po import GeometricMean, Product
from aggregate_po.testing import AggregatorContract


class TestGeometricMean(AggregatorContract):
    aggregator = GeometricMean()
    settings = hypothesis.settings(max_examples=10)
    test_advantages_per_token = None


class TestProduct(AggregatorContract):
    aggregator = Product()
    settings = hypothesis.settings(max_examples=10)


class Halved(GeometricMean):
    def token_weights(self, tokens):
        return super().token_weights(tokens) / 2


class TestHalved(AggregatorContract):
    aggregator = Halved()
    settings = hypothesis.settings(max_examples=10)
"""


def test_contracts_in_a_users_project(tmp_path):
    """In a process of its own, with the default profile of hypothesis, its database and its health checks."""
    (tmp_path / "test_means.py").write_text(USERS_FILE)
    command = [sys.executable, "-m", "pytest", "-q", "-rs", "-p", "no:cacheprovider", "test_means.py"]
    run = subprocess.run(command, cwd=tmp_path, capture_output=True, text=True, check=False)
    assert "Product() does not claim to be a HomogeneousMean" in run.stdout
    assert "fails weights_sum_to_one: The weights of a homogeneous mean sum to one." in run.stdout
    assert "FailedHealthCheck" not in run.stdout
    assert run.stdout.splitlines()[-1].startswith("4 failed, 50 passed, 5 skipped")
