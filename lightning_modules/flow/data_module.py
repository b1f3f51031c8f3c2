"""Data module of flow-matching models: conditions, trajectories, rewards, advantages and micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

import torch
from typing_extensions import override

from aggregate_po import AdvantageEstimator, CorrectionWeights, PerToken
from aggregate_po.advantages import GroupNormalized
from aggregate_po.arguments import require_whole
from lightning_modules.configuration import described_arguments
from lightning_modules.data.arguments import require_parts, require_sampling, required_policy
from lightning_modules.data.definitions import require_defined
from lightning_modules.data.evaluation import EvaluationLoader
from lightning_modules.data.groups import Groups
from lightning_modules.data.micro_batches import UpdatePlan
from lightning_modules.data.rollout import RolloutLogProbs
from lightning_modules.data.schemes import SamplingScheme
from lightning_modules.data.schemes.stack import SchemeStack
from lightning_modules.data.staged import StagedDataModule
from lightning_modules.flow.dynamics import ODE, Dynamics, FlowSDE
from lightning_modules.flow.inputs import DenoisingBatch, DenoisingSteps
from lightning_modules.flow.policy import FlowPolicy
from lightning_modules.flow.sampler import SampledSteps, TrajectoryEvaluation, TrajectorySampler
from lightning_modules.flow.schedule import StepWindow, uniform_times
from lightning_modules.flow.step_rewards import step_rewards
from lightning_modules.flow.step_weights import StepWeights
from lightning_modules.flow.trained_steps import require_trained_steps
from lightning_modules.micro_batch import ModelInputs
from lightning_modules.prompts import PromptSource
from lightning_modules.prompts.sources import examples_of
from lightning_modules.rewards import AnyReward, FailedVerdictRule, WeightedRewards
from lightning_modules.tally import Tally


class FlowDataModule(StagedDataModule):
    """Samples trajectories from a flow-matching model during training, and splits them into micro-batches.

    A trajectory is a completion whose tokens are denoising steps. Rollouts, advantages, totals and resumes are those
    of `RolloutDataModule`, with one Lightning epoch for each rollout. The number of ranks does not change what is
    sampled without `schemes`; a scheme may choose by rank, as `DynamicSampling` does, which fills the shard of each.

    Args:
        dataset: Training examples: mappings with "prompt" and what the model and the rewards read, or the path of a
            file with such rows.
        reward: Reward function, called with a sample and its example, or an asynchronous one, or a `BatchReward`; or a
            list of several. A reward of weight 0 is measured, and trains nothing.
        reward_weights: Weight of each reward in the total reward; 1 for each when None.
        validation: Held-out examples, in the same forms as `dataset`; nothing is evaluated when None.
        group_size: Number of trajectories per prompt, at least 2.
        prompts_per_rollout: Number of prompts of a rollout, over all ranks.
        updates_per_rollout: Number of minibatches that a rollout is split into, with one optimizer step each.
        epochs_per_rollout: Number of epochs over each rollout.
        steps: Number of denoising steps of a trajectory in training.
        evaluation_steps: Number of steps of the ODE that samples the held-out examples.
        dynamics: Rule of the stochastic steps, such as `FlowSDE`, `DanceSDE` or `CPS`.
        shift: Shift of the times toward the noisy end; 1 leaves them uniform.
        window: Steps that are stochastic and trained, while the others are those of the ODE; all steps when None.
        step_weights: Rule for the weights of the steps in every mean, such as `InverseStepSize`; every step counts once
            when None.
        advantages: Estimator that computes advantages from the rewards of the rollout on all ranks, such as those in
            `aggregate_po.advantages`. For `StepValues`, each step is rewarded for the sample to which the ODE would
            lead from there in one step; the rewards are then called as often as there are steps.
        failed_verdicts: Rule for samples on which a verdict failed: "mask" takes them out of their group, "zero" sets
            the failed reward to 0, and "error" stops the run. A failed verdict on a step that is rewarded follows the
            same rule: "mask" takes out its trajectory, and "zero" sets the failed reward of the step to 0.
        steps_per_micro_batch: Maximum number of denoising steps in a forward pass of the training, which has the
            stochastic ones alone; exceeded if `accumulate_grad_batches` allows too few micro-batches. When None, all
            micro-batches are used and have about the same size.
        trajectories_at_once: Maximum number of trajectories that are sampled together; all of a call when None.
        schemes: Sampling schemes, which select the groups of a rollout; the first one is innermost.
        seed: Seed of the prompt order, of sampling, and of random advantage estimators.

    Raises:
        FileNotFoundError: a file of examples does not exist.
        TypeError: an argument is of the wrong kind, or a reward is not callable.
        ValueError: an argument is out of its range, or there are no examples.
    """

    kind = DenoisingBatch
    temperature = 1.0  # a trajectory has none
    truncated = "score"  # a trajectory always ends
    sampler: TrajectorySampler

    def __init__(
        self,
        dataset: PromptSource,
        reward: Sequence[AnyReward] | AnyReward,  # in this order, or jsonargparse cannot write a list of functions
        reward_weights: Sequence[float] | None = None,
        validation: PromptSource | None = None,
        group_size: int = 24,
        prompts_per_rollout: int = 16,
        updates_per_rollout: int = 2,
        epochs_per_rollout: int = 1,
        steps: int = 10,
        evaluation_steps: int = 40,
        dynamics: Dynamics = FlowSDE(),
        shift: float = 1.0,
        window: StepWindow | None = None,
        step_weights: StepWeights | None = None,
        advantages: AdvantageEstimator = GroupNormalized(),
        failed_verdicts: FailedVerdictRule = "mask",
        steps_per_micro_batch: int | None = None,
        trajectories_at_once: int | None = None,
        schemes: Sequence[SamplingScheme] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.configuration = described_arguments(locals())
        require_whole(
            1,
            prompts_per_rollout=prompts_per_rollout,
            updates_per_rollout=updates_per_rollout,
            epochs_per_rollout=epochs_per_rollout,
            steps=steps,
            evaluation_steps=evaluation_steps,
            steps_per_micro_batch=steps_per_micro_batch,
            trajectories_at_once=trajectories_at_once,
        )
        require_sampling(group_size, self.temperature, 0.0, ["sampled"])
        require_parts(advantages, None, "sampler", self.truncated, failed_verdicts, schemes, None, None)
        for scheme in schemes:
            if scheme.reads_texts:
                raise ValueError(f"`schemes` has {type(scheme).__name__}, but samples have no texts; leave it out.")
        _require_kinds(
            dynamics=(dynamics, Dynamics), window=(window, StepWindow), step_weights=(step_weights, StepWeights)
        )
        self.rewards = WeightedRewards(reward, reward_weights)
        self.dataset = examples_of("dataset", dataset)
        self.validation = None if validation is None else examples_of("validation", validation)
        self.group_size, self.prompts_per_rollout = group_size, prompts_per_rollout
        self.updates_per_rollout, self.epochs_per_rollout = updates_per_rollout, epochs_per_rollout
        self.max_completion_length, self.tokens_per_micro_batch = steps, steps_per_micro_batch
        self.times, self.evaluation_times = uniform_times(steps, shift), uniform_times(evaluation_steps, shift)
        self.dynamics, self.window, self.step_weights = dynamics, window, step_weights
        require_trained_steps(self.times, dynamics, window, step_weights)
        self.advantages, self.failed_verdicts = advantages, failed_verdicts
        self.trajectories_at_once = trajectories_at_once
        self.schemes = tuple(schemes)
        self._stack = SchemeStack(self.schemes, seed)
        self.seed = seed

    @property
    @override
    def policy(self) -> FlowPolicy:
        return required_policy(self._trainer, FlowPolicy, "FlowModule")

    # Stages

    @override
    def setup(self, stage: str) -> None:
        """See `StagedDataModule`.

        Raises:
            ValueError: there is nothing to validate.
        """
        if stage == "validate" and self.validation is None:
            raise ValueError("`validation` is None, so there is nothing to measure; pass held-out examples.")
        super().setup(stage)

    @override
    def new_sampler(self) -> TrajectorySampler:
        return TrajectorySampler(self.policy, self._trainer, self.times, self.dynamics, self.trajectories_at_once)

    @override
    def require_defined(self) -> None:
        known = {"scale": torch.ones(2, 2), "divergence": torch.zeros(2, 2), "ref_divergence": torch.zeros(2, 2)}
        if self.step_weights is not None:
            known["mean_weights"] = torch.ones(2, 2)
        require_defined(self._trainer, None, self.schemes, None, None, **known)

    @override
    def seeds_of(self, number: int) -> tuple[int, ...]:
        """Return the seeds of a rollout, the same on all ranks; the sampler numbers trajectories over the ranks."""
        return self.seed, number

    @override
    def _groups(self, number: int) -> Groups:
        """Sample and score the groups of a rollout, with the window of stochastic steps that it has."""
        self.sampler.stochastic = None if self.window is None else self.window.mask(len(self.times) - 1, number)
        groups = super()._groups(number)
        if not self.advantages.needs_step_rewards:
            return groups
        parts = self.times, self.policy, self.rewards, self.failed_verdicts, self.trajectories_at_once
        found = step_rewards(groups, *parts)
        sums = Tally.of(failed=found.failed, all=torch.tensor(found.values.numel())).over_ranks(self._trainer).sums
        return replace(
            groups,
            step_rewards=found.values,
            scored=groups.scored & found.scored,
            response_mask=groups.response_mask & found.scored.unsqueeze(-1),
            metrics={**groups.metrics, "step_rewards/failed_ratio": sums["failed"] / sums["all"]},
        )

    @override
    def inputs_of(self, groups: Groups) -> DenoisingSteps:
        sampled = cast(SampledSteps, groups.completions)
        with torch.no_grad(), self.policy.forward_context():
            conditions = self.policy.model.encode([prompt.example for prompt in groups.prompts])
        return DenoisingSteps(
            conditions={name: values.cpu() for name, values in conditions.items()},
            prompt_of=torch.arange(len(groups)).repeat_interleave(groups.group_size),
            completion_mask=sampled.mask,
            latents=sampled.latents,
            means=sampled.means,
            times=self.times[:-1].to(sampled.latents.dtype).expand(sampled.mask.shape),
            of_latents=sampled.of_latents,
            of_velocity=sampled.of_velocity,
            scales=sampled.scales,
        )

    @override
    def log_probs_of(self, groups: Groups, inputs: ModelInputs, plan: UpdatePlan) -> RolloutLogProbs:
        return RolloutLogProbs(groups.completions.log_probs, None, CorrectionWeights(), Tally())

    @override
    def weights_of(self, groups: Groups, log_probs: RolloutLogProbs) -> tuple[PerToken | None, Mapping[str, float]]:
        if self.step_weights is None:
            return None, {}
        return self.step_weights(self.times).expand(groups.response_mask.shape), {}

    # Lightning's hooks

    @override
    def val_dataloader(self) -> list[EvaluationLoader]:
        """Return the evaluation of the held-out examples, sampled by the ODE."""
        if self.validation is None:
            return []
        ode = TrajectorySampler(self.policy, self._trainer, self.evaluation_times, ODE(), self.trajectories_at_once)
        prompts = [
            replace(ode.prompt_of(self.validation[number]), index=number) for number in range(len(self.validation))
        ]
        return [TrajectoryEvaluation("ode", prompts, ode, self.rewards, self.temperature, self._trainer)]


def _require_kinds(**parts: tuple[object, type]) -> None:
    for name, (part, kind) in parts.items():
        if part is not None and not isinstance(part, kind):
            raise TypeError(
                f"`{name}` is {part!r}; pass an instance of a subclass of lightning_modules.{kind.__name__}."
            )
