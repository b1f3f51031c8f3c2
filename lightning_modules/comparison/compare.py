"""Comparison of objectives on a recording, without training."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from aggregate_po import PolicyObjective
from lightning_modules.comparison.curves import rows_by_log_ratio, rows_by_position, rows_by_quantile
from lightning_modules.comparison.evaluation import evaluated_step, require_comparable
from lightning_modules.comparison.gradients import ParameterGradients, parameter_gradients, recorded_policy
from lightning_modules.comparison.names import named_objectives
from lightning_modules.comparison.rows import Row, objective_rows, overlap_rows
from lightning_modules.comparison.tokens import Tokens, Weights, recorded_weights, weights_of
from lightning_modules.recordings.recording import Recording

RECORDED = "recorded"  # name of the objective that was trained, with the weights that its training steps computed
GradientDetail = Literal["completions", "steps", "none"]


@dataclass(frozen=True)
class Comparison:
    """Rows about objectives on one recording; `docs/frozen-rollouts.md` says what the columns mean.

    Args:
        recording: the recording.
        tokens: trained tokens of all optimizer steps.
        weights: weights of each named objective on these tokens.
        objectives: measures of each objective, over all steps and by update.
        overlap: overlap of the clipped tokens of each pair of objectives.
        by_log_ratio: weight relative to that on policy, against the log ratio.
        by_position: share of the gradient against the position in the completion.
        by_quantile: share of the gradient by tenths of the log ratio.
        gradients: norm, angle and noise of the parameter gradients; empty if they were not computed.
        cosines: cosine of the parameter gradients of each pair of objectives; empty if they were not computed.
    """

    recording: Recording
    tokens: Tokens
    weights: Mapping[str, Weights]
    objectives: Sequence[Row]
    overlap: Sequence[Row]
    by_log_ratio: Sequence[Row]
    by_position: Sequence[Row]
    by_quantile: Sequence[Row]
    gradients: Sequence[Row] = ()
    cosines: Sequence[Row] = ()

    @property
    def gradients_note(self) -> str:
        """Sentence on the parameter gradients of a recording whose run trained adapters; empty for others."""
        if not self.gradients or self.recording.manifest.trained_parameters == "all":
            return ""
        return "The run trained adapters, which the recorded model has merged: these are gradients of all its weights."


def compare_objectives(
    folder: str | Path,
    objectives: str | Mapping[str, PolicyObjective],
    gradients: GradientDetail = "completions",
    device: str = "cpu",
) -> Comparison:
    """Evaluate objectives on the optimizer steps of a recording.

    The first one in the results, `recorded`, has the weights that the training steps computed.

    Args:
        folder: Folder that `aggregate-po record` has written.
        objectives: Objectives with commas between them, such as `grpo,gmpo(log_clip=0.2),mypackage.MyMean`: names
            of recipes, or import paths of recipes, objectives or aggregators; or objectives by name.
        gradients: Parameter gradients to compute with the recorded model, on one optimizer step. "completions" makes a
            backward pass for each objective and completion, from which the variance follows, "steps" one for each
            objective and micro-batch, and "none" makes none.
        device: Device of the recorded model.

    Raises:
        FileNotFoundError: the folder is no recording, or a file is missing.
        ValueError: a file is damaged, an objective is unknown, it reads what the recording lacks or has a gradient that
            is not finite, or no token was trained.
    """
    recording = Recording(folder)
    named = named_objectives(objectives) if isinstance(objectives, str) else dict(objectives)
    if RECORDED in named:
        raise ValueError(f"`objectives` has {RECORDED!r}, the name of what was recorded; choose another one.")
    steps = list(recording)
    for label, objective in named.items():
        require_comparable(label, objective, recording.manifest, steps[0])
    tokens, recorded = Tokens.of(steps), recorded_weights(None, steps)
    if not len(tokens):
        raise ValueError(
            f"`folder` is {str(folder)!r}, whose {len(steps)} steps train no token, as where the rewards of each group "
            "are equal or all completions are truncated and masked; record more rollouts, or a later checkpoint."
        )
    weights = {label: weights_of(objective, steps) for label, objective in named.items()}
    for label, own in weights.items():
        _require_finite(label, own, tokens)
    found = None if gradients == "none" else _gradients(recording, named, gradients == "completions", device)
    return Comparison(
        recording=recording,
        tokens=tokens,
        weights=weights,
        objectives=[
            row
            for label, one in {RECORDED: recorded, **weights}.items()
            for row in objective_rows(label, tokens, one, recorded)
        ],
        overlap=overlap_rows(weights),
        by_log_ratio=[row for label, one in weights.items() for row in rows_by_log_ratio(label, tokens, one)],
        by_position=[row for label, one in weights.items() for row in rows_by_position(label, tokens, one)],
        by_quantile=[row for label, one in weights.items() for row in rows_by_quantile(label, tokens, one)],
        gradients=[] if found is None else _gradient_rows(found),
        cosines=[] if found is None else _cosine_rows(found),
    )


def _require_finite(label: str, weights: Weights, tokens: Tokens) -> None:
    """Check the weights of an objective, of which no measure could say that some are missing."""
    wrong = ~weights.total.isfinite()
    if wrong.any():
        raise ValueError(
            f"`objectives` has {label!r}, whose gradient is not finite on {int(wrong.sum())} of {len(tokens)} tokens, "
            f"first in step {int(tokens.step[wrong][0])} at a log ratio of {float(tokens.log_ratio[wrong][0]):.3g}; "
            "correct the objective, or leave it out."
        )


def _gradients(
    recording: Recording, named: Mapping[str, PolicyObjective], per_completion: bool, device: str
) -> ParameterGradients:
    policy = recorded_policy(recording, device)
    step = recording.step(recording.manifest.model_step or 0)
    weights = {RECORDED: [part.evaluated.weights.total for part in step.batches]}
    for label, objective in named.items():
        weights[label] = [result.weights.total for result in evaluated_step(objective, step)]
    return parameter_gradients(weights, step, policy, per_completion)


def _gradient_rows(found: ParameterGradients) -> list[Row]:
    norms, cosines, noise = found.norms, found.cosines[0], found.noise_to_signal
    return [
        {
            "objective": label,
            "step": found.step,
            "completions": found.completions,
            "norm": float(norms[place]),
            "norm_ratio": float(norms[place] / norms[0]),
            "cosine_to_recorded": float(cosines[place]),
            "noise_to_signal": float(noise[place]),
            "log_prob_difference": found.log_prob_difference,
        }
        for place, label in enumerate(found.labels)
    ]


def _cosine_rows(found: ParameterGradients) -> list[Row]:
    return [
        {"objective": first, "other": second, "cosine": float(found.cosines[line, column])}
        for line, first in enumerate(found.labels)
        for column, second in enumerate(found.labels)
    ]
