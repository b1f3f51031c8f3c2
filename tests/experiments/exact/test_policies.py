"""Enumerated sequences, probabilities and gradients, against counting and autograd."""

import math

import pytest
import torch

from experiments.exact.policies import Sequences


def random_logits(sequences, seed=0):
    return torch.randn(sequences.shape, generator=torch.Generator().manual_seed(seed), dtype=torch.float64)


SIZES = pytest.mark.parametrize(
    ("vocabulary", "length", "stop", "count"),
    [(2, 1, False, 2), (2, 5, False, 32), (5, 2, False, 25), (3, 3, True, 2**3 + 4 + 2 + 1), (2, 4, True, 5)],
)


@SIZES
def test_there_are_as_many_sequences_as_counted_by_hand(vocabulary, length, stop, count):
    sequences = Sequences.of(vocabulary, length, stop)
    assert len(sequences) == count
    texts = {tuple(tokens[mask].tolist()) for tokens, mask in zip(sequences.tokens, sequences.mask, strict=True)}
    assert len(texts) == count
    if stop:
        assert all(0 not in text[:-1] and (len(text) == length or text[-1] == 0) for text in texts)


@SIZES
def test_probabilities_sum_to_one(vocabulary, length, stop, count):
    sequences = Sequences.of(vocabulary, length, stop)
    assert sequences.probabilities(random_logits(sequences)).sum().item() == pytest.approx(1, abs=1e-14)


@SIZES
def test_the_policy_gradient_is_that_of_autograd(vocabulary, length, stop, count):
    sequences = Sequences.of(vocabulary, length, stop)
    rewards = torch.rand(len(sequences), generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    logits = random_logits(sequences).requires_grad_()
    sequences.expected_reward(logits, rewards).backward()
    torch.testing.assert_close(
        sequences.policy_gradient(logits.detach(), rewards), logits.grad.flatten(), rtol=0, atol=1e-12
    )


def test_weighted_gradients_are_those_of_autograd():
    sequences = Sequences.of(3, 3, stop=True)
    logits = random_logits(sequences)
    jacobian = torch.func.jacrev(sequences.log_probs)(logits).flatten(2)
    weights = torch.randn(2, *sequences.mask.shape, generator=torch.Generator().manual_seed(1), dtype=torch.float64)
    every = torch.einsum("bst,stp->bp", weights, jacobian)
    torch.testing.assert_close(sequences.gradient(logits, weights), every, rtol=0, atol=1e-13)
    rows = torch.tensor([4, 0, 7])
    some = torch.einsum("bst,stp->bp", weights[:, rows], jacobian[rows])
    torch.testing.assert_close(sequences.gradient(logits, weights[:, rows], rows), some, rtol=0, atol=1e-13)
    squares = jacobian.square().sum(dim=-1)
    torch.testing.assert_close(sequences.squared_scores(logits), squares, rtol=0, atol=1e-14)


def test_token_values_are_conditional_expectations():
    sequences = Sequences.of(2, 2)
    logits = torch.tensor([[0.0, math.log(3)], [0.0, 0.0], [0.0, math.log(4)]], dtype=torch.float64)
    rewards = torch.tensor([1.0, 0.0, 1.0, 0.0], dtype=torch.float64)
    # After token 0 both ends are equally likely; after token 1, symbol 0 has probability 1/5.
    expected = torch.tensor([[0.5, 1], [0.5, 0], [0.2, 1], [0.2, 0]], dtype=torch.float64)
    torch.testing.assert_close(sequences.token_values(logits, rewards), expected)


@pytest.mark.parametrize(("vocabulary", "length"), [(1, 3), (2, 0)])
def test_too_few_symbols_or_tokens_are_refused(vocabulary, length):
    with pytest.raises(ValueError, match=f"`vocabulary` is {vocabulary} and `length` {length}; pass 2 or more"):
        Sequences.of(vocabulary, length)
