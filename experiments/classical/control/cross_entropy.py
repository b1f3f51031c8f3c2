"""Cross-entropy method over the locations of a truncated normal distribution, for many problems at once."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import torch
from einops import reduce, repeat
from torch import Tensor

# Values of candidates, from their locations; shapes `candidate state action` and `candidate state`.
Score = Callable[[Tensor], Tensor]


@dataclass(frozen=True)
class CrossEntropy:
    """Searches the maximum of a score: samples candidates, keeps the best ones, and refits location and scale to them.

    Args:
        iterations: Number of samples of candidates.
        candidates: Number of candidates of a sample.
        elites: Number of candidates that are kept.
        scale: Scale of the first sample.
        truncation: Largest distance of a candidate from the location, in scales.
        shared: Whether a candidate is kept or not for all states together, by its mean score over the states, as in
            the code of the paper's authors; otherwise each state has elites of its own.

    Raises:
        ValueError: there are fewer candidates than elites, or fewer than two elites.

    Reference: Shi and Singh, arXiv:2112.11115.
    """

    iterations: int = 10
    candidates: int = 100
    elites: int = 5
    scale: float = 0.33
    truncation: float = 3.0
    shared: bool = False

    def __post_init__(self) -> None:
        if not 2 <= self.elites <= self.candidates:
            raise ValueError(
                f"`elites` is {self.elites}; pass at least 2, for a scale, and at most {self.candidates} candidates."
            )

    @torch.no_grad()
    def maximum(self, score: Score, start: Tensor) -> Tensor:
        """Return the last location of each state.

        Args:
            score: returns the values of candidates, shape `candidate state`, for their locations, shape
                `candidate state action`.
            start: first locations; shape `state action`.
        """
        location, scale = start, torch.full_like(start, self.scale)
        for _ in range(self.iterations):
            noise = torch.empty(self.candidates, *start.shape, dtype=start.dtype)
            torch.nn.init.trunc_normal_(noise, a=-self.truncation, b=self.truncation)
            sample = location + scale * noise
            elites = self._elites(sample, score(sample))
            location, scale = elites.mean(dim=0), elites.std(dim=0)
        return location

    def _elites(self, sample: Tensor, values: Tensor) -> Tensor:
        """Return the best candidates; shape `elite state action`."""
        if self.shared:
            return sample[reduce(values, "candidate state -> candidate", "mean").topk(self.elites).indices]
        best = values.topk(self.elites, dim=0).indices
        return sample.gather(0, repeat(best, "elite state -> elite state action", action=sample.shape[-1]))
