"""Limits of token ids and lengths that a model and a rollout engine can hold."""

from __future__ import annotations

from dataclasses import dataclass


@dataclass(frozen=True)
class SequenceLimits:
    """Limits of a prompt with its completion; None where there is none or it is unknown.

    Args:
        vocabulary_size: number of token ids that the model has embeddings for.
        max_length: maximum number of tokens of a prompt and its completion; longer ones cannot be computed.
        limited_by: words for the part with the maximum length, for error messages.
        trained_length: number of tokens that the model's configuration declares; longer ones can be computed.
    """

    vocabulary_size: int | None = None
    max_length: int | None = None
    limited_by: str = ""
    trained_length: int | None = None

    def shortened(self, max_length: int | None, limited_by: str) -> SequenceLimits:
        """Return the limits with a maximum length of another part, if that is smaller."""
        if max_length is None or (self.max_length is not None and self.max_length <= max_length):
            return self
        return SequenceLimits(self.vocabulary_size, max_length, limited_by, self.trained_length)
