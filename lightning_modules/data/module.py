"""Data module of language models: prompts, completions, rewards, advantages and micro-batches."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any, cast

from typing_extensions import override

from aggregate_po import AdvantageEstimator, PerCompletion, PerToken, SamplerCorrection, TokenWeighting
from aggregate_po.advantages import GroupNormalized
from aggregate_po.arguments import require_whole
from lightning_modules.batch import RolloutBatch, Sequences
from lightning_modules.configuration import described_arguments
from lightning_modules.data.arguments import (
    require_concurrent,
    require_parts,
    require_rewards_known,
    require_sampling,
    required_policy,
)
from lightning_modules.data.definitions import require_defined
from lightning_modules.data.evaluation import EvaluationLoader, EvaluationName
from lightning_modules.data.groups import Groups
from lightning_modules.data.held_out import HeldOutSet, held_out_prompts, held_out_sets
from lightning_modules.data.micro_batches import UpdatePlan
from lightning_modules.data.rollout import LogProbSource, RolloutLogProbs, penalized_rewards, rollout_log_probs
from lightning_modules.data.sampler import Sampler
from lightning_modules.data.schemes import SamplingScheme
from lightning_modules.data.schemes.stack import SchemeStack
from lightning_modules.data.spans import SpanRule, span_ids
from lightning_modules.data.staged import StagedDataModule
from lightning_modules.data.token_weights import token_weights
from lightning_modules.micro_batch import ModelInputs
from lightning_modules.model.policy import Policy
from lightning_modules.prompts import Prompt, PromptFormat, PromptOrder, PromptSource, PromptTemplate
from lightning_modules.prompts.sources import examples_of
from lightning_modules.rewards import AnyReward, FailedVerdictRule, TruncationRule, WeightedRewards
from lightning_modules.rollouts import RolloutEngine, TransformersEngine


class RolloutDataModule(StagedDataModule):
    """Samples rollouts from the policy during training, and splits them into micro-batches.

    One Lightning epoch is one rollout: `prompts_per_rollout * group_size` completions, used for
    `updates_per_rollout * epochs_per_rollout` optimizer steps of `accumulate_grad_batches` micro-batches each. The
    method `_rollout` of the base class shows the data flow, with one stage per line.

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

    sampler: Sampler
    kind = RolloutBatch

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
        require_whole(
            1,
            prompts_per_rollout=prompts_per_rollout,
            updates_per_rollout=updates_per_rollout,
            epochs_per_rollout=epochs_per_rollout,
            max_completion_length=max_completion_length,
            tokens_per_micro_batch=tokens_per_micro_batch,
            max_prompt_length=max_prompt_length,
        )
        require_sampling(group_size, temperature, kl_in_reward, evaluations)
        require_rewards_known(advantages)
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
    def policy(self) -> Policy:
        """The policy of the trainer's module; an error if there is none."""
        return required_policy(self._trainer, Policy, "PolicyModule")

    @property
    def needs_reference(self) -> bool:
        """Whether the rewards need log-probabilities under the reference."""
        return self.kl_in_reward > 0

    @property
    @override
    def samples_from_old_policy(self) -> bool:
        return self.old_log_probs == "sampler" and (self.overlap or super().samples_from_old_policy)

    # Stages

    @override
    def new_sampler(self) -> Sampler:
        texts = self.max_completion_length, self.prompt_format, self.skip_special_tokens, self.max_prompt_length
        return Sampler(self.rollouts, self.policy, self._trainer, *texts)

    @override
    def require_defined(self) -> None:
        require_defined(self._trainer, self.token_weights, self.schemes, self.correction, self.spans)

    @override
    def inputs_of(self, groups: Groups) -> Sequences:
        return groups.sequences(self.temperature)

    @override
    def log_probs_of(self, groups: Groups, inputs: ModelInputs, plan: UpdatePlan) -> RolloutLogProbs:
        sequences = cast(Sequences, inputs)
        return rollout_log_probs(groups, sequences, self.policy, self.old_log_probs, self.correction, plan)

    @override
    def rewards_of(self, groups: Groups, log_probs: RolloutLogProbs) -> PerCompletion:
        return penalized_rewards(groups, log_probs, self.kl_in_reward)

    @override
    def weights_of(self, groups: Groups, log_probs: RolloutLogProbs) -> tuple[PerToken | None, Mapping[str, float]]:
        return token_weights(self.token_weights, groups, log_probs.entropies, self._trainer)

    @override
    def spans_of(self, groups: Groups) -> PerToken | None:
        return span_ids(self.spans, groups, self.policy.tokenizer)

    @override
    def check_prompts(self) -> None:
        """Check the training prompts, and leave those above `max_prompt_length` out of their order."""
        self._prompts.order = PromptOrder(self.sampler.tokenizer.check("dataset", self.dataset), self.seed)

    @override
    def prepare_held_out(self) -> None:
        """Tokenize the held-out prompts, with which positions are fixed; see `held_out_prompts`."""
        self._held_out_prompts()

    # Lightning's hooks

    @override
    def setup(self, stage: str) -> None:
        """Request a reference if the rewards need one, and set up the rollouts."""
        self._held_out: dict[str, list[Prompt]] | None = None
        super().setup(stage)
        if stage == "fit" and self.needs_reference:
            self.policy.keep_reference()

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
