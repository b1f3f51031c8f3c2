"""Data module: prompts, completions, rewards, advantages and micro-batches."""

from __future__ import annotations

import time
from collections.abc import Mapping, Sequence
from typing import Any, cast

from lightning import Trainer
from typing_extensions import override

from aggregate_po import AdvantageEstimator, PolicyObjective, SamplerCorrection, TokenWeighting
from aggregate_po.advantages import GroupNormalized
from lightning_modules.configuration import described_arguments
from lightning_modules.data.advantages import advantages
from lightning_modules.data.arguments import require_concurrent, require_parts, require_sampling, require_unweighted
from lightning_modules.data.buffer import PreparedRollout, RolloutBuffer, Stateful
from lightning_modules.data.buffered import BufferedDataModule
from lightning_modules.data.definitions import require_defined
from lightning_modules.data.evaluation import EvaluationLoader, EvaluationName
from lightning_modules.data.groups import Groups, GroupSampler
from lightning_modules.data.held_out import HeldOutSet, held_out_prompts, held_out_sets
from lightning_modules.data.loader import RolloutLoader
from lightning_modules.data.metrics import rollout_metrics
from lightning_modules.data.micro_batches import UpdatePlan, require_division
from lightning_modules.data.notices import Notices
from lightning_modules.data.observers import observe
from lightning_modules.data.rollout import LogProbSource, Rollout, penalized_rewards, rollout_log_probs
from lightning_modules.data.sampler import Sampler
from lightning_modules.data.schemes import SamplingScheme
from lightning_modules.data.schemes.stack import SchemeStack
from lightning_modules.data.spans import SpanRule, span_ids
from lightning_modules.data.token_weights import token_weights
from lightning_modules.data.trainer_flags import require_whole_updates
from lightning_modules.data.updates import updates
from lightning_modules.distributed import data_parallel_rank, data_parallel_size
from lightning_modules.model.layouts import SequenceLayout
from lightning_modules.prompts import Prompt, PromptFormat, PromptOrder, PromptSource, PromptTemplate
from lightning_modules.prompts.sources import examples_of
from lightning_modules.rewards import AnyReward, FailedVerdictRule, TruncationRule, WeightedRewards
from lightning_modules.rollouts import RolloutEngine, TransformersEngine
from lightning_modules.seeding import derived_seed
from lightning_modules.validation import require_at_least


class RolloutDataModule(BufferedDataModule):
    """Samples rollouts from the policy during training, and splits them into micro-batches.

    One Lightning epoch is one rollout: `prompts_per_rollout * group_size` completions, used for
    `updates_per_rollout * epochs_per_rollout` optimizer steps of `accumulate_grad_batches` micro-batches each. The
    method `_rollout` shows the data flow, with one stage per line.

    Args:
        dataset: Training prompts: a `PromptDataset`, a list of mappings with "prompt", or the path of a JSON
            Lines, Parquet, CSV or Arrow file.
        reward: Reward function, called with a completion and its example, or an asynchronous one, or a `BatchReward`
            such as `RewardPool`; or a list of several.
        reward_weights: Weight of each reward in the total reward; 1 for each when None.
        validation: Held-out prompts for pass@1, in the same forms as `dataset`; or several `HeldOutSet` by name, each
            with its own sampling; nothing is evaluated when None.
        rollouts: Engine that generates the completions; transformers in the training process when None.
        group_size: Number of completions per prompt, at least 2.
        prompts_per_rollout: Number of prompts of a rollout, over all ranks.
        updates_per_rollout: Number of minibatches that a rollout is split into, with one optimizer step each.
        epochs_per_rollout: Number of epochs over each rollout.
        max_completion_length: Maximum number of tokens of a completion.
        temperature: Sampling temperature; it is applied to all log-probabilities, too.
        old_log_probs: Source of the behavior policy's log-probabilities: "sampler" takes them from the engine, and
            "trainer" recomputes them for each rollout, at the cost of a forward pass.
        correction: Correction for the mismatch between sampler and trainer; it requires `old_log_probs: trainer`.
        advantages: Estimator that computes advantages from the rewards of the rollout on all ranks, such as those in
            `aggregate_po.advantages`.
        token_weights: Rule for the weights of the tokens in every mean, such as `aggregate_po.TopEntropy`; it sees the
            rollout of all ranks. Every token counts once when None.
        spans: Rule for the spans of a completion, such as `lightning_modules.Sentences`, for a mean over spans.
        truncated: Rule for truncated completions: "score" keeps their reward, "zero_reward" sets it to 0, and "mask"
            excludes their tokens from training, so that they only count in the baseline of their group.
        failed_verdicts: Rule for completions on which a verdict failed, such as one that reached the time limit of a
            `RewardPool`: "mask" takes them out of their group, as if they had not been sampled, "zero" sets the failed
            reward to 0, and "error" stops the run.
        tokens_per_micro_batch: Maximum number of tokens in a forward pass, including prompts and the padding of the
            layout. Short completions are packed into fewer micro-batches than `accumulate_grad_batches`. When None,
            all micro-batches are used and have about the same size.
        kl_in_reward: Coefficient of the KL penalty in the reward: the log ratio to the reference, summed over the
            tokens of a completion, is multiplied by it and subtracted from the reward.
        overlap: Whether to generate the next rollout while training on the current one, from a policy that is one
            rollout old; it requires an out-of-process engine.
        chat_template: Whether to format prompts with the chat template of the tokenizer: a text as a user message, and
            a list of messages as they are.
        chat_template_kwargs: Arguments of the chat template, such as `enable_thinking`.
        system_prompt: Text of a system message before each prompt that has none; it requires `chat_template`.
        prompt_template: Text with `{prompt}` in the place of a prompt, or a function from the text of a prompt to that
            of the formatted one, such as `lightning_modules.prompts.qwen_math`. With `chat_template`, the result is the
            user message.
        max_prompt_length: Maximum number of tokens of a prompt, with its template; longer prompts are left out of both
            data sets, and the log says how many. No prompt is left out when None.
        skip_special_tokens: Whether to remove all special tokens from the text that rewards see. Otherwise only the
            stop token that ended a completion is removed.
        schemes: Sampling schemes, which select the groups of a rollout; the first one is innermost.
        evaluations: Evaluations of the held-out prompts: "sampled" at the training temperature, "greedy" at
            temperature 0, or both.
        seed: Seed of the prompt order, of sampling, and of random advantage estimators.

    Raises:
        FileNotFoundError: a file of prompts does not exist.
        TypeError: `advantages` is not an AdvantageEstimator, or a reward is not callable.
        ValueError: an argument is out of its range, or there are no prompts.
    """

    def __init__(
        self,
        dataset: PromptSource,
        reward: Sequence[AnyReward] | AnyReward,  # in this order, or jsonargparse cannot write a list of functions
        reward_weights: Sequence[float] | None = None,
        validation: PromptSource | Mapping[str, HeldOutSet] | None = None,
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
        token_weights: TokenWeighting | None = None,
        spans: SpanRule | None = None,
        truncated: TruncationRule = "zero_reward",
        failed_verdicts: FailedVerdictRule = "mask",
        tokens_per_micro_batch: int | None = None,
        kl_in_reward: float = 0.0,
        overlap: bool = False,
        chat_template: bool = False,
        chat_template_kwargs: dict[str, Any] | None = None,
        system_prompt: str | None = None,
        prompt_template: PromptTemplate | None = None,
        max_prompt_length: int | None = None,
        skip_special_tokens: bool = False,
        schemes: Sequence[SamplingScheme] = (),
        evaluations: Sequence[EvaluationName] = ("sampled", "greedy"),
        seed: int = 0,
    ) -> None:
        super().__init__()
        self.configuration = described_arguments(locals())
        require_at_least(
            1,
            prompts_per_rollout=prompts_per_rollout,
            updates_per_rollout=updates_per_rollout,
            epochs_per_rollout=epochs_per_rollout,
            max_completion_length=max_completion_length,
            tokens_per_micro_batch=tokens_per_micro_batch,
            max_prompt_length=max_prompt_length,
        )
        require_sampling(group_size, temperature, kl_in_reward, evaluations)
        require_parts(advantages, correction, old_log_probs, truncated, failed_verdicts, schemes, token_weights, spans)
        self.rewards = WeightedRewards(reward, reward_weights)
        self.dataset = examples_of("dataset", dataset)
        self.validation = None if validation is None else held_out_sets(validation)
        self.rollouts = TransformersEngine() if rollouts is None else rollouts
        require_concurrent(self.rollouts, overlap)
        self.group_size, self.prompts_per_rollout = group_size, prompts_per_rollout
        self.updates_per_rollout, self.epochs_per_rollout = updates_per_rollout, epochs_per_rollout
        self.max_completion_length, self.temperature = max_completion_length, temperature
        self.old_log_probs, self.correction = old_log_probs, correction
        self.advantages, self.token_weights, self.spans = advantages, token_weights, spans
        self.truncated, self.failed_verdicts = truncated, failed_verdicts
        self.tokens_per_micro_batch = tokens_per_micro_batch
        self.kl_in_reward, self.overlap = kl_in_reward, overlap
        self.prompt_format = PromptFormat(chat_template, system_prompt, chat_template_kwargs or {}, prompt_template)
        self.max_prompt_length, self.skip_special_tokens = max_prompt_length, skip_special_tokens
        self.schemes = tuple(schemes)
        self._stack = SchemeStack(self.schemes, seed)
        self.evaluations = tuple(evaluations)
        self.seed = seed

    @property
    def needs_reference(self) -> bool:
        """Whether the rewards need log-probabilities under the reference."""
        return self.kl_in_reward > 0

    def update_plan(self, layout: SequenceLayout, micro_batches: int) -> UpdatePlan:
        """Return the split of a rollout into updates, and of each update into micro-batches per rank."""
        sizes = self.updates_per_rollout, self.epochs_per_rollout, micro_batches
        return UpdatePlan(*sizes, layout, self.tokens_per_micro_batch)

    # Lightning's hooks

    @override
    def setup(self, stage: str) -> None:
        """Check the split of a rollout, request a reference if the rewards need one, and create sampler and buffer."""
        texts = self.max_completion_length, self.prompt_format, self.skip_special_tokens, self.max_prompt_length
        self.sampler = Sampler(self.rollouts, self.policy, self._trainer, *texts)
        self._held_out: dict[str, list[Prompt]] | None = None
        if stage == "fit":
            plan = self.update_plan(self.policy.layout, self._trainer.accumulate_grad_batches)
            require_division(self.prompts_per_rollout, self.group_size, data_parallel_size(self._trainer), plan)
            require_whole_updates(self._trainer, plan)
            require_defined(self._trainer, self.token_weights, self.schemes, self.correction, self.spans)
            if self.needs_reference:
                self.policy.keep_reference()
            self._notices = Notices(self.max_completion_length, self.truncated)
            self._notices.before_training(plan, self.overlap and self.old_log_probs == "sampler")
        super().setup(stage)

    @override
    def new_buffer(self, trainer: Trainer) -> RolloutBuffer:
        shard = data_parallel_rank(trainer), data_parallel_size(trainer)
        self._stack.reset()
        self._prompts = self._stack.stream(
            self.dataset, lambda *example: self.sampler.tokenizer(*example), *shard, self.updates_per_rollout
        )
        stages: dict[str, Stateful] = {"prompts": self._prompts, **self._stack.stages}
        updates, micro_batches = self.updates_per_rollout * self.epochs_per_rollout, trainer.accumulate_grad_batches
        sizes = updates * micro_batches, self.epochs_per_rollout, micro_batches
        return RolloutBuffer(self._rollout, *sizes, shard, stages, lambda: trainer.global_step)

    @override
    def train_dataloader(self) -> RolloutLoader:
        """Return the data loader over successive rollouts, after a check of all prompts and of the layout."""
        self.check_prompts()
        self._held_out_prompts()
        self.policy.choose_layout()
        return super().train_dataloader()

    def check_prompts(self) -> None:
        """Check the training prompts, and leave those above `max_prompt_length` out of their order."""
        self._prompts.order = PromptOrder(self.sampler.tokenizer.check("dataset", self.dataset), self.seed)

    @override
    def val_dataloader(self) -> list[EvaluationLoader]:
        """Return the evaluations of the held-out prompts."""
        if self.validation is None:
            return []
        prompts, sampling = self._held_out_prompts(), (self.sampler, self.rewards, self.temperature, self._trainer)
        return [
            held_out.loader(name, prompts[name], evaluation, *sampling)
            for name, held_out in self.validation.items()
            for evaluation in self.evaluations
        ]

    def _held_out_prompts(self) -> dict[str, list[Prompt]]:
        if self._held_out is None:
            self._held_out = held_out_prompts(self.validation or {}, self.dataset, self.sampler)
        return self._held_out

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
        sequences = groups.sequences(self.temperature)
        log_probs = rollout_log_probs(groups, sequences, self.policy, self.old_log_probs, self.correction, plan)
        rewards = penalized_rewards(groups, log_probs, self.kl_in_reward)
        seed = derived_seed(self.seed, number)
        estimated = advantages(self.advantages, groups, rewards, self.rewards.weights, seed, self._trainer)
        metrics = rollout_metrics(groups, rewards, self.rewards, log_probs.mismatch, self._trainer)
        self._notices.after_rollout(metrics)
        weighted = self._stack.weighted(estimated, groups, number, data_parallel_rank(self._trainer))
        objective = cast(PolicyObjective, self._trainer.lightning_module.objective)
        require_unweighted(objective, estimated, weighted, self.schemes)
        mean_weights, kept = token_weights(self.token_weights, groups, log_probs.entropies, self._trainer)
        spans = span_ids(self.spans, groups, self.policy.tokenizer)
        rollout = Rollout(groups, sequences, log_probs, weighted, {**metrics, **kept}, mean_weights, spans)
        observe(self._trainer, rollout)
        batches, trained = updates(rollout, plan, self.keeps_all(objective), self._trainer)
        self._begin(number + 1, self._trainer.global_step + len(batches) // plan.micro_batches)
        whole = {"completions/trained_ratio": trained, "time/rollout": time.perf_counter() - started}
        return PreparedRollout(batches, {**rollout.metrics, **whole})

    def _groups(self, number: int) -> Groups:
        """Sample and score the groups of a rollout on this rank, with the sampling schemes applied."""
        self._prompts.begin_at(number * self.prompts_per_rollout)
        return self._stack.groups(self._group_sampler(number), self._prompts_per_rank)

    def _begin(self, number: int, step: int) -> None:
        """Start sampling the next rollout in the background if `overlap` is set and training continues after `step`."""
        if self.overlap and step < self._trainer.estimated_stepping_batches:
            self._group_sampler(number).begin(*self._stack.first_sizes(self._prompts_per_rank, self.group_size))

    def _group_sampler(self, number: int) -> GroupSampler:
        parts = self.sampler, self._prompts, self.rewards, self.truncated, self.failed_verdicts
        sizes = self.group_size, self.temperature, self.updates_per_rollout
        seeds = self.seed, number, data_parallel_rank(self._trainer)
        return GroupSampler(*parts, *sizes, seeds, self._trainer)

    @property
    def _prompts_per_rank(self) -> int:
        return self.prompts_per_rollout // data_parallel_size(self._trainer)
