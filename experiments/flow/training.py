"""One run of the flow-matching experiment: training without checkpoints, and its measurements."""

from __future__ import annotations

import warnings
from dataclasses import dataclass

from lightning import Callback, LightningModule, Trainer, seed_everything
from typing_extensions import override

from experiments.flow import design
from experiments.flow.measurements import StepSums
from lightning_modules.flow import ODE, FlowDataModule, FlowModule, sample_trajectories, uniform_times
from lightning_modules.flow.mixture import GoldLikelihood, MixtureConditions, MixtureWarmStart, NearMode
from lightning_modules.seeding import derived_seed

Values = dict[str, float]


@dataclass(frozen=True)
class Job:
    """A training run.

    Args:
        variant: objective.
        seed: seed of the order of the prompts and of sampling.
        rollouts: number of rollouts.
    """

    variant: design.Variant
    seed: int
    rollouts: int


@dataclass(frozen=True)
class Measured:
    """Results of a run: rows of evaluations, of denoising steps, and of samples."""

    evaluations: list[Values]
    steps: list[Values]
    samples: list[Values]


class Evaluations(Callback):
    """Keeps proxy and gold metric of each evaluation, and some samples.

    Samples are taken at the first evaluation, and at the first one whose proxy is not below `design.PICTURED_AT`.
    """

    def __init__(self) -> None:
        self.rows: list[Values] = []
        self.samples: list[Values] = []

    @override
    def on_validation_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        assert isinstance(pl_module, FlowModule)
        found = pl_module.held_out_metrics
        rollout = trainer.global_step // design.UPDATES_PER_ROLLOUT
        self.rows.append(
            {"rollout": rollout, "proxy": found["reward_ode"], "gold": found["rewards/GoldLikelihood_ode"]}
        )
        is_reached = [row["proxy"] >= design.PICTURED_AT for row in self.rows]
        if rollout == 0 or (is_reached[-1] and not any(is_reached[:-1])):
            self.samples += samples(pl_module, rollout)


def train(job: Job) -> Measured:
    """Run a job."""
    warnings.filterwarnings("ignore", module="lightning")
    seed_everything(job.seed, verbose=False)
    evaluations, steps = Evaluations(), StepSums(design.UPDATES_PER_ROLLOUT)
    module = FlowModule(MixtureWarmStart(), job.variant.objective(), learning_rate=design.LEARNING_RATE)
    data = FlowDataModule(
        MixtureConditions(),
        [NearMode(), GoldLikelihood()],
        reward_weights=[1, 0],
        validation=MixtureConditions(design.HELD_OUT),
        group_size=design.GROUP_SIZE,
        prompts_per_rollout=design.PROMPTS_PER_ROLLOUT,
        updates_per_rollout=design.UPDATES_PER_ROLLOUT,
        steps=design.STEPS,
        evaluation_steps=design.EVALUATION_STEPS,
        shift=design.SHIFT,
        window=job.variant.window,
        step_weights=job.variant.step_weights,
        seed=job.seed,
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=job.rollouts * design.UPDATES_PER_ROLLOUT,
        max_epochs=-1,
        gradient_clip_val=1.0,
        logger=False,
        check_val_every_n_epoch=design.EVERY,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[evaluations, steps],
    )
    trainer.validate(module, datamodule=data, verbose=False)
    trainer.fit(module, datamodule=data)
    if evaluations.rows[-1]["rollout"] < job.rollouts:
        trainer.validate(module, datamodule=data, verbose=False)
    return Measured(evaluations.rows, steps.rows(), evaluations.samples + samples(module, job.rollouts))


def samples(module: FlowModule, rollout: int) -> list[Values]:
    """Return samples of the ODE after a rollout, always with the same noise."""
    model, examples = module.policy.model, MixtureConditions(design.PICTURED)
    conditions = model.encode([examples[number] for number in range(len(examples))])
    seeds = [derived_seed(number) for number in range(len(examples))]
    times = uniform_times(design.EVALUATION_STEPS, design.SHIFT)
    points = sample_trajectories(model, conditions, times, ODE(), seeds).final_latents.tolist()
    return [
        {"rollout": rollout, "number": number, "condition": number % 2, "x": x, "y": y}
        for number, (x, y) in enumerate(points)
    ]
