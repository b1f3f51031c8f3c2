"""Optimizer steps of a recording: micro-batches with what the training step computed from them."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import torch

from aggregate_po import Evaluated, GradientWeights, PerToken
from lightning_modules.batch import RolloutBatch
from lightning_modules.recordings.tensors import load_state, plain_state, save_state


@dataclass(frozen=True)
class RecordedBatch:
    """A micro-batch, and what the training step computed from it.

    Args:
        batch: the micro-batch; its `policy` is what the objective received.
        log_probs: log-probabilities under the policy of the step, before its update; shape `batch time`; nats.
        entropy: entropy of the distribution of each token under the same policy; shape `batch time`; nats.
        rollout_log_probs: log-probabilities that the sampler returned, 0 on padding; shape `batch time`; nats.
        evaluated: value, gradient weights in factors, and exponents, as the training step computed them.
    """

    batch: RolloutBatch
    log_probs: PerToken
    entropy: PerToken
    rollout_log_probs: PerToken
    evaluated: Evaluated

    def state_dict(self) -> dict[str, Any]:
        """Return the fields as nested dictionaries of tensors, numbers and texts."""
        return {**plain_state(self), "batch": self.batch.state_dict()}

    @classmethod
    def from_state_dict(cls, state: Mapping[str, Any]) -> RecordedBatch:
        """Return the micro-batch whose `state_dict` is given."""
        evaluated = dict(state["evaluated"])
        evaluated["weights"] = GradientWeights(**evaluated["weights"])
        rebuilt = {"batch": RolloutBatch.from_state_dict(state["batch"]), "evaluated": Evaluated(**evaluated)}
        return cls(**{**state, **rebuilt})


@dataclass(frozen=True)
class RecordedStep:
    """The micro-batches of an optimizer step.

    Args:
        step: number of the optimizer step in its run, from 1.
        rollout: number of its rollout in the recording, from 1.
        update: number of the step among those of its rollout, from 1.
        batches: micro-batches, in order.
    """

    step: int
    rollout: int
    update: int
    batches: Sequence[RecordedBatch]

    @property
    def completions(self) -> float:
        """Number of completions of the step, with those that were left out because they have no gradient."""
        return float(self.batches[0].batch.policy.totals.completions)

    def save(self, path: Path) -> None:
        """Write the step to a safetensors file."""
        numbers = {"step": self.step, "rollout": self.rollout, "update": self.update}
        batches = {str(number): part.state_dict() for number, part in enumerate(self.batches)}
        save_state({**numbers, "batches": batches}, path)

    @classmethod
    def load(cls, path: Path) -> RecordedStep:
        """Return the step of a file, on the CPU.

        Raises:
            ValueError: the file is missing, damaged or of another kind.
        """
        state = load_state(path)
        try:
            parts = [
                RecordedBatch.from_state_dict(part) for _, part in sorted(state.pop("batches").items(), key=_place)
            ]
            return cls(**state, batches=parts)
        except (KeyError, TypeError, AttributeError) as error:
            raise ValueError(f"{path}: not an optimizer step of a recording ({error}); record again.") from error


def _place(item: tuple[str, Any]) -> int:
    return int(item[0])


def detached(evaluated: Evaluated) -> Evaluated:
    """Return what was evaluated on a micro-batch without its graph, on the CPU."""

    def kept(value: Any) -> Any:
        return value.detach().cpu() if isinstance(value, torch.Tensor) else value

    weights = GradientWeights(**{name: kept(value) for name, value in vars(evaluated.weights).items()})
    return Evaluated(**{**{name: kept(value) for name, value in vars(evaluated).items()}, "weights": weights})
