"""Bias of the gradient with each kind of ratio, enumerated over all completions of three tokens and two symbols.

The completions are weighted by their probability under the behavior policy, so that the gradient of the objective is
its expectation over samples. The true gradient is that of the expected reward under the trained policy.
"""

import itertools

import pytest
import torch

from aggregate_po import (
    ArithmeticMean,
    GeometricMean,
    Normalizer,
    PolicyBatch,
    PolicyObjective,
    PrefixKalmanFilter,
    PrefixMinimum,
    PrefixProduct,
    Product,
)

LENGTH = 3
COMPLETIONS = torch.tensor(list(itertools.product([0, 1], repeat=LENGTH)))
# Number of a completion's prefix before each token, among the 1 + 2 + 4 prefixes that have a next token.
PREFIXES = torch.stack([2**t - 1 + COMPLETIONS[:, :t] @ (2 ** torch.arange(t)) for t in range(LENGTH)], dim=-1)


class Given(Normalizer):
    """Weights that are known, such as probabilities."""

    def __init__(self, weights):
        self.weights = weights

    def __call__(self, lengths, totals):
        return self.weights


def log_probs_of(logits):
    """Log-probability of each token of each completion; `logits` has a row for each prefix."""
    return torch.log_softmax(logits, dim=-1)[PREFIXES, COMPLETIONS]


@pytest.fixture(scope="module")
def problem():
    """Logits of the trained policy, log-probabilities under the behavior policy, and a reward of each completion."""
    generator = torch.Generator().manual_seed(3)
    logits, old = torch.randn(2, 2**LENGTH - 1, 2, generator=generator).double()
    return logits, log_probs_of(old), torch.randn(len(COMPLETIONS), generator=generator).double()


def true_gradient(logits, rewards):
    inputs = logits.clone().requires_grad_()
    (log_probs_of(inputs).sum(dim=-1).exp() * rewards).sum().backward()
    return inputs.grad


def bias(problem, objective, advantages):
    """Length of the difference between the expected gradient and the true one, relative to the true one."""
    logits, old, rewards = problem
    inputs = logits.clone().requires_grad_()
    objective.normalizer = Given(old.sum(dim=-1).exp())
    objective(log_probs_of(inputs), PolicyBatch(old, torch.ones_like(old), advantages)).backward()
    expected = true_gradient(logits, rewards)
    # A mean divides by the length.
    scale = 1 if isinstance(objective.aggregator, Product) else LENGTH
    return ((scale * inputs.grad - expected).norm() / expected.norm()).item()


def values_of_tokens(problem):
    """Expected reward after each token under the trained policy, shape `completions tokens`."""
    logits, _, rewards = problem
    probabilities = log_probs_of(logits).sum(dim=-1).exp()
    values = torch.zeros(len(COMPLETIONS), LENGTH).double()
    for row, completion in enumerate(COMPLETIONS):
        for t in range(LENGTH):
            same = (COMPLETIONS[:, : t + 1] == completion[: t + 1]).all(dim=-1)
            values[row, t] = (probabilities[same] * rewards[same]).sum() / probabilities[same].sum()
    return values


def test_the_product_of_the_completion_is_unbiased(problem):
    assert bias(problem, PolicyObjective(Product()), problem[2]) < 1e-14


def test_the_product_of_the_prefix_is_unbiased_with_the_value_of_each_token(problem):
    objective = PolicyObjective(ArithmeticMean(), prefix=PrefixProduct())
    assert bias(problem, objective, values_of_tokens(problem)) < 1e-14


@pytest.mark.parametrize(
    "objective",
    [
        PolicyObjective(ArithmeticMean(), prefix=PrefixProduct()),
        PolicyObjective(ArithmeticMean(), prefix=PrefixMinimum()),
        PolicyObjective(ArithmeticMean()),
        PolicyObjective(GeometricMean()),
        PolicyObjective(ArithmeticMean(), prefix=PrefixKalmanFilter(0.0, 0.0)),
    ],
    ids=["prefix", "minimum", "token", "geometric", "no ratio"],
)
def test_all_others_are_biased_with_the_reward_of_the_completion(problem, objective):
    assert bias(problem, objective, problem[2]) > 0.05


def test_the_value_of_each_token_does_not_help_the_ratio_of_the_token(problem):
    assert bias(problem, PolicyObjective(ArithmeticMean()), values_of_tokens(problem)) > 0.05
