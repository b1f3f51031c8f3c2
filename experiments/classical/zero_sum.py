r"""Entropy-regularized optimistic multiplicative weights in zero-sum matrix games and Markov games.

The row player maximizes $\mu^\top A \nu + \tau H(\mu) - \tau H(\nu)$ and the column player minimizes it. Each predicts
the other's next policy, and then steps against the prediction. In a Markov game the payoffs are the action values of
each state, and the values of states follow more slowly.

Reference: arXiv:2210.01050.
"""

from __future__ import annotations

import torch
from matplotlib.figure import Figure
from torch import Tensor

from aggregate_po.penalties import K3Penalty
from experiments.classical.shared.curves import Table, moments, plot_panel, points
from experiments.classical.shared.games import MarkovGame, entropy, gap, quantal_response
from experiments.classical.shared.multiplicative_weights import Play
from experiments.figures.style import panels

SHORT = {"steps": 60, "game_steps": 30}
PAYOFF = torch.tensor([[2.0, -1.0], [-1.0, 1.0]], dtype=torch.float64)
TEMPERATURE, GAME_TEMPERATURE, STEP_SIZE = 0.5, 0.1, 0.1
PREDICTED = "with prediction"


def divergence(equilibrium: tuple[Tensor, Tensor], play: Play) -> Tensor:
    """Return the divergence of both policies from those of the equilibrium, at the state where it is largest.

    The estimator k3 of the library has that divergence as its mean and is not negative, so that nothing is lost where
    the policies almost agree.
    """
    total = 0.0
    for target, policy in zip(equilibrium, (play.row, play.column), strict=True):
        total = total + (target.exp() * K3Penalty(1.0).estimate(target - policy)).sum(dim=-1)
    return torch.as_tensor(total).amax()


def matrix_game(
    payoff: Tensor, temperature: float, step_size: float, steps: int, optimistic: bool = True
) -> list[Play]:
    """Return the policies at the start and after each step."""
    plays = [Play.uniform(payoff)]
    for _ in range(steps):
        plays.append(plays[-1].step(payoff, temperature, step_size, optimistic))
    return plays


def markov_game(game: MarkovGame, temperature: float, step_size: float, value_step: float, steps: int) -> list[Play]:
    """Return the policies at the start and after each step, with values that follow with the given step.

    Args:
        game: Game to play.
        temperature: Weight of the entropies.
        step_size: Step size of the policies.
        value_step: Step size of the values, from 0 to 1.
        steps: Number of steps.
    """
    values = torch.zeros(len(game.rewards), dtype=torch.float64)
    plays = [Play.uniform(game.rewards)]
    for _ in range(steps):
        payoff = game.payoffs(values)
        play = plays[-1].step(payoff, temperature, step_size)
        row, column = play.predicted_row, play.predicted_column
        outcome = torch.einsum("sr,src,sc->s", row.exp(), payoff, column.exp())
        outcome = outcome + temperature * (entropy(row) - entropy(column))
        values = (1 - value_step) * values + value_step * outcome
        plays.append(play)
    return plays


def averaged_gap(plays: list[Play], payoff: Tensor) -> Tensor:
    """Return the duality gap of the averages of all policies so far, after each step."""
    counts = torch.arange(1.0, len(plays) + 1, dtype=torch.float64).unsqueeze(-1)
    row, column = (
        torch.stack([getattr(play, name).exp() for play in plays]).cumsum(dim=0) / counts for name in ("row", "column")
    )
    return gap(payoff, row, column)


def rows(steps: int = 10_000, game_steps: int = 1_000) -> Table:
    """Return divergences from the equilibrium and duality gaps.

    Args:
        steps: Steps in the matrix game without entropy, and toward its Nash equilibrium.
        game_steps: Steps in the Markov game, and up to 400 in the matrix game with entropy.
    """
    table: Table = []
    equilibrium = quantal_response(PAYOFF, TEMPERATURE)
    early = range(0, min(game_steps, 400) + 1, 10)
    for optimistic, name in ((True, PREDICTED), (False, "without")):
        plays = matrix_game(PAYOFF, TEMPERATURE, STEP_SIZE, early[-1], optimistic)
        found = [divergence(equilibrium, play) for play in plays]
        table += points("matrix", name, early, (found[time] for time in early))
    bound = [float(found[0]) * (1 - STEP_SIZE * TEMPERATURE) ** time for time in early]
    table += points("matrix", r"$(1 - \eta\tau)^t$", early, bound)
    times = moments(steps)
    for optimistic, name in ((True, PREDICTED), (False, "without")):
        plays = matrix_game(PAYOFF, 0.0, STEP_SIZE, steps, optimistic)
        last = [gap(PAYOFF, play.row.exp(), play.column.exp()) for play in plays]
        table += points("no entropy", f"{name}, last", times, (last[time] for time in times))
        average = averaged_gap(plays[1:], PAYOFF)
        table += points("no entropy", f"{name}, average", times, (average[time - 1] for time in times))
    for temperature in (0.5, 0.05, 0.005):
        plays = matrix_game(PAYOFF, temperature, STEP_SIZE, steps)
        last = [gap(PAYOFF, plays[time].row.exp(), plays[time].column.exp()) for time in times]
        table += points("toward Nash", f"$\\tau$ = {temperature:g}", times, last)
    game = MarkovGame.random(states=4, actions=3, discount=0.9, seed=0)
    target, late = game.equilibrium(GAME_TEMPERATURE), range(0, game_steps + 1, max(game_steps // 30, 1))
    for value_step, name in ((STEP_SIZE * GAME_TEMPERATURE, r"$\alpha = \eta\tau$"), (1.0, r"$\alpha$ = 1")):
        plays = markov_game(game, GAME_TEMPERATURE, STEP_SIZE, value_step, game_steps)
        table += points("markov", name, late, (divergence(target, plays[time]) for time in late))
    return table


def plot(table: Table) -> Figure:
    """Return the plot of the table."""
    canvas, (matrix, plain, nash, markov) = panels(2, 2, 10, 7.5)
    distance = "divergence from the equilibrium (nats)"
    plot_panel(matrix, table, "matrix", ("step $t$", distance), ("linear", "log"))
    plot_panel(plain, table, "no entropy", ("step $t$", "duality gap (payoff)"), ("log", "log"))
    plot_panel(nash, table, "toward Nash", ("step $t$", "duality gap (payoff)"), ("log", "log"))
    plot_panel(markov, table, "markov", ("step $t$", "worst state's divergence (nats)"), ("linear", "log"))
    titles = ("matrix game, with entropy", "matrix game, without entropy", "toward the Nash equilibrium", "Markov game")
    for panel, title in zip((matrix, plain, nash, markov), titles, strict=True):
        panel.set_title(title, fontsize=10)
    return canvas
