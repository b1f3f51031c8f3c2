"""Networks of two hidden layers."""

from __future__ import annotations

from torch import nn


def network(inputs: int, outputs: int, hidden: int, activation: type[nn.Module] = nn.ReLU) -> nn.Sequential:
    """Return a network of two hidden layers.

    Args:
        inputs: Number of inputs.
        outputs: Number of outputs.
        hidden: Width of the hidden layers.
        activation: Activation after each hidden layer.
    """
    layers = nn.Linear(inputs, hidden), activation(), nn.Linear(hidden, hidden), activation()
    return nn.Sequential(*layers, nn.Linear(hidden, outputs))
