"""Check of the completions that a rollout engine has returned."""

from __future__ import annotations

from lightning_modules.rollouts.base import Completions, RolloutEngine, SamplingParameters


def require_completions(
    completions: Completions, engine: RolloutEngine, prompts: int, sampling: SamplingParameters
) -> None:
    """Check that an engine has returned all completions that were asked for, each with tokens and padded on the right.

    Args:
        completions: completions that `generate` has returned.
        engine: engine that has returned them.
        prompts: number of prompts.
        sampling: parameters of sampling.

    Raises:
        ValueError: a completion is missing, has no token, or is not padded on the right.
    """
    mask, name, expected = completions.mask.bool(), type(engine).__name__, prompts * sampling.samples_per_prompt
    if len(mask) != expected:
        raise ValueError(
            f"`generate` of {name} returned {len(mask)} completions of {prompts} prompts; return {expected}, "
            f"`samples_per_prompt` {sampling.samples_per_prompt} of each prompt."
        )
    empty = ~mask.any(dim=-1)
    if empty.any():
        raise ValueError(
            f"`generate` of {name} returned no token in {int(empty.sum())} of {expected} completions, the first of "
            f"them {int(empty.nonzero()[0])}; return at least one token of each, and `mask` True on it: the stop token "
            "belongs to its completion."
        )
    if (mask[:, 1:] & ~mask[:, :-1]).any():
        raise ValueError(
            f"`generate` of {name} returned a `mask` that is True after padding; return `token_ids` padded on the "
            "right."
        )
