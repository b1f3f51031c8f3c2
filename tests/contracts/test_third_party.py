"""A new aggregator is one short class in one file, and works everywhere without more."""

import inspect

import pytest
import torch

from aggregate_po import (
    PessimisticClip,
    PolicyBatch,
    PolicyObjective,
    TokenRatios,
    effective_sample_size,
    gated_fraction,
    weight_entropy,
)
from tests.aggregate_po.worked_example import LOG_RATIO, close
from tests.third_party import LehmerMean, PseudoHuberMean, SelfDualMean

MEANS = [LehmerMean, SelfDualMean, PseudoHuberMean]


@pytest.mark.parametrize("mean", MEANS)
def test_class_is_short(mean):
    assert len(inspect.getsource(mean).splitlines()) <= 15
    assert [name for name in vars(mean) if inspect.isfunction(vars(mean)[name]) and name[0] != "_"] == ["log_aggregate"]


@pytest.mark.parametrize(
    ("mean", "value", "weights"),
    [
        (LehmerMean(2.0), 0.29724557, [0.65415557, -0.01261007, 0.20925110, 0.14920338]),
        (SelfDualMean(1.0), 0.09643556, [0.26157313, 0.27401223, 0.23282811, 0.23158653]),
        (PseudoHuberMean(0.5), 0.12621355, [0.14769983, 0.09381019, 0.37389822, 0.38459176]),
    ],
)
def test_value_and_weights_worked_by_hand(mean, value, weights):
    """By the formula of each docstring, in ratios and in many digits; Huber's is the root of a sum."""
    tokens = TokenRatios.of(LOG_RATIO)
    close(mean.log_aggregate(tokens), [value], tolerance=1e-8)
    close(mean.token_weights(tokens), [weights], tolerance=1e-8)


@pytest.mark.parametrize("mean", MEANS)
def test_value_weights_and_diagnostics_of_an_objective(mean):
    objective = PolicyObjective(mean(), PessimisticClip.log(0.4, 0.4))
    mask = torch.tensor([[True, True, True, True], [True, False, True, False]])
    batch = PolicyBatch(torch.zeros(2, 4, dtype=torch.float64), mask, torch.tensor([1.0, -1.0]))
    log_probs = LOG_RATIO.expand(2, 4).clone().requires_grad_()
    value = objective(log_probs, batch)
    value.backward()
    weights = objective.gradient_weights(log_probs, batch)
    torch.testing.assert_close(weights.total, log_probs.grad)
    torch.testing.assert_close(value, (weights.completion * weights.advantages * weights.magnitude).sum())
    size = effective_sample_size(weights.concentration)
    assert ((size > 1) & (size <= mask.sum(dim=-1))).all()
    assert ((weight_entropy(weights.concentration) > 0) & (weight_entropy(weights.concentration) < 1.4)).all()
    assert gated_fraction(weights.gate, mask).tolist() == [0.25, 0.0]


@pytest.mark.parametrize(
    ("slot", "path", "option", "number"),
    [
        ("aggregator", "tests.third_party.LehmerMean", "order", 1.5),
        ("aggregator", "tests.third_party.self_dual.SelfDualMean", "order", 2.0),
        ("aggregator", "tests.third_party.huber.PseudoHuberMean", "width", 0.5),
        ("suffix_weight", "tests.third_party.EarlierCountsMore", "rate", 0.5),
        ("prefix", "PrefixKalmanFilter", "process_variance", 0.25),
    ],
)
def test_command_line_takes_it_by_its_import_path(slot, path, option, number):
    pytest.importorskip("lightning")
    from tests.docs.test_snippets import parsed_config

    config = parsed_config(
        [
            *("fit", "--config", "experiments/configs/addition.yaml"),
            *("--model.objective.class_path", "aggregate_po.PolicyObjective"),
            *("--model.objective.init_args.aggregator", "ArithmeticMean"),
            *(f"--model.objective.init_args.{slot}", path),
            *(f"--model.objective.init_args.{slot}.{option}", str(number)),
        ]
    )
    chosen = config["model"]["objective"]["init_args"][slot]
    assert chosen["class_path"].split(".")[-1] == path.split(".")[-1]
    assert chosen["init_args"][option] == number
