"""Zero-sum games with entropy: iterates, the quantal response equilibrium, and the linear rate."""

import math

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from experiments.classical.shared.games import MarkovGame, entropy, gap, quantal_response
from experiments.classical.shared.multiplicative_weights import Play
from experiments.classical.zero_sum import PAYOFF, averaged_gap, divergence, markov_game, matrix_game


def test_iterates_and_their_limit():
    plays = matrix_game(PAYOFF, 0.5, 0.1, 500)
    row, column = (side.exp() for side in quantal_response(PAYOFF, 0.5))
    assert plays[500].row.exp().tolist() == pytest.approx([0.44913218, 0.55086782], abs=5e-9)
    assert plays[500].column.exp().tolist() == pytest.approx([0.37958223, 0.62041777], abs=5e-9)
    assert plays[10].row.exp()[0].item() == pytest.approx(0.52091729, abs=5e-9)
    assert plays[10].column.exp()[0].item() == pytest.approx(0.37474233, abs=5e-9)
    torch.testing.assert_close(plays[500].row.exp(), row, atol=1e-12, rtol=0)
    torch.testing.assert_close(row, (PAYOFF @ column / 0.5).softmax(-1), atol=1e-12, rtol=0)
    torch.testing.assert_close(column, (-row @ PAYOFF / 0.5).softmax(-1), atol=1e-12, rtol=0)


def test_the_equilibrium_of_two_actions_by_bisection():
    def excess(first):
        """Log-odds of the row player's answer to the column player's answer, minus its own."""
        row = torch.tensor([first, 1 - first], dtype=torch.float64)
        column = (-row @ PAYOFF / 0.3).softmax(-1)
        up, down = (PAYOFF @ column / 0.3).tolist()
        return up - down - math.log(first / (1 - first))

    low, high = 1e-9, 1 - 1e-9
    for _ in range(80):
        middle = (low + high) / 2
        low, high = (middle, high) if excess(middle) > 0 else (low, middle)
    assert quantal_response(PAYOFF, 0.3)[0].exp()[0].item() == pytest.approx(low, abs=1e-12)


@given(st.integers(0, 1_000), st.integers(2, 4), st.integers(2, 4), st.sampled_from([0.1, 0.5, 2.0]))
def test_the_divergence_falls_at_least_by_the_claimed_factor(seed, rows, columns, temperature):
    generator = torch.Generator().manual_seed(seed)
    payoff = 2 * torch.rand(rows, columns, generator=generator, dtype=torch.float64) - 1
    equilibrium = quantal_response(payoff, temperature)
    plays = matrix_game(payoff, temperature, 0.1, 100)
    for time in (20, 100):
        assert (
            divergence(equilibrium, plays[time]) <= divergence(equilibrium, plays[0]) * (1 - 0.1 * temperature) ** time
        )
    torch.testing.assert_close(equilibrium[0].exp().sum().item(), 1.0)


def test_without_entropy_the_last_iterate_needs_the_prediction():
    nash = torch.tensor([0.4, 0.6], dtype=torch.float64)
    assert gap(PAYOFF, nash, nash).item() == pytest.approx(0, abs=1e-12)
    with_it, without = (matrix_game(PAYOFF, 0.0, 0.1, 2_000, optimistic) for optimistic in (True, False))
    last = [gap(PAYOFF, plays[-1].row.exp(), plays[-1].column.exp()).item() for plays in (with_it, without)]
    assert last[0] < 1e-5
    assert last[1] > 0.5
    average = averaged_gap(with_it[1:], PAYOFF)
    assert average[-1] < average[199] / 5
    counted = torch.stack([play.row.exp() for play in with_it[1:4]]).mean(dim=0)
    columns = torch.stack([play.column.exp() for play in with_it[1:4]]).mean(dim=0)
    torch.testing.assert_close(average[2], gap(PAYOFF, counted, columns))


def test_a_step_is_that_of_the_definition():
    play = Play(*(torch.tensor(p).double().log() for p in ([0.3, 0.7], [0.6, 0.4], [0.5, 0.5], [0.2, 0.8])))
    after = play.step(PAYOFF, 0.5, 0.1)
    predicted = play.row.exp() ** 0.95 * (0.1 * PAYOFF @ play.predicted_column.exp()).exp()
    torch.testing.assert_close(after.predicted_row.exp(), predicted / predicted.sum())
    column = play.column.exp() ** 0.95 * (-0.1 * PAYOFF.T @ (predicted / predicted.sum())).exp()
    torch.testing.assert_close(after.column.exp(), column / column.sum())


def test_a_markov_game_of_one_state_without_future_is_a_matrix_game():
    game = MarkovGame(torch.ones(1, 2, 2, 1).double(), PAYOFF.unsqueeze(0), 0.0)
    plays = markov_game(game, 0.5, 0.1, 0.05, 50)
    torch.testing.assert_close(plays[50].row[0], matrix_game(PAYOFF, 0.5, 0.1, 50)[50].row)


def test_the_markov_game_converges_to_its_equilibrium_with_slow_and_fast_values():
    game = MarkovGame.random(states=3, actions=2, discount=0.6, seed=0)
    equilibrium = game.equilibrium(0.5)
    for value_step in (0.05, 1.0):
        plays = markov_game(game, 0.5, 0.1, value_step, 400)
        assert divergence(equilibrium, plays[400]) < 1e-6
        assert divergence(equilibrium, plays[0]) > 1e-3
    assert entropy(torch.tensor([0.5, 0.5]).log()).item() == pytest.approx(math.log(2))
