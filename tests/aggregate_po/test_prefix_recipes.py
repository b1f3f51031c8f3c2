"""Recipes on prefixes, on the worked completion under both signs of the advantage."""

import math

import pytest
import torch

from aggregate_po import PolicyBatch, PolicyObjective, PowerMean
from aggregate_po.recipes import ctpo, ctpo_geometric, gpg, grpo, kpo, minpro
from tests.aggregate_po.worked_example import assert_objective, close, worked_batch

# Sums of the log ratios 0.6, 0.1, 0.3, 0.4; their means 0.6, 0.05, 0.1, 0.1.
EACH_PREFIX = [-0.45552970, -0.27629273, -0.33746470, -0.37295617]
ORACLE = {
    "ctpo, wide, +": (ctpo(0.2, 0.3), 1, 1.32417831, [0, 0.27629273, 0.33746470, 0.37295617]),
    "ctpo +": (ctpo(), 1, 1.08004396, [0] * 4),
    "ctpo, no dual clip, -": (ctpo(log_cap=None), -1, -1.44224331, EACH_PREFIX),
    # The cap is at exp of 0.05, 0.07071068, 0.08660254 and 0.1.
    "ctpo -": (ctpo(), -1, -1.08004396, [0] * 4),
    # At 0.6, 0.84852814, 1.03923048 and 1.2 it reaches no token.
    "ctpo, dual clip at 0.6, -": (ctpo(log_cap=0.6000001), -1, -1.44224331, EACH_PREFIX),
    "ctpo geometric, wide, +": (ctpo_geometric(0.2, 0.3), 1, 1.15286794, [0, 0.26281777, 0.27629273, 0.27629273]),
    # Bounds 0.05, 0.03535534, 0.02886751, 0.025.
    "ctpo geometric +": (ctpo_geometric(), 1, 1.03546555, [0] * 4),
    "ctpo geometric, no dual clip, -": (
        ctpo_geometric(log_cap=None),
        -1,
        -1.27093293,
        [-0.45552970, -0.26281777, -0.27629273, -0.27629273],
    ),
    # Weights 1.28, 1.10517092, 0.8, 0.8 of the ratios 1.8221188, 1.10517092, 0.74081822, 0.67032005.
    "minpro +": (minpro(), 1, 0.99629273, [0.32, 0.27629273, 0.2, 0.2]),
    "minpro -": (minpro(), -1, -0.99629273, [-0.32, -0.27629273, -0.2, -0.2]),
    # Filtered log ratios 0.3, -0.18, 0.05384615, 0.08235294.
    "kpo, q = 1, wide, +": (kpo(0.2, 0.2, 1.0), 1, 1.04410786, [0, 0.20881755, 0.26383057, 0.27145974]),
    "kpo, q = 1, wide, -": (kpo(0.2, 0.2, 1.0), -1, -1.08157256, [-0.33746470, -0.20881755, -0.26383057, -0.27145974]),
    "kpo, q = 1, +": (kpo(process_variance=1.0), 1, 0.95911755, [0, 0.20881755, 0, 0]),
}


@pytest.mark.parametrize(("objective", "advantage", "value", "weights"), ORACLE.values(), ids=ORACLE.keys())
def test_recipe_on_the_worked_completion(objective, advantage, value, weights):
    assert_objective(objective, advantage, value, weights)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_limits_of_kpo_are_other_recipes(advantage):
    log_probs, batch = worked_batch(advantage)

    def total(objective):
        return objective.gradient_weights(log_probs, batch).total

    close(total(kpo(0.2, 0.2, math.inf)), total(grpo()), tolerance=1e-14)
    close(total(kpo(0.2, 0.2, 0.0, 0.0)), total(gpg()), tolerance=1e-14)
    mean = total(ctpo_geometric(9.0, 9.0, None))
    close(total(kpo(1.0, math.inf, 0.0, math.inf)), mean, tolerance=1e-14)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_both_modes_of_ctpo_clip_the_same_tokens(advantage):
    generator = torch.Generator().manual_seed(0)
    log_probs = 0.05 * torch.randn(8, 40, generator=generator).double()
    batch = PolicyBatch(torch.zeros(8, 40).double(), torch.ones(8, 40), torch.full((8,), advantage).double())
    product, mean = (recipe().gradient_weights(log_probs, batch) for recipe in (ctpo, ctpo_geometric))
    assert torch.equal(product.clipped, mean.clipped)
    assert 0.05 < product.clipped.double().mean() < 0.9


@pytest.mark.parametrize(
    ("recipe", "weights"),
    [(ctpo, (1 / 2, 1 / 8)), (ctpo_geometric, (1 / 2, 1 / 8)), (kpo, (1 / 2, 1 / 8)), (minpro, (1 / 5, 1 / 5))],
)
def test_weight_of_a_token_in_a_short_and_in_a_long_completion(recipe, weights):
    """On policy; lengths 1 and 4, with a hole in the longer one."""
    mask = torch.tensor([[1, 0, 0, 0, 0], [1, 1, 0, 1, 1]]).bool()
    batch = PolicyBatch(torch.zeros(2, 5), mask, torch.ones(2))
    total = recipe().gradient_weights(torch.zeros(2, 5), batch).total
    close(total, torch.tensor(weights).unsqueeze(-1) * mask)


def test_an_aggregator_of_prefixes_need_not_be_the_arithmetic_mean():
    """The harmonic mean of the prefixes' ratios: weight H^2 / (n r)."""
    ratios = torch.tensor([0.6, 0.1, 0.3, 0.4]).double().exp()
    mean = 1 / (1 / ratios).mean()
    objective = PolicyObjective(PowerMean(-1.0), prefix=ctpo().prefix)
    assert_objective(objective, 1.0, mean.item(), (mean**2 / ratios / 4).tolist())
