"""Scores of completions: rewards, and the causes of the verdicts that failed."""

from __future__ import annotations

from collections import Counter
from collections.abc import Sequence
from dataclasses import dataclass
from itertools import compress
from typing import Literal

import torch
from torch import Tensor

from aggregate_po import PerCompletion
from lightning_modules.rewards.verdict import Cause

FailedVerdictRule = Literal["mask", "zero", "error"]


@dataclass(frozen=True)
class Scores:
    """Single rewards of completions.

    Args:
        components: single rewards, 0 where the verdict failed; shape `batch component`; float64.
        causes: cause of each failed verdict, None where there is a reward; `causes[row][component]`.
        trained: for each reward, False if its weight is 0, so that it is only measured.
    """

    components: Tensor
    causes: Sequence[Sequence[Cause | None]]
    trained: Sequence[bool]

    @property
    def trained_causes(self) -> list[list[Cause | None]]:
        """Causes of the rewards that are trained; `trained_causes[row][component]`."""
        return [list(compress(causes, self.trained)) for causes in self.causes]

    @property
    def failed(self) -> PerCompletion:
        """True for completions without a verdict that the total reward needs; shape `batch`."""
        return torch.tensor([any(causes) for causes in self.trained_causes], dtype=torch.bool)


def scored_completions(
    rule: FailedVerdictRule, scores: Scores, decided: PerCompletion | None = None, kind: str = "completions"
) -> PerCompletion:
    """Return True for completions that have a reward, by the rule for failed verdicts; shape `batch`.

    Args:
        rule: rule for failed verdicts.
        scores: scores of the completions.
        decided: True for completions whose reward does not depend on the verdict, such as truncated ones that get 0;
            none when None.
        kind: name of what is scored, for the message.

    Raises:
        RuntimeError: a verdict failed, and the rule is "error".
    """
    failed = scores.failed if decided is None else scores.failed & ~decided
    if rule == "error" and failed.any():
        causes = causes_text(scores.trained_causes)
        raise RuntimeError(
            f"the verdicts on {int(failed.sum())} of {len(failed)} {kind} failed ({causes}), and `failed_verdicts` is "
            "'error'; the warnings above have the first of each reward. Pass 'mask' or 'zero' to go on without them."
        )
    return ~failed if rule == "mask" else torch.ones_like(failed)


def causes_text(causes: Sequence[Sequence[Cause | None]]) -> str:
    """Return the number of failed verdicts by cause, such as "time: 2, exit: 1"."""
    counts = Counter(cause for row in causes for cause in row if cause is not None)
    return ", ".join(f"{cause}: {count}" for cause, count in sorted(counts.items())) or "none"
