"""What is left of a rollout is kept for an objective that can be trained on it."""

import pytest

from aggregate_po import ArithmeticMean, GeometricMean, NestedMean, PolicyObjective
from aggregate_po.penalties import K3Penalty, RatioVariance
from aggregate_po.recipes import flow_grpo, gmpo, tpo
from lightning_modules.rest_of_rollout import reason_to_drop
from tests.lightning_modules.test_batch import example_batch

OVER_SPANS = PolicyObjective(NestedMean(GeometricMean(), ArithmeticMean()))


@pytest.mark.parametrize(
    ("objective", "complete", "reason"),
    [
        (gmpo(), False, None),
        (flow_grpo(), False, None),  # denoising steps: the forward pass gives the rest
        (gmpo(penalties=[RatioVariance(0.1)]), True, None),
        (gmpo(penalties=[RatioVariance(0.1)]), False, "advantage 0"),
        (tpo(), False, "advantage 0"),
        (gmpo(penalties=[K3Penalty(0.1)]), True, "not defined"),
        (OVER_SPANS, False, "not defined"),
    ],
)
def test_it_is_dropped_where_the_objective_lacks_something(objective, complete, reason):
    found = reason_to_drop([example_batch(ref=False).state_dict()], objective, complete)
    assert found is None if reason is None else reason in found
