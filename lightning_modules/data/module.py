"""The data module: prompts to completions to rewards to advantages to micro-batches."""

from __future__ import annotations

import time
from collections.abc import Sequence
from typing import cast

import torch
from lightning import LightningDataModule, Trainer

from aggregate_po import AdvantageEstimator, PolicyObjective, SamplerCorrection
from aggregate_po.advantages import GroupNormalized
from lightning_modules.batch import Evaluation, RolloutBatch
from lightning_modules.data.advantages import advantages
from lightning_modules.data.arguments import require_parts, require_sampling
from lightning_modules.data.evaluation import EvaluationLoader
from lightning_modules.data.groups import Groups, GroupSampler
from lightning_modules.data.loader import RolledOut, RolloutLoader, Stateful
from lightning_modules.data.metrics import rollout_metrics
from lightning_modules.data.micro_batches import UpdatePlan, require_division
from lightning_modules.data.rollout import LogProbSource, Rollout, penalized_rewards, rollout_log_probs
from lightning_modules.data.sampler import Sampler
from lightning_modules.data.schemes import SamplingScheme
from lightning_modules.data.schemes.base import first_count, groups_of_rollout, weighted
from lightning_modules.data.updates import updates
from lightning_modules.distributed import data_parallel_rank, data_parallel_size
from lightning_modules.model.layouts import SequenceLayout
from lightning_modules.model.policy import Policy
from lightning_modules.prompts import Prompt, PromptDataset, PromptOrder, PromptStream, examples_of
from lightning_modules.rewards import Reward, TruncationRule, WeightedRewards
from lightning_modules.rollouts import RolloutEngine, TransformersEngine
from lightning_modules.seeding import derived_seed
from lightning_modules.validation import require_at_least, require_one_of


class RolloutDataModule(LightningDataModule):
    """Makes rollouts with the policy that is being trained, and splits them into micro-batches.

    One Lightning epoch is one rollout: `prompts_per_rollout * group_size` completions, used for
    `updates_per_rollout * epochs_per_rollout` optimizer steps of `accumulate_grad_batches` micro-batches each. The
    flow, one stage a line, is `_rollout`.

    Args:
        dataset: prompts to train on: a `PromptDataset`, a list of mappings with "prompt", or a file of JSON lines.
        reward: scores a completion, given its example; or several that do, whose weighted sum is the reward.
        reward_weights: of each reward in the sum; 1 for each when None.
        validation: held-out prompts for pass@1, in the forms of `dataset`; none without it.
        rollouts: generates the completions.
        group_size: completions per prompt, at least 2.
        prompts_per_rollout: prompts of one rollout, over all ranks.
        updates_per_rollout: optimizer steps into which a rollout is split.
        epochs_per_rollout: how often the rollout is used.
        max_completion_length: tokens after which a completion is cut off.
        temperature: of sampling; log-probabilities are those of the distribution that it gives.
        old_log_probs: whose log-probabilities are those of the behavior policy: the "sampler"'s, as it returned them,
            or the "trainer"'s, computed for the whole rollout, which costs a forward pass.
        correction: makes up for the difference between the two; needs the trainer's.
        advantages: turns the rewards of the rollout, over all ranks, into advantages; an estimator of
            `aggregate_po.advantages`.
        truncated: what becomes of a completion that was cut off: "score" it as it stands, give it "zero_reward", or
            "mask" it, so that it counts in its group's baseline only.
        tokens_per_micro_batch: tokens that the model may run over at once, prompts included, and the padding that the
            policy's `layout` needs: an update then takes fewer of its `accumulate_grad_batches` micro-batches where
            completions are short. All of them, of about equal size, when None.
        kl_in_reward: weight of the summed log ratio to the reference that is subtracted from each reward.
        overlap: whether the next rollout is generated while this one is trained on, from a policy that is one rollout
            old; for out-of-process engines.
        chat_template: whether prompts are wrapped by the tokenizer's chat template, as a user's message.
        schemes: sampling schemes, which decide which groups make up a rollout; the first one innermost.
        seed: of the order of prompts, of sampling, and of estimators that are random.

    Raises:
        FileNotFoundError: the file of prompts does not exist.
        TypeError: `advantages` is not an AdvantageEstimator, or a reward cannot be called.
        ValueError: an argument is out of its range, or there are no prompts.
    """

    def __init__(
        self,
        dataset: PromptDataset | str,
        reward: Sequence[Reward] | Reward,  # in this order, or jsonargparse cannot write a list of functions
        reward_weights: Sequence[float] | None = None,
        validation: PromptDataset | str | None = None,
        rollouts: RolloutEngine | None = None,
        group_size: int = 8,
        prompts_per_rollout: int = 16,
        updates_per_rollout: int = 1,
        epochs_per_rollout: int = 1,
        max_completion_length: int = 512,
        temperature: float = 1.0,
        old_log_probs: LogProbSource = "sampler",
        correction: SamplerCorrection | None = None,
        advantages: AdvantageEstimator = GroupNormalized(),
        truncated: TruncationRule = "zero_reward",
        tokens_per_micro_batch: int | None = None,
        kl_in_reward: float = 0.0,
        overlap: bool = False,
        chat_template: bool = False,
        schemes: Sequence[SamplingScheme] = (),
        seed: int = 0,
    ) -> None:
        super().__init__()
        require_at_least(
            1,
            prompts_per_rollout=prompts_per_rollout,
            updates_per_rollout=updates_per_rollout,
            epochs_per_rollout=epochs_per_rollout,
            max_completion_length=max_completion_length,
            tokens_per_micro_batch=tokens_per_micro_batch,
        )
        require_one_of(TruncationRule, truncated=truncated)
        require_one_of(LogProbSource, old_log_probs=old_log_probs)
        require_sampling(group_size, temperature, kl_in_reward)
        require_parts(advantages, correction, old_log_probs, schemes)
        self.rewards = WeightedRewards(reward, reward_weights)
        self.dataset = examples_of("dataset", dataset)
        self.validation = None if validation is None else examples_of("validation", validation)
        self.rollouts = TransformersEngine() if rollouts is None else rollouts
        self.group_size = group_size
        self.prompts_per_rollout = prompts_per_rollout
        self.updates_per_rollout = updates_per_rollout
        self.epochs_per_rollout = epochs_per_rollout
        self.max_completion_length = max_completion_length
        self.temperature = temperature
        self.old_log_probs = old_log_probs
        self.correction = correction
        self.advantages = advantages
        self.truncated = truncated
        self.tokens_per_micro_batch = tokens_per_micro_batch
        self.kl_in_reward = kl_in_reward
        self.overlap = overlap
        self.chat_template = chat_template
        self.schemes = tuple(schemes)
        self.seed = seed
        if overlap and not self.rollouts.concurrent:
            raise ValueError(
                f"`overlap` is True, but {type(self.rollouts).__name__} generates in the training process; pass "
                "`rollouts` that generate in another one, such as VLLMServers."
            )

    # What the trainer brings

    @property
    def _trainer(self) -> Trainer:
        if self.trainer is None:
            raise RuntimeError("the data module has no trainer; pass it to Trainer.fit or Trainer.validate.")
        return self.trainer

    @property
    def policy(self) -> Policy:
        """The policy that the trainer's module trains.

        Raises:
            RuntimeError: there is no trainer.
            TypeError: its module has no `policy`.
        """
        module = self._trainer.lightning_module
        policy = getattr(module, "policy", None)
        if not isinstance(policy, Policy):
            raise TypeError(f"the trainer trains {type(module).__name__}, which has no `policy`; pass a PolicyModule.")
        return policy

    @property
    def needs_reference(self) -> bool:
        """Whether the rewards read the reference policy."""
        return self.kl_in_reward > 0

    def update_plan(self, layout: SequenceLayout, micro_batches: int) -> UpdatePlan:
        """Return how a rollout is split into updates, and these into so many micro-batches on each rank."""
        sizes = self.updates_per_rollout, self.epochs_per_rollout, micro_batches
        return UpdatePlan(*sizes, layout, self.tokens_per_micro_batch)

    # Lightning's hooks

    def setup(self, stage: str) -> None:
        """Check how a rollout divides, ask for a reference where the rewards need one, and set up the stages."""
        if stage == "fit":
            plan = self.update_plan(self.policy.layout, self._trainer.accumulate_grad_batches)
            require_division(self.prompts_per_rollout, self.group_size, data_parallel_size(self._trainer), plan)
            if self.needs_reference:
                self.policy.keep_reference()
        self.sampler = Sampler(
            self.rollouts, self.policy, self._trainer, self.max_completion_length, self.chat_template
        )
        shard = data_parallel_rank(self._trainer), data_parallel_size(self._trainer)
        order = PromptOrder(len(self.dataset), self.seed)
        self._prompts = PromptStream(self.dataset, order, self.sampler.prompt_of, *shard)
        self._held_out: list[Prompt] | None = None

    def train_dataloader(self) -> RolloutLoader:
        """Return the loader that makes one rollout after another."""
        steps = self.updates_per_rollout * self.epochs_per_rollout
        micro_batches = self._trainer.accumulate_grad_batches
        shard = data_parallel_rank(self._trainer), data_parallel_size(self._trainer)
        stages: dict[str, Stateful] = {"prompts": self._prompts}
        stages |= {f"scheme_{number}": scheme for number, scheme in enumerate(self.schemes)}
        return RolloutLoader(
            self._rollout, steps * micro_batches, self.epochs_per_rollout, micro_batches, shard, stages
        )

    def val_dataloader(self) -> list[EvaluationLoader]:
        """Return the held-out prompts, once sampled at the training temperature and once greedy."""
        if self.validation is None:
            return []
        if self._held_out is None:
            self._held_out = [self.sampler.prompt_of(example) for example in self.validation]
        ways = {"sampled": self.temperature, "greedy": 0.0}
        return [
            EvaluationLoader(name, self._held_out, self.sampler, self.rewards, temperature, self._trainer)
            for name, temperature in ways.items()
        ]

    def transfer_batch_to_device(
        self, batch: RolloutBatch | Evaluation, device: torch.device, dataloader_idx: int
    ) -> RolloutBatch | Evaluation:
        """Move a micro-batch; an evaluation stays where it is."""
        return batch.to(device) if isinstance(batch, RolloutBatch) else batch

    def teardown(self, stage: str) -> None:
        """Leave nothing running."""
        self.sampler.close()

    # The flow

    def _rollout(self, number: int) -> RolledOut:
        """Make the rollout with this number, one stage a line."""
        started = time.perf_counter()
        plan = self.update_plan(self.policy.layout, self._trainer.accumulate_grad_batches)
        groups = self._groups(number)
        sequences = groups.sequences(self.temperature)
        log_probs = rollout_log_probs(groups, sequences, self.policy, self.old_log_probs, self.correction, plan)
        rewards = penalized_rewards(groups, log_probs, self.kl_in_reward)
        seed = derived_seed(self.seed, number)
        estimated = advantages(self.advantages, groups, rewards, self.rewards.weights, seed, self._trainer)
        metrics = rollout_metrics(groups, rewards, self.rewards.names, log_probs.mismatch, self._trainer)
        rollout = Rollout(groups, sequences, log_probs, weighted(self.schemes, estimated, groups), metrics)
        batches, trained = updates(rollout, plan, self._keeps_all, self._trainer)
        self._begin(number + 1, self._trainer.global_step + len(batches) // plan.micro_batches)
        seconds = time.perf_counter() - started
        return RolledOut(batches, {**metrics, "completions/trained_ratio": trained, "time/rollout": seconds})

    def _groups(self, number: int) -> Groups:
        """Sample and score this rank's groups of a rollout, as the schemes ask for them."""
        self._prompts.begin_at(number * self.prompts_per_rollout)
        return groups_of_rollout(self.schemes, self._group_sampler(number), self._prompts_per_rank)

    def _begin(self, number: int, step: int) -> None:
        """Start to sample the rollout that is next after an optimizer step, if one is and that is asked for."""
        if self.overlap and not 0 <= self._trainer.max_steps <= step:
            self._group_sampler(number).begin(first_count(self.schemes, self._prompts_per_rank))

    def _group_sampler(self, number: int) -> GroupSampler:
        return GroupSampler(
            self.sampler,
            self._prompts,
            self.rewards,
            self.truncated,
            self.group_size,
            self.temperature,
            self.updates_per_rollout,
            (self.seed, number, data_parallel_rank(self._trainer)),
            self._trainer,
        )

    @property
    def _prompts_per_rank(self) -> int:
        return self.prompts_per_rollout // data_parallel_size(self._trainer)

    @property
    def _keeps_all(self) -> bool:
        """Whether completions without advantage are trained on too, as penalties need them."""
        return bool(cast(PolicyObjective, self._trainer.lightning_module.objective).penalties)
