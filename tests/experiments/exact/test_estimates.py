"""Moments of gradient estimates, against brute force and sampling, and what they say of the objectives."""

import itertools
import math

import pytest
import torch

from aggregate_po import (
    ArithmeticMean,
    GeometricMean,
    PolicyBatch,
    PolicyObjective,
    PowerMean,
    Product,
    StepTotals,
    recipes,
)
from aggregate_po.advantages import GroupCentered, GroupedRewards, GroupNormalized, LeaveOneOut
from aggregate_po.prefixes import PrefixProduct
from aggregate_po.recipes import apmpo, ctpo, dapo, drpo, gmpo, grpo, gspo, kpo, minpro, pmpo, real
from experiments.exact.estimates import (
    Moments,
    expected_gradient,
    group_gradients,
    moments,
    moments_by_kind,
    moments_of_groups,
)
from experiments.exact.multisets import all_multisets, sampled_groups
from experiments.exact.policies import Sequences
from experiments.exact.problems import Problem, random_problem

SEQUENCES = Sequences.of(2, 3)
STALE = random_problem(SEQUENCES, 0.5, seed=0)
ON_POLICY = random_problem(SEQUENCES, 0.0, seed=0)
STOPPED = random_problem(Sequences.of(2, 3, stop=True), 0.5, seed=0)


def relative_error(mean, problem):
    gradient = problem.policy_gradient
    return float((mean - gradient).norm() / gradient.norm())


@pytest.mark.parametrize("problem", [STALE, STOPPED], ids=["fixed length", "stopped"])
@pytest.mark.parametrize("recipe", [grpo, gmpo, dapo, pmpo, real])
def test_multisets_give_the_moments_of_all_ordered_groups(problem, recipe):
    objective, size = recipe(), 3
    groups = all_multisets(problem.behavior, size, at_once=7)
    found = moments_of_groups(problem, objective, GroupNormalized(), groups, True)
    every = torch.tensor(list(itertools.product(range(len(problem.sequences)), repeat=size)))
    weights = problem.sequences.probabilities(problem.old_logits)[every].prod(dim=-1)
    gradients = group_gradients(problem, objective, GroupNormalized(), every)
    for row in (0, 7, 60):
        alone = group_gradients(problem, objective, GroupNormalized(), every[row : row + 1])[0]
        torch.testing.assert_close(gradients[row], alone, rtol=0, atol=1e-14)
    mean = weights @ gradients
    assert found.exact
    assert found.groups == math.comb(len(problem.sequences) + size - 1, size)
    torch.testing.assert_close(found.mean, mean, rtol=0, atol=1e-14)
    assert found.variance == pytest.approx(float(weights @ (gradients - mean).square().sum(dim=-1)), abs=1e-14)


def test_the_gradient_of_a_group_is_that_of_autograd():
    rows = torch.tensor([[0, 3, 3, 7]])
    logits = STALE.logits.clone().requires_grad_()
    old_log_probs = STALE.sequences.log_probs(STALE.old_logits)[rows[0]]
    advantages = GroupNormalized()(GroupedRewards(STALE.rewards[rows[0]], 4))
    batch = PolicyBatch(old_log_probs, torch.ones_like(old_log_probs), advantages)
    gmpo()(SEQUENCES.log_probs(logits)[rows[0]], batch).backward()
    found = group_gradients(STALE, gmpo(), GroupNormalized(), rows)[0]
    torch.testing.assert_close(found, logits.grad.flatten(), rtol=0, atol=1e-14)


THREE_REWARDS = Problem(
    SEQUENCES, torch.tensor([0.0, 1, 0.5, 0, 1, 0.5, 1, 0], dtype=torch.float64), STALE.logits, STALE.old_logits
)


@pytest.mark.parametrize("problem", [STALE, STOPPED, THREE_REWARDS], ids=["fixed length", "stopped", "three rewards"])
@pytest.mark.parametrize("recipe", [grpo, gmpo, dapo, pmpo, gspo, ctpo, kpo, minpro, drpo, apmpo])
def test_kinds_give_the_moments_of_all_multisets(problem, recipe):
    objective, size = recipe(), 4
    found = moments_by_kind(problem, objective, GroupNormalized(), size)
    groups = all_multisets(problem.behavior, size)
    every = moments_of_groups(problem, objective, GroupNormalized(), groups, True)
    torch.testing.assert_close(found.mean, every.mean, rtol=0, atol=1e-13)
    assert found.variance == pytest.approx(every.variance, abs=1e-12)
    assert found.groups <= every.groups
    assert found.exact


def test_an_objective_that_follows_the_rewards_sees_those_of_its_group():
    """Two of four completions succeed: mean 1/2, standard deviation 1/2."""
    rows = torch.tensor([[0, 0, 7, 7]])
    assert STALE.rewards[rows[0]].tolist() == [0, 0, 1, 1]
    old_log_probs, log_probs = (SEQUENCES.log_probs(logits)[rows[0]] for logits in (STALE.old_logits, STALE.logits))
    advantages = GroupNormalized()(GroupedRewards(STALE.rewards[rows[0]], 4))
    batch = PolicyBatch(old_log_probs, torch.ones(4, 3), advantages, StepTotals(4, 12, 0.0, 0.5, 0.5))
    weights = apmpo().gradient_weights(log_probs, batch).total
    expected = SEQUENCES.gradient(STALE.logits, weights.unsqueeze(0), rows[0])
    found = group_gradients(STALE, apmpo(), GroupNormalized(), rows)
    torch.testing.assert_close(found, expected, rtol=0, atol=1e-14)


@pytest.mark.parametrize("name", sorted(set(recipes.__all__) - {"dr_grpo", "fspo", "grpo_guard", "flow_dppo"}))
def test_every_recipe_has_moments(name):
    """On policy they vary; off policy a narrow clip may stop every completion."""
    on_policy, stale = (
        moments(random_problem(Sequences.of(2, 2), distance, seed=0), getattr(recipes, name)(), GroupNormalized(), 3)
        for distance in (0.0, 0.2)
    )
    assert on_policy.exact
    assert on_policy.variance > 0.01
    assert stale.mean.isfinite().all()


def test_the_cheapest_enumeration_is_chosen():
    def number(problem, objective, **options):
        found = moments(problem, objective, GroupNormalized(), 4, **options)
        return found.groups, found.exact

    assert number(STALE, gmpo()) == (5, True)  # 0 to 4 completions of reward 1
    assert number(STALE, real()) == (math.comb(8 + 3, 4), True)
    assert number(STALE, real(), most_groups=100) == (100, False)
    different = Problem(SEQUENCES, torch.arange(8.0).double(), STALE.logits, STALE.old_logits)
    assert number(different, gmpo(), most_groups=100) == (100, False)


@pytest.mark.parametrize("objective", [grpo(), gmpo(), real()], ids=["grpo", "gmpo", "real"])
def test_sampled_groups_agree_with_the_enumerated_ones(objective):
    """Mean and variance within three standard errors, over 100,000 groups."""
    problem, samples = random_problem(Sequences.of(2, 4), 0.5, seed=0), 100_000
    exact = moments(problem, objective, GroupNormalized(), 4)
    groups = list(sampled_groups(problem.behavior, 4, samples, seed=0))
    sampled = moments_of_groups(problem, objective, GroupNormalized(), groups, False)
    gradients = torch.cat([group_gradients(problem, objective, GroupNormalized(), rows) for rows, _ in groups])
    assert (exact.exact, sampled.groups) == (True, samples)
    assert float((sampled.mean - exact.mean).norm()) < 3 * math.sqrt(exact.variance / samples)
    of_each = (gradients - exact.mean).square().sum(dim=-1)
    assert abs(sampled.variance - exact.variance) < 3 * float(of_each.std()) / math.sqrt(samples)


# What the moments say


def test_on_policy_the_unclipped_mean_is_unbiased_up_to_its_length():
    """With leave-one-out advantages, which have no bias of their own."""
    for mean in (ArithmeticMean(), GeometricMean(), PowerMean(-2.0)):
        estimate = moments(ON_POLICY, PolicyObjective(mean), LeaveOneOut(), 4)
        assert relative_error(3 * estimate.mean, ON_POLICY) < 1e-12


def test_centered_advantages_shrink_the_gradient_by_one_over_the_group_size():
    estimate = moments(ON_POLICY, PolicyObjective(ArithmeticMean()), GroupCentered(), 4)
    assert relative_error(3 * 4 / 3 * estimate.mean, ON_POLICY) < 1e-12


def test_normalized_advantages_turn_the_gradient():
    """Their divisor depends on the rewards: no factor makes them unbiased, if rewards have more than two values."""
    rewards = torch.tensor([0.0, 0.1, 1, 0.2, 0, 0.5, 1, 0.3], dtype=torch.float64)
    problem = Problem(SEQUENCES, rewards, ON_POLICY.logits, ON_POLICY.old_logits)
    normalized = moments(problem, PolicyObjective(ArithmeticMean()), GroupNormalized(), 4)
    centered = moments(problem, PolicyObjective(ArithmeticMean()), GroupCentered(), 4)
    assert centered.bias(problem.policy_gradient) < 1e-12
    assert 0.01 < normalized.bias(problem.policy_gradient) < 0.2


def test_normalized_advantages_of_two_rewards_only_scale_it():
    normalized = moments(ON_POLICY, PolicyObjective(ArithmeticMean()), GroupNormalized(), 4)
    assert normalized.bias(ON_POLICY.policy_gradient) < 1e-12


@pytest.mark.parametrize("recipe", [grpo, gmpo, pmpo])
def test_the_size_of_a_group_does_not_change_the_direction_with_two_rewards(recipe):
    """Advantages of a group sum to zero, so that completions of both rewards weigh the same."""
    biases = [moments(STALE, recipe(), GroupNormalized(), size).bias(STALE.policy_gradient) for size in (2, 5, 16)]
    assert biases == pytest.approx([biases[0]] * 3, rel=1e-9)
    assert biases[0] > 0.01


def test_the_product_of_the_ratios_is_unbiased_off_policy_and_other_means_are_not():
    outcome = STALE.rewards
    assert relative_error(expected_gradient(STALE, PolicyObjective(Product()), outcome), STALE) < 1e-12
    for mean in (ArithmeticMean(), GeometricMean(), PowerMean(2.0)):
        assert relative_error(3 * expected_gradient(STALE, PolicyObjective(mean), outcome), STALE) > 0.05


def test_ratios_of_prefixes_are_unbiased_with_the_value_of_each_token_alone():
    """With the reward of the whole completion on every token, as CTPO trains, they are not."""
    objective = PolicyObjective(ArithmeticMean(), prefix=PrefixProduct())
    values = SEQUENCES.token_values(STALE.logits, STALE.rewards)
    assert relative_error(3 * expected_gradient(STALE, objective, values), STALE) < 1e-12
    broadcast = relative_error(3 * expected_gradient(STALE, objective, STALE.rewards), STALE)
    token_ratio = relative_error(3 * expected_gradient(STALE, PolicyObjective(ArithmeticMean()), STALE.rewards), STALE)
    assert 0.05 < broadcast < token_ratio


def test_the_measures_do_not_depend_on_the_scale_of_an_objective():
    estimate = moments(STALE, gmpo(), GroupNormalized(), 4)
    scaled = type(estimate)(5 * estimate.mean, 25 * estimate.variance, estimate.groups, True)
    gradient = STALE.policy_gradient
    for measure in ("cosine", "bias", "noise", "mean_squared_error", "signal_to_noise"):
        assert getattr(scaled, measure)(gradient) == pytest.approx(getattr(estimate, measure)(gradient), rel=1e-12)
    assert estimate.bias(gradient) == pytest.approx(math.sqrt(1 - estimate.cosine(gradient) ** 2), rel=1e-9)


def test_measures_of_an_estimate_that_is_zero():
    """A clip may stop every completion."""
    nothing = Moments(torch.zeros(3, dtype=torch.float64), 0.0, 1, True)
    gradient = torch.tensor([1.0, 0.0, 2.0], dtype=torch.float64)
    assert (nothing.cosine(gradient), nothing.bias(gradient), nothing.noise(gradient)) == (0, 1, 0)
    assert (nothing.mean_squared_error(gradient), nothing.signal_to_noise(gradient)) == (1, 0)


def test_measures_of_an_estimate_worked_by_hand():
    """Mean (3, 4) and variance 4, against the gradient (5, 0)."""
    estimate = Moments(torch.tensor([3.0, 4.0]).double(), 4.0, 1, True)
    gradient = torch.tensor([5.0, 0.0]).double()
    assert estimate.scale(gradient) == pytest.approx(0.6)
    assert estimate.bias(gradient) == pytest.approx(0.8)  # (1.8, 2.4) is 4 from (5, 0)
    assert estimate.noise(gradient) == pytest.approx(0.24)
    assert estimate.mean_squared_error(gradient) == pytest.approx(0.64 + 0.0576)
    assert estimate.signal_to_noise(gradient) == pytest.approx(1.5)
