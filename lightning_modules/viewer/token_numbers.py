"""Numbers of the tokens of a completion, from the rows that `TokenWeightsFile` writes."""

from __future__ import annotations

import math
from array import array
from collections.abc import Iterable

from lightning_modules.token_rows import TokenRow
from lightning_modules.viewer.report import Quantity, TokenNumbers

QUANTITIES = (
    Quantity(
        "weight",
        "gradient weight",
        "∂J/∂log π",
        meaning="Gradient of the step's objective with respect to the log-probability of the token: above 0 the step "
        "makes the token more probable, below 0 less.",
    ),
    Quantity(
        "concentration",
        "concentration",
        "ω",
        meaning="Share of the completion's gradient that the token receives, before gate and clip; an equal share is "
        "1 / the number of trained tokens.",
        scale="share",
    ),
    Quantity(
        "log_ratio",
        "log ratio",
        "log r",
        "nats",
        "Log-probability of the token under the trained policy less that under the behavior policy.",
    ),
    Quantity(
        "clip",
        "clip",
        meaning="Tokens whose gradient a clip sets to zero, by the sign of the advantage.",
        scale="sides",
    ),
    Quantity(
        "advantage", "advantage", "A", meaning="Advantage of the token; most estimators give all tokens the same."
    ),
    Quantity("log_prob", "log-probability", "log π", "nats", scale="hidden"),
    Quantity("old_log_prob", "old log-probability", "log π_old", "nats", scale="hidden"),
    Quantity("gate", "gate", "g", scale="hidden"),
)


def token_numbers(row: TokenRow) -> TokenNumbers:
    """Return the numbers of the tokens of a row; tokens that are not trained have none."""
    count, advantage, trained = len(row["tokens"]), row["advantage"], row["trained"]
    advantages = advantage if isinstance(advantage, list) else [advantage] * count
    log_ratios = [new - old for new, old in zip(row["log_probs"], row["old_log_probs"], strict=True)]
    sides = [
        math.copysign(1.0, value) if clipped else 0.0 for value, clipped in zip(advantages, row["clipped"], strict=True)
    ]
    values = {
        "weight": row["weights"],
        "concentration": row["concentration"],
        "log_ratio": log_ratios,
        "clip": sides,
        "advantage": advantages,
        "log_prob": row["log_probs"],
        "old_log_prob": row["old_log_probs"],
        "gate": row["gate"],
    }
    marks = {
        "clipped": row["clipped"],
        "overflow": row["overflow"],
        "untrained": [not flag for flag in trained],
    }
    exponent = row["exponent"]
    return TokenNumbers(
        step=row["step"],
        texts=row["tokens"],
        ids=array("i", row["token_ids"]),
        values={name: _of_trained(numbers, trained) for name, numbers in values.items()},
        marks=marks,
        facts={} if exponent is None else {"exponent p": f"{exponent:.4g}"},
    )


def _of_trained(numbers: Iterable[float], trained: Iterable[bool]) -> array[float]:
    return array("f", [value if flag else math.nan for value, flag in zip(numbers, trained, strict=True)])
