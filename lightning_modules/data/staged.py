"""Data module that makes rollouts, one stage a line; what is sampled is up to its subclasses."""

from __future__ import annotations

import time
from abc import ABC, abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import replace
from typing import cast

from lightning import Trainer
from typing_extensions import override

from aggregate_po import AdvantageEstimator, PerCompletion, PerToken, PolicyObjective
from lightning_modules.data.advantages import advantages, has_advantage
from lightning_modules.data.arguments import require_unweighted
from lightning_modules.data.buffer import PreparedRollout, RolloutBuffer, Stateful
from lightning_modules.data.buffered import BufferedDataModule
from lightning_modules.data.groups import Groups, GroupSampler
from lightning_modules.data.loader import RolloutLoader
from lightning_modules.data.metrics import rollout_metrics
from lightning_modules.data.micro_batches import UpdatePlan, require_division
from lightning_modules.data.notices import Notices
from lightning_modules.data.observers import observe
from lightning_modules.data.rollout import Rollout, RolloutLogProbs
from lightning_modules.data.sampler import CompletionSampler
from lightning_modules.data.schemes import SamplingScheme
from lightning_modules.data.schemes.stack import SchemeStack
from lightning_modules.data.trainer_flags import require_whole_updates
from lightning_modules.data.updates import updates
from lightning_modules.distributed import data_parallel_rank, data_parallel_size
from lightning_modules.micro_batch import MicroBatch, ModelInputs
from lightning_modules.model.trained import MicroBatchSize, TrainedPolicy
from lightning_modules.prompts import Example, PromptDataset
from lightning_modules.rewards import FailedVerdictRule, TruncationRule, WeightedRewards
from lightning_modules.seeding import derived_seed


class StagedDataModule(BufferedDataModule, ABC):
    """Samples groups from the trained policy, and splits them into the micro-batches of its optimizer steps.

    The method `_rollout` shows the data flow, with one stage per line.

    Subclass requirements:

    - Set the attributes below in `__init__`.
    - Implement `policy`, `new_sampler`, `inputs_of` and `log_probs_of`, and the data loaders of the validation.
    - May override the other methods without an underscore.

    Attributes:
        dataset: training prompts.
        rewards: rewards of the completions.
        advantages: advantage estimator.
        truncated: rule for truncated completions.
        failed_verdicts: rule for completions on which a verdict failed.
        schemes: sampling schemes.
        group_size: number of completions per prompt.
        prompts_per_rollout: number of prompts of a rollout, over all ranks.
        updates_per_rollout: number of minibatches that a rollout is split into.
        epochs_per_rollout: number of epochs over each rollout.
        tokens_per_micro_batch: maximum number of tokens of a micro-batch; None for none.
        max_completion_length: maximum number of tokens of a completion.
        temperature: sampling temperature.
        seed: seed of the run.
        kind: class of the micro-batches.
        overlap: whether the next rollout is sampled while the current one is trained on.
        sampler: samples completions; made by `setup`.
    """

    dataset: PromptDataset | Sequence[Example]
    rewards: WeightedRewards
    advantages: AdvantageEstimator
    truncated: TruncationRule
    failed_verdicts: FailedVerdictRule
    schemes: tuple[SamplingScheme, ...]
    group_size: int
    prompts_per_rollout: int
    updates_per_rollout: int
    epochs_per_rollout: int
    tokens_per_micro_batch: int | None
    max_completion_length: int
    temperature: float
    seed: int
    kind: type[MicroBatch]
    _stack: SchemeStack  # of `schemes`
    overlap = False
    sampler: CompletionSampler

    @property
    @abstractmethod
    def policy(self) -> TrainedPolicy:
        """The policy of the trainer's module; an error if there is none."""

    @abstractmethod
    def new_sampler(self) -> CompletionSampler:
        """Return the sampler of completions for training."""

    @abstractmethod
    def inputs_of(self, groups: Groups) -> ModelInputs:
        """Return the completions as the input of a forward pass."""

    @abstractmethod
    def log_probs_of(self, groups: Groups, inputs: ModelInputs, plan: UpdatePlan) -> RolloutLogProbs:
        """Return the log-probabilities of the completions; all ranks call it together."""

    def require_defined(self) -> None:
        """Check that the objective is defined for what this module gives it, before anything is sampled."""

    def check_prompts(self) -> None:
        """Check the prompts of all data sets."""

    def prepare_held_out(self) -> None:
        """Prepare the held-out prompts, before the layout is chosen and anything is sampled."""

    def rewards_of(self, groups: Groups, log_probs: RolloutLogProbs) -> PerCompletion:
        """Return the total reward of each completion; shape `batch`."""
        return groups.rewards

    def seeds_of(self, number: int) -> tuple[int, ...]:
        """Return the numbers from which the sampling seeds of a rollout are derived; different for each rollout.

        They are different for each rank, too, unless the sampler numbers its completions over the ranks.
        """
        return self.seed, number, data_parallel_rank(self._trainer)

    def weights_of(self, groups: Groups, log_probs: RolloutLogProbs) -> tuple[PerToken | None, Mapping[str, float]]:
        """Return the weights of the tokens in every mean, shape `batch time`, and their metrics; None for none."""
        return None, {}

    def spans_of(self, groups: Groups) -> PerToken | None:
        """Return the number of each token's span; shape `batch time`; None without spans."""
        return None

    @property
    def samples_from_old_policy(self) -> bool:
        """Whether the behavior policy of a completion may be some optimizer steps older than the trained one."""
        return any(scheme.gives_old_groups for scheme in self.schemes)

    def update_plan(self, layout: MicroBatchSize, micro_batches: int) -> UpdatePlan:
        """Return the split of a rollout into updates, and of each update into micro-batches per rank."""
        sizes = self.updates_per_rollout, self.epochs_per_rollout, micro_batches
        return UpdatePlan(*sizes, layout, self.tokens_per_micro_batch)

    # Lightning's hooks

    @override
    def setup(self, stage: str) -> None:
        """Check the split of a rollout, and create sampler and buffer."""
        self.sampler = self.new_sampler()
        if stage == "fit":
            plan = self.update_plan(self.policy.layout, self._trainer.accumulate_grad_batches)
            require_division(self.prompts_per_rollout, self.group_size, data_parallel_size(self._trainer), plan)
            require_whole_updates(self._trainer, plan)
            self.require_defined()
            self._notices = Notices(self.max_completion_length, self.truncated)
            self._notices.before_training(plan, self.samples_from_old_policy)
        super().setup(stage)

    @override
    def new_buffer(self, trainer: Trainer) -> RolloutBuffer:
        shard = data_parallel_rank(trainer), data_parallel_size(trainer)
        self._stack.reset()
        self._prompts = self._stack.stream(
            self.dataset, lambda *example: self.sampler.prompt_of(*example), *shard, self.updates_per_rollout
        )
        stages: dict[str, Stateful] = {"prompts": self._prompts, **self._stack.stages}
        updates, micro_batches = self.updates_per_rollout * self.epochs_per_rollout, trainer.accumulate_grad_batches
        sizes = updates * micro_batches, self.epochs_per_rollout, micro_batches
        return RolloutBuffer(self._rollout, *sizes, shard, stages, lambda: trainer.global_step, self.kind)

    @override
    def train_dataloader(self) -> RolloutLoader:
        """Return the data loader over successive rollouts, after a check of all prompts and of the layout."""
        self.check_prompts()
        self.prepare_held_out()
        self.policy.choose_layout()
        return super().train_dataloader()

    @override
    def teardown(self, stage: str) -> None:
        self.rewards.close()
        if "sampler" in vars(self):  # made by `setup`, which may have failed
            self.sampler.close()

    @override
    def on_exception(self, exception: BaseException) -> None:
        self.teardown("exception")  # Lightning calls none after a failure

    # Data flow

    def _rollout(self, number: int) -> PreparedRollout:
        """Make the rollout with the given number."""
        started = time.perf_counter()
        plan = self.update_plan(self.policy.layout, self._trainer.accumulate_grad_batches)
        groups = self._groups(number)
        inputs = self.inputs_of(groups)
        log_probs = self.log_probs_of(groups, inputs, plan)
        rewards = self.rewards_of(groups, log_probs)
        seed = derived_seed(self.seed, number)
        estimated = advantages(self.advantages, groups, rewards, self.rewards.weights, seed, self._trainer)
        metrics = rollout_metrics(groups, rewards, self.rewards, log_probs.mismatch, self._trainer)
        self._notices.after_rollout(metrics, has_advantage(estimated, self._trainer))
        weighted = self._stack.weighted(estimated, groups, number, data_parallel_rank(self._trainer))
        objective = cast(PolicyObjective, self._trainer.lightning_module.objective)
        require_unweighted(objective, estimated, weighted, self.schemes)
        mean_weights, kept = self.weights_of(groups, log_probs)
        spans = self.spans_of(groups)
        rollout = Rollout(groups, inputs, log_probs, weighted, {**metrics, **kept}, mean_weights, spans)
        observe(self._trainer, rollout)
        batches, trained = updates(rollout, plan, self.keeps_all(objective), self._trainer)
        self._begin(number + 1, self._trainer.global_step + len(batches) // plan.micro_batches)
        whole = {"completions/trained_ratio": trained, "time/rollout": time.perf_counter() - started}
        return PreparedRollout(batches, {**rollout.metrics, **whole})

    def _groups(self, number: int) -> Groups:
        """Sample and score the groups of a rollout on this rank, with the sampling schemes applied."""
        self._prompts.begin_at(number * self.prompts_per_rollout)
        sampler = self._group_sampler(number)
        groups = self._stack.groups(sampler, self._prompts_per_rank)
        return replace(groups, metrics={**groups.metrics, **sampler.verdict_metrics()})

    def _begin(self, number: int, step: int) -> None:
        """Start sampling the next rollout in the background if `overlap` is set and training continues after `step`."""
        if self.overlap and step < self._trainer.estimated_stepping_batches:
            self._group_sampler(number).begin(*self._stack.first_sizes(self._prompts_per_rank, self.group_size))

    def _group_sampler(self, number: int) -> GroupSampler:
        parts = self.sampler, self._prompts, self.rewards, self.truncated, self.failed_verdicts
        sizes = self.group_size, self.temperature, self.updates_per_rollout
        return GroupSampler(*parts, *sizes, self.seeds_of(number), self._trainer, self.dataset)

    @property
    def _prompts_per_rank(self) -> int:
        return self.prompts_per_rollout // data_parallel_size(self._trainer)
