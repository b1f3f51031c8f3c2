"""The layout that serves a model: the one asked for, or the first that computes what a plain forward pass does."""

from __future__ import annotations

from lightning.pytorch.utilities import rank_zero_warn
from transformers import PreTrainedModel

from lightning_modules.model.layouts import (
    PackedGroups,
    PackedSequences,
    PaddedSequences,
    SequenceLayout,
    SharedPrompts,
)
from lightning_modules.model.probe import Probes


def serving_layout(model: PreTrainedModel, asked: SequenceLayout | None = None) -> SequenceLayout:
    """Return the layout to train a model with, tried out on a few short rows; see `Probes` for the cost.

    A layout must give the log-probabilities of a plain forward pass and its gradient, up to rounding.

    Args:
        model: the model on its device, in the precision of training.
        asked: layout to use; when None, the first that serves of `PackedGroups`, `SharedPrompts` and `PaddedSequences`.

    Raises:
        ValueError: the layout asked for, or every one, is wrong by more than rounding.
    """
    probe, name = Probes(model), type(model).__name__
    if asked is not None:
        deviation = probe.of_layout(asked)
        if deviation.passes:
            return asked
        others = (PackedGroups(), SharedPrompts(), PaddedSequences(), PackedSequences())
        serving = [type(other).__name__ for other in others if probe.of_layout(other).passes]
        remedy = f"pass {' or '.join(serving)}, or leave `layout` out" if serving else "no layout serves this model"
        raise ValueError(f"`layout` is {type(asked).__name__}, which {deviation} with {name}; {remedy}.")
    if probe.of_layout(PackedGroups()).passes:
        return PackedGroups()
    shared = probe.of_layout(SharedPrompts())
    if shared.passes:
        return SharedPrompts()
    padded = probe.of_layout(PaddedSequences())
    if not padded.passes:
        raise ValueError(
            f"{name} cannot be trained: SharedPrompts {shared}, and PaddedSequences {padded}; pass a causal model, or "
            "a `layout` of your own."
        )
    rank_zero_warn(
        f"`layout` is PaddedSequences for {name}, so that each prompt is processed once per completion: SharedPrompts "
        f"{shared}."
    )
    return PaddedSequences()
