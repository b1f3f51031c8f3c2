"""The objective: its factors, its parts, a batch without tokens, and the public names."""

import importlib

import pytest
import torch

import aggregate_po
from aggregate_po import (
    GeometricMean,
    GradientWeights,
    Normalizer,
    PolicyBatch,
    PolicyObjective,
    RatioTransform,
    SequenceMean,
    StepTotals,
    TokenAggregator,
)
from aggregate_po.aggregators import PowerMean
from aggregate_po.penalties import EntropyBonus, K3Penalty
from aggregate_po.recipes import gmpo, grpo, gspo
from aggregate_po.transforms import PessimisticClip
from tests.aggregate_po.worked_example import close, worked_batch
from tests.contracts.strategies import RECIPES


def test_factors_of_the_worked_completion():
    """M_0.5 with the log clip, advantage -1: value 1.16911863, weights of c^0.5 with -0.5 held at -0.4."""
    log_probs, batch = worked_batch(-1.0)
    objective = PolicyObjective(PowerMean(0.5), PessimisticClip.log(0.4, 0.4))
    weights = objective.gradient_weights(log_probs, batch)
    close(weights.completion, [[1.0]])
    close(weights.advantages, [[-1.0]])
    close(weights.magnitude, [[1.16911863]])
    close(weights.concentration, [[0.31210380, 0.18930053, 0.25552898, 0.24306669]])
    close(weights.gate, [[1.0, 0.0, 1.0, 1.0]])
    close(weights.penalty, [[0.0] * 4])


def test_sequence_clip_stands_in_the_magnitude():
    log_probs, batch = worked_batch(1.0)
    weights = gspo().gradient_weights(log_probs, batch)
    assert weights.magnitude.item() == 0
    assert weights.gate.tolist() == [[1.0] * 4]
    close(weights.concentration, [[0.25] * 4])


def test_total_is_the_product_of_the_factors_and_the_penalty():
    factors = GradientWeights(
        completion=torch.tensor([[2.0]]),
        advantages=torch.tensor([[-3.0]]),
        magnitude=torch.tensor([[5.0]]),
        concentration=torch.tensor([[0.5, 0.25]]),
        gate=torch.tensor([[1.0, 2.0]]),
        penalty=torch.tensor([[0.125, 0.0]]),
        clipped=torch.tensor([[False, False]]),
        overflow=torch.tensor([[False, False]]),
    )
    assert factors.total.tolist() == [[-14.875, -15.0]]


@pytest.mark.parametrize("penalties", [(), (K3Penalty(0.1), EntropyBonus(0.1))], ids=["", "penalties"])
@pytest.mark.parametrize("recipe", RECIPES.values(), ids=RECIPES.keys())
def test_batch_without_tokens_is_a_zero_attached_to_the_graph(recipe, penalties):
    log_probs = torch.full((2, 3), float("nan"), requires_grad=True)
    nan = torch.full((2, 3), float("nan"))
    totals = StepTotals(0, 0, progress=0.0, reward_mean=0.5, reward_std=0.5)
    optional = {"groups": torch.zeros(2), **dict.fromkeys(("ref_log_probs", "divergence", "scale"), nan)}
    batch = PolicyBatch(nan, torch.zeros(2, 3), torch.ones(2), totals, **optional)
    objective = recipe(penalties=penalties)
    value = objective(log_probs, batch)
    assert value.item() == 0
    value.backward()
    assert log_probs.grad.tolist() == [[0.0] * 3] * 2
    assert objective.gradient_weights(log_probs, batch).total.tolist() == [[0.0] * 3] * 2


@pytest.mark.parametrize("dtype", [torch.float32, torch.bfloat16])
def test_value_is_computed_in_at_least_single_precision(dtype):
    log_probs, mask, advantages = torch.full((1, 2), 0.5, dtype=dtype), torch.ones(1, 2), torch.ones(1)
    batch = PolicyBatch(torch.zeros(1, 2, dtype=dtype), mask, advantages)
    value = gmpo(1.0)(log_probs, batch)
    assert value.dtype == torch.float32
    close(value, 1.64872127, tolerance=2e-7)


@pytest.mark.parametrize(
    ("parts", "message"),
    [
        (
            {"aggregator": PowerMean},
            r"^`aggregator` is .*PowerMean.*; pass an instance of a subclass of aggregate_po.Tok",
        ),
        (
            {"token_transform": 0.2},
            r"^`token_transform` is 0.2; pass an instance of a subclass of aggregate_po.RatioTra",
        ),
        ({"sequence_transform": SequenceMean()}, r"^`sequence_transform` is SequenceMean\(\); pass an instance of"),
        ({"normalizer": None}, r"^`normalizer` is None; pass an instance of a subclass of aggregate_po.Normalizer"),
        ({"penalties": [0.1]}, r"^`penalties` is 0.1; pass an instance of a subclass of aggregate_po.Penalty"),
        ({"penalties": K3Penalty(0.1)}, r"^`penalties` is K3Penalty\(coefficient=0.1.*; pass a list of penalties"),
    ],
    ids=["class instead of instance", "number", "wrong part", "none", "coefficient", "no list"],
)
def test_parts_of_the_wrong_kind_are_named(parts, message):
    with pytest.raises(TypeError, match=message):
        PolicyObjective(**{"aggregator": GeometricMean(), **parts})


def test_repr_shows_the_parts():
    assert repr(grpo()) == (
        "PolicyObjective(aggregator=ArithmeticMean(), token_transform=PessimisticClip(clip_low=0.2, clip_high=0.2), "
        "normalizer=SequenceMean())"
    )


PUBLIC = {
    "aggregate_po": [
        *("PolicyObjective", "PolicyBatch", "StepTotals", "TokenRatios", "GradientWeights", "Evaluated", "PerToken"),
        *("PerCompletion", "TokenAggregator", "RatioTransform", "Normalizer", "Penalty", "effective_sample_size"),
    ],
    "aggregate_po.aggregators": ["ArithmeticMean", "GeometricMean", "KolmogorovMean", "PowerMean", "Product"],
    "aggregate_po.transforms": ["PessimisticClip", "RatioTransform"],
    "aggregate_po.normalizers": ["SequenceMean", "TokenMean", "ConstantLength"],
    "aggregate_po.exponents": ["ESSMatching"],
    "aggregate_po.penalties": ["K1Penalty", "K2Penalty", "K3Penalty", "EntropyBonus"],
    "aggregate_po.advantages": ["GroupNormalized", "GroupCentered", "LeaveOneOut"],
    "aggregate_po.geometry": ["effective_sample_size", "weight_entropy", "gated_fraction"],
    "aggregate_po.masked": ["masked_logsumexp", "masked_mean", "masked_softmax", "masked_sum"],
    "aggregate_po.recipes": ["grpo", "dr_grpo", "dapo", "gspo", "gmpo", "pmpo"],
}


@pytest.mark.parametrize(("module", "names"), PUBLIC.items())
def test_public_names_are_importable(module, names):
    missing = [name for name in names if not callable_or_type(getattr(importlib.import_module(module), name, None))]
    assert not missing


def callable_or_type(value):
    """A recipe's name is also that of its module, which must not hide the function."""
    return value is not None and (callable(value) or hasattr(value, "__metadata__"))


def test_the_same_class_has_one_identity():
    assert aggregate_po.PowerMean is PowerMean


class Careless(TokenAggregator):
    def __init__(self, result):
        self.result = result

    def log_aggregate(self, tokens):
        return self.result(tokens.log_ratio)


@pytest.mark.parametrize(
    "result",
    [lambda x: x.mean(), lambda x: x.mean(-1, keepdim=True), lambda x: x, lambda x: x.mean(-1)[:1]],
    ids=["dim forgotten", "dim kept", "not reduced", "too short"],
)
def test_an_aggregate_of_another_shape_is_an_error(result):
    """On a square batch each of them would broadcast without a word."""
    batch = PolicyBatch(torch.zeros(3, 3), torch.ones(3, 3), torch.ones(3))
    with pytest.raises(ValueError, match=r"^`Careless.log_aggregate` returned .*; return shape batch, here \(3,\)"):
        PolicyObjective(Careless(result))(torch.zeros(3, 3), batch)


def test_other_parts_of_another_shape_are_errors():
    class WideNormalizer(Normalizer):
        def __call__(self, lengths, totals):
            return torch.ones(len(lengths), 1)

    class ReducingTransform(RatioTransform):
        def __call__(self, ratios):
            return ratios.log_ratio.mean(-1)

    batch = PolicyBatch(torch.zeros(3, 3), torch.ones(3, 3), torch.ones(3))
    with pytest.raises(ValueError, match=r"^`WideNormalizer.__call__` returned shape \(3, 1\)"):
        PolicyObjective(GeometricMean(), normalizer=WideNormalizer())(torch.zeros(3, 3), batch)
    with pytest.raises(ValueError, match=r"^`ReducingTransform.__call__` returned shape \(3,\)"):
        PolicyObjective(GeometricMean(), ReducingTransform())(torch.zeros(3, 3), batch)
