"""Sampling of trajectories as completions, for training and evaluation."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any, Self

import torch
from lightning import Trainer
from torch import Tensor
from typing_extensions import override

from aggregate_po import PerToken
from lightning_modules.data.evaluation import EvaluationLoader
from lightning_modules.data.sampler import CompletionSampler, Sampled
from lightning_modules.distributed import data_parallel_rank, data_parallel_size
from lightning_modules.flow.dynamics import ODE, Dynamics, StepCoefficients
from lightning_modules.flow.model import FlowModel
from lightning_modules.flow.policy import FlowPolicy
from lightning_modules.flow.trajectories import Trajectories, sample_trajectories
from lightning_modules.prompts import Example, Prompt
from lightning_modules.rollouts import Completions
from lightning_modules.seeding import derived_seed

_SHOWN_NUMBERS = 8  # of a sample


@dataclass(frozen=True)
class SampledSteps(Completions):
    """Trajectories as completions, whose tokens are denoising steps, on the CPU.

    Args:
        token_ids: number of each step, from 0; shape `batch time`.
        mask: True on all steps; shape `batch time`.
        log_probs: see `Trajectories`.
        finished: True; shape `batch`.
        latents: see `Trajectories`.
        means: see `Trajectories`.
        scales: see `Trajectories`.
        of_latents: coefficient of the latents in the mean of each step; shape `batch time`.
        of_velocity: coefficient of the velocity in it; shape `batch time`.
    """

    latents: Tensor
    means: Tensor
    scales: PerToken
    of_latents: PerToken
    of_velocity: PerToken

    @classmethod
    def of(cls, trajectories: Trajectories, coefficients: StepCoefficients) -> Self:
        """Return trajectories that were sampled with the given coefficients of each step, on the CPU."""
        batch, steps = trajectories.mask.shape

        def of_each(numbers: Tensor) -> Tensor:
            return numbers.to(trajectories.latents.dtype).expand(batch, steps)

        return cls(
            token_ids=torch.arange(steps).expand(batch, steps),
            mask=torch.ones(batch, steps, dtype=torch.bool),
            log_probs=trajectories.log_probs.cpu(),
            finished=torch.ones(batch, dtype=torch.bool),
            latents=trajectories.latents.cpu(),
            means=trajectories.means.cpu(),
            scales=trajectories.scales.cpu(),
            of_latents=of_each(coefficients.latents),
            of_velocity=of_each(coefficients.velocity),
        )

    @property
    @override
    def trainable(self) -> PerToken:
        """True on stochastic steps, which have a density; shape `batch time`."""
        return self.scales > 0

    @classmethod
    @override
    def joined(cls, parts: Sequence[Self]) -> Self:
        return cls(**{name: torch.cat([getattr(part, name) for part in parts]) for name in vars(parts[0])})


class TrajectorySampler(CompletionSampler):
    """Samples trajectories from the current policy.

    The noise of a trajectory depends on the seed and on its number over all ranks, so the number of ranks changes
    nothing if all ranks together sample the same prompts. A trajectory has neither a temperature nor a nucleus.

    Args:
        policy: policy to sample from.
        trainer: trainer of the policy.
        times: decreasing times from noise to sample; shape `time+1`.
        dynamics: rule of the stochastic steps.
        at_once: largest number of trajectories of a forward pass; None for all.

    Attributes:
        stochastic: True for steps that follow the dynamics, the others are steps of the ODE; all when None; shape
            `time`.
    """

    def __init__(
        self, policy: FlowPolicy, trainer: Trainer, times: Tensor, dynamics: Dynamics, at_once: int | None = None
    ) -> None:
        self._policy, self._trainer, self._times = policy, trainer, times
        self._dynamics, self._at_once = dynamics, at_once
        self.stochastic: Tensor | None = None

    @property
    def coefficients(self) -> StepCoefficients:
        """Coefficients of each step, those of the ODE where it is not stochastic; each has shape `time`."""
        times = self._times[:-1], self._times[1:]
        inside = self._dynamics.coefficients(*times)
        if self.stochastic is None:
            return inside
        pairs = zip(inside, ODE().coefficients(*times), strict=True)
        return StepCoefficients(*(torch.where(self.stochastic, one, other) for one, other in pairs))

    @override
    def prompt_of(self, example: Example, place: str = "a prompt") -> Prompt:
        return Prompt(example, ())

    @override
    def sample(
        self,
        prompts: Sequence[Prompt],
        temperature: float,
        seed: int,
        samples_per_prompt: int = 1,
        top_p: float = 1.0,
    ) -> Sampled:
        policy, size = self._policy, len(prompts) * samples_per_prompt
        rank, ranks = data_parallel_rank(self._trainer), data_parallel_size(self._trainer)
        numbers = [  # ranks take prompts in turn
            (prompt * ranks + rank) * samples_per_prompt + sample
            for prompt in range(len(prompts))
            for sample in range(samples_per_prompt)
        ]
        with torch.no_grad(), policy.forward_context():
            encoded = policy.model.encode([prompt.example for prompt in prompts])
            _require_rows(policy.model, encoded, len(prompts))
            parts = [
                self._trajectories(encoded, samples_per_prompt, numbers[start : start + self._chunk(size)], start, seed)
                for start in range(0, size, self._chunk(size))
            ]
            objects = [each for part in parts for each in policy.model.decode(part.final_latents)]
        if len(objects) != size:
            raise ValueError(
                f"`decode` of {type(policy.model).__name__} returned {len(objects)} samples of {size} latents; return "
                "one for each."
            )
        completions = SampledSteps.joined([SampledSteps.of(part, self.coefficients) for part in parts])
        return Sampled(
            completions, [described_sample(each) for each in objects], self._trainer.global_step, {}, objects
        )

    def _chunk(self, size: int) -> int:
        return max(min(size, self._at_once or size), 1)

    def _trajectories(
        self, encoded: dict[str, Tensor], samples: int, numbers: Sequence[int], start: int, seed: int
    ) -> Trajectories:
        rows = torch.arange(start, start + len(numbers)) // samples
        conditions = {name: values[rows.to(values.device)] for name, values in encoded.items()}
        seeds = [derived_seed(seed, number) for number in numbers]
        return sample_trajectories(self._policy.model, conditions, self._times, self._dynamics, seeds, self.stochastic)

    @override
    def begin(self, prompts: Sequence[Prompt], temperature: float, seed: int, samples_per_prompt: int) -> None:
        raise NotImplementedError("trajectories are sampled in the training process, so none can be sampled ahead.")

    @override
    def close(self) -> None:
        """Do nothing: there is nothing to release."""


class TrajectoryEvaluation(EvaluationLoader):
    """Evaluation with one seed for all ranks, whose number then changes nothing; the sampler numbers trajectories."""

    @override
    def seed_of(self, start: int, rank: int) -> int:
        return derived_seed(start)


def _require_rows(model: FlowModel, encoded: Mapping[str, Tensor], prompts: int) -> None:
    for name, rows in encoded.items():
        if len(rows) != prompts:
            raise ValueError(
                f"`encode` of {type(model).__name__} returned {len(rows)} rows of `{name}` for {prompts} examples; "
                "return one for each."
            )


def described_sample(sample: Any) -> str:
    """Return a short text for a sample, for tables and logs: the coordinates of a point, or the size of an image.

    Example:
        >>> described_sample(torch.tensor([0.25, -1.0]))
        '(0.25, -1)'
    """
    if not isinstance(sample, Tensor):
        size = getattr(sample, "size", None)
        return f"{type(sample).__name__} of size {size}" if isinstance(size, tuple) else type(sample).__name__
    if sample.numel() > _SHOWN_NUMBERS:
        return f"tensor of shape {tuple(sample.shape)}"
    return f"({', '.join(f'{number:.4g}' for number in sample.flatten().tolist())})"
