"""Prompts to completions to rewards to advantages to micro-batches."""

from __future__ import annotations

import time
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Literal, cast, get_args

import torch
from einops import rearrange, reduce
from lightning import LightningDataModule
from torch import Tensor

from aggregate_po import (
    AdvantageEstimator,
    CorrectionWeights,
    GroupedRewards,
    PerCompletion,
    PerToken,
    PolicyBatch,
    SamplerCorrection,
    StepTotals,
    masked_sum,
)
from aggregate_po.advantages import GroupNormalized
from aggregate_po.shapes import require_shape
from lightning_modules.batch import RolloutBatch, left_padded
from lightning_modules.data.evaluation import Evaluation, EvaluationLoader
from lightning_modules.data.loader import RolloutLoader
from lightning_modules.data.metrics import rollout_figures, rollout_sums
from lightning_modules.data.micro_batches import micro_batches
from lightning_modules.data.mismatch import mismatch_figures, named
from lightning_modules.data.sampler import Drawn, RolloutAhead
from lightning_modules.distributed import (
    agreed_among_partners,
    data_rank,
    gathered_over_ranks,
    is_first_partner,
    number_of_data_ranks,
    summed_over_ranks,
)
from lightning_modules.prompts import Example, JSONLines, PromptDataset, PromptOrder
from lightning_modules.rewards.base import Reward
from lightning_modules.rewards.weighted import WeightedRewards
from lightning_modules.rollouts import Completions, RolloutEngine, SamplingParameters, TransformersEngine
from lightning_modules.seeding import derived_seed

if TYPE_CHECKING:
    from lightning_modules.policy_module import PolicyModule

TruncationRule = Literal["score", "zero_reward", "mask"]
LogProbSource = Literal["sampler", "trainer"]


class RolloutDataModule(LightningDataModule):
    """Makes rollouts with the policy that is being trained, and cuts them into micro-batches.

    One Lightning epoch is one rollout: `prompts_per_rollout * group_size` completions, used for
    `updates_per_rollout * epochs_per_rollout` optimiser steps of `accumulate_grad_batches` micro-batches each.

    Args:
        dataset: prompts to train on: a `PromptDataset`, a list of mappings with "prompt", or a file of JSON lines.
        reward: scores a completion, given its example; or several that do, whose weighted sum is the reward.
        reward_weights: of each reward in the sum; 1 for each when None.
        validation: held-out prompts for pass@1, in the forms of `dataset`; none without it.
        rollouts: draws the completions.
        group_size: completions per prompt, at least 2.
        prompts_per_rollout: prompts of one rollout, over all ranks.
        updates_per_rollout: optimiser steps into which a rollout is divided.
        epochs_per_rollout: how often the rollout is gone through.
        max_completion_length: tokens after which a completion is cut off.
        temperature: of sampling; log-probabilities are those of the distribution that it gives.
        old_log_probs: whose log-probabilities are those of the behaviour policy: the "sampler"'s, as it noted them, or
            the "trainer"'s, computed anew for the whole rollout, which costs a forward pass.
        correction: makes up for the difference between the two; needs the trainer's.
        advantages: turns the rewards of the rollout, over all ranks, into advantages; an estimator of
            `aggregate_po.advantages`.
        truncated: what becomes of a completion that was cut off: "score" it as it stands, give it "zero_reward", or
            "mask" it, so that it counts in its group's baseline only.
        tokens_per_micro_batch: tokens that the model may run over at once, prompts included, and the padding that the
            policy's `layout` needs: an update then takes fewer of its `accumulate_grad_batches` micro-batches where
            completions are short. All of them, of about equal size, when None.
        kl_in_reward: weight of the summed log ratio to the reference that is taken off each reward.
        overlap: whether the next rollout is drawn while the present one is trained on, by a policy that is one rollout
            old; for engines in another process.
        chat_template: whether prompts are wrapped by the tokenizer's chat template, as a user's message.
        seed: of the order of prompts, of sampling, and of estimators that draw at random.

    Raises:
        FileNotFoundError: the file of prompts does not exist.
        TypeError: `advantages` is not an AdvantageEstimator, or a reward cannot be called.
        ValueError: an argument is out of its range, or there are no prompts.
    """

    def __init__(
        self,
        dataset: PromptDataset | str,
        reward: Reward | Sequence[Reward],
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
        seed: int = 0,
    ) -> None:
        super().__init__()
        counts = {
            "prompts_per_rollout": prompts_per_rollout,
            "updates_per_rollout": updates_per_rollout,
            "epochs_per_rollout": epochs_per_rollout,
            "max_completion_length": max_completion_length,
        }
        for name, count in counts.items():
            if count < 1:
                raise ValueError(f"`{name}` is {count}; pass 1 or more.")
        if tokens_per_micro_batch is not None and tokens_per_micro_batch < 1:
            raise ValueError(f"`tokens_per_micro_batch` is {tokens_per_micro_batch}; pass 1 or more tokens.")
        if group_size < 2:
            raise ValueError(
                f"`group_size` is {group_size}; pass 2 or more, since an advantage compares completions of one prompt."
            )
        if not temperature > 0:
            raise ValueError(f"`temperature` is {temperature}; pass a positive number, 1.0 for the policy itself.")
        if truncated not in get_args(TruncationRule):
            raise ValueError(f"`truncated` is {truncated!r}; pass one of {', '.join(get_args(TruncationRule))}.")
        if old_log_probs not in get_args(LogProbSource):
            raise ValueError(f"`old_log_probs` is {old_log_probs!r}; pass one of {', '.join(get_args(LogProbSource))}.")
        if correction is not None and old_log_probs == "sampler":
            raise ValueError(
                f"`correction` is {correction!r}, but `old_log_probs` is 'sampler', whose own log-probabilities need "
                "none; pass old_log_probs='trainer'."
            )
        if not kl_in_reward >= 0:
            raise ValueError(f"`kl_in_reward` is {kl_in_reward}; pass 0 for none, or a positive weight.")
        if not isinstance(advantages, AdvantageEstimator):
            raise TypeError(
                f"`advantages` is {advantages!r}; pass an instance of a subclass of aggregate_po.AdvantageEstimator, "
                "such as aggregate_po.advantages.GroupCentered()."
            )
        self.rewards = WeightedRewards(reward, reward_weights)
        self.dataset = _examples("dataset", dataset)
        self.validation = None if validation is None else _examples("validation", validation)
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
        self.seed = seed
        self._order = PromptOrder(len(self.dataset), seed)
        self._ahead = RolloutAhead()
        if overlap and not self.rollouts.concurrent:
            raise ValueError(
                f"`overlap` is True, but {type(self.rollouts).__name__} draws in the training process; pass "
                "`rollouts` that draw in another one, such as VLLMServers."
            )

    @property
    def policy(self) -> PolicyModule:
        """The module that the trainer trains."""
        if self.trainer is None:
            raise RuntimeError("the data module has no trainer; pass it to Trainer.fit or Trainer.validate.")
        return cast("PolicyModule", self.trainer.lightning_module)

    def setup(self, stage: str) -> None:
        """Check how a rollout divides, and ask for a reference where the rewards need one."""
        assert self.trainer is not None
        if stage != "fit":
            return
        shares = number_of_data_ranks(self.trainer)
        pieces = shares * self.updates_per_rollout
        if self.prompts_per_rollout % pieces:
            raise ValueError(
                f"`prompts_per_rollout` is {self.prompts_per_rollout}, which {self.updates_per_rollout} updates on "
                f"{shares} data-parallel ranks do not divide; pass a multiple of {pieces}."
            )
        completions = self.prompts_per_rollout * self.group_size // pieces
        if self.trainer.accumulate_grad_batches > completions:
            raise ValueError(
                f"`accumulate_grad_batches` is {self.trainer.accumulate_grad_batches}, but an update has only "
                f"{completions} completions on each rank; pass at most that many."
            )
        if self.kl_in_reward > 0:
            self.policy.keep_reference()

    def train_dataloader(self) -> RolloutLoader:
        """One rollout after another."""
        assert self.trainer is not None
        updates, pieces = self.updates_per_rollout * self.epochs_per_rollout, self.trainer.accumulate_grad_batches
        share = data_rank(self.trainer), number_of_data_ranks(self.trainer)
        return RolloutLoader(self._rollout, updates * pieces, self.epochs_per_rollout, pieces, share)

    def val_dataloader(self) -> list[EvaluationLoader]:
        """The held-out prompts, once sampled at the training temperature and once greedy."""
        if self.validation is None:
            return []
        return [EvaluationLoader(self, "sampled", self.temperature), EvaluationLoader(self, "greedy", 0.0)]

    def transfer_batch_to_device(
        self, batch: RolloutBatch | Evaluation, device: torch.device, dataloader_idx: int
    ) -> RolloutBatch | Evaluation:
        """Move a micro-batch; an evaluation stays where it is."""
        return batch.to(device) if isinstance(batch, RolloutBatch) else batch

    def complete(
        self, examples: Sequence[Example], temperature: float, seed: int, samples_per_prompt: int = 1
    ) -> tuple[list[list[int]], Completions, list[str]]:
        """Draw completions from the policy as it is now.

        Returns:
            Token ids of the prompts, the completions, and their texts.
        """
        assert self.trainer is not None
        prompts = [self._prompt_ids(example) for example in examples]
        self._ahead.settle()
        with self.trainer.precision_plugin.forward_context():
            self.rollouts.load_policy(self.policy.model)
            drawn = self.rollouts.generate(prompts, self._sampling(temperature, seed, samples_per_prompt))
        return prompts, drawn, self._texts(drawn)

    def _sampling(self, temperature: float, seed: int, samples_per_prompt: int) -> SamplingParameters:
        return SamplingParameters(
            max_completion_length=self.max_completion_length,
            stop_token_ids=self.policy.stop_token_ids,
            temperature=temperature,
            seed=seed,
            samples_per_prompt=samples_per_prompt,
        )

    def _texts(self, drawn: Completions) -> list[str]:
        rows = [ids[: int(length)] for ids, length in zip(drawn.token_ids, drawn.mask.sum(dim=-1), strict=True)]
        return self.policy.tokenizer.batch_decode(rows, skip_special_tokens=True)

    def prompt_lengths(self, examples: Sequence[Example]) -> list[int]:
        """Tokens of each prompt, the chat template's included."""
        return [len(self._prompt_ids(example)) for example in examples]

    def teardown(self, stage: str) -> None:
        """Leave nothing running."""
        self._ahead.close()
        self.rollouts.close()

    def _prompt_ids(self, example: Example) -> list[int]:
        if self.chat_template:
            message = [{"role": "user", "content": example["prompt"]}]
            text = self.policy.tokenizer.apply_chat_template(message, add_generation_prompt=True, tokenize=False)
            return list(self.policy.tokenizer.encode(text, add_special_tokens=False))
        return list(self.policy.tokenizer.encode(example["prompt"]))

    def _rollout(self, number: int) -> list[RolloutBatch]:
        """Make the rollout with this number and cut it into micro-batches."""
        assert self.trainer is not None
        started = time.perf_counter()
        examples = self._examples_of(number)
        prompts = [self._prompt_ids(example) for example in examples]
        finished = self._ahead.take(number) or self._drawing(number, prompts)()
        drawn = cast(Completions, agreed_among_partners(finished.completions, self.trainer))
        texts = self._texts(drawn)
        repeated = [example for example in examples for _ in range(self.group_size)]
        scored = self.rewards.components(texts, repeated) if is_first_partner(self.trainer) else None
        components = cast(Tensor, agreed_among_partners(scored, self.trainer))
        response_mask = drawn.mask
        if self.truncated == "zero_reward":
            components = torch.where(drawn.finished.unsqueeze(-1), components, 0)
        elif self.truncated == "mask":
            response_mask = drawn.mask & drawn.finished.unsqueeze(-1)
        rewards = self.rewards.total(components)

        prompt_ids, prompt_mask = left_padded(prompts)
        whole = RolloutBatch(
            prompt_ids=prompt_ids,
            prompt_mask=prompt_mask,
            prompt_of=torch.arange(len(prompts)).repeat_interleave(self.group_size),
            completion_ids=drawn.token_ids,
            completion_mask=drawn.mask,
            policy=PolicyBatch(drawn.log_probs, response_mask, torch.zeros_like(rewards)),
            temperature=self.temperature,
        )
        whole, mismatch = self._with_old_log_probs(whole, drawn.log_probs)
        if self.policy.needs_reference:
            reference = self._by_pieces(self.policy.reference_log_probs, whole)
            whole = whole.replace(policy=replace(whole.policy, ref_log_probs=reference))
            log_ratio = masked_sum(whole.policy.old_log_probs - reference, response_mask)
            rewards = rewards - self.kl_in_reward * log_ratio
        advantages = self._advantages(rewards, components, drawn.mask, derived_seed(self.seed, number))
        whole = whole.replace(policy=replace(whole.policy, advantages=advantages))
        sums = rollout_sums(rewards, components, drawn, self.group_size)
        figures = {
            **rollout_figures(summed_over_ranks(sums, self.trainer), self.rewards.names),
            **mismatch,
            **finished.figures,
            "rollout/staleness": self.trainer.global_step - finished.global_step,
            "time/rollout": time.perf_counter() - started,
        }
        batches = self._cut(whole, figures)
        if self.overlap and not self._ends_with(len(batches)):
            upcoming = [self._prompt_ids(example) for example in self._examples_of(number + 1)]
            self._ahead.begin(number + 1, self._drawing(number + 1, upcoming))
        return batches

    def _examples_of(self, number: int) -> list[Example]:
        """This rank's prompts of the rollout with this number."""
        assert self.trainer is not None
        first = number * self.prompts_per_rollout
        order = self._order.slice(first, first + self.prompts_per_rollout)
        return [self.dataset[index] for index in order[data_rank(self.trainer) :: number_of_data_ranks(self.trainer)]]

    def _drawing(self, number: int, prompts: list[list[int]]) -> Callable[[], Drawn]:
        """What draws the completions of a rollout from the policy as it is now."""
        assert self.trainer is not None
        seed = derived_seed(self.seed, number, data_rank(self.trainer))
        sampling = self._sampling(self.temperature, seed, self.group_size)
        context, step = self.trainer.precision_plugin.forward_context, self.trainer.global_step
        self._ahead.settle()
        with context():
            self.rollouts.load_policy(self.policy.model)

        # An engine elsewhere is asked once; one in the training process may need the ranks together.
        draws = not self.rollouts.concurrent or is_first_partner(self.trainer)

        def draw() -> Drawn:
            with context():
                completions = self.rollouts.generate(prompts, sampling) if draws else None
            return Drawn(completions, step, self.rollouts.figures())

        return draw

    def _ends_with(self, batches: int) -> bool:
        """Whether the training is over once these batches are used up."""
        assert self.trainer is not None
        updates = batches // self.trainer.accumulate_grad_batches
        return 0 <= self.trainer.max_steps <= self.trainer.global_step + updates

    def _with_old_log_probs(
        self, whole: RolloutBatch, rollout_log_probs: PerToken
    ) -> tuple[RolloutBatch, dict[str, float]]:
        """The rollout with the behaviour policy's log-probabilities and a correction, and figures of the mismatch.

        Raises:
            ValueError: they are to be the sampler's, and it gave none for some tokens.
        """
        assert self.trainer is not None
        mask = whole.policy.response_mask
        if self.old_log_probs == "sampler":
            missing = int((mask & ~torch.isfinite(rollout_log_probs)).sum())
            if missing:
                raise ValueError(
                    f"the sampler gave no log-probability for {missing} of {int(mask.sum())} tokens; have them "
                    "computed by the trainer, `old_log_probs: trainer`."
                )
            return whole, {}
        old = self._by_pieces(self.policy.current_log_probs, whole)
        weights = CorrectionWeights() if self.correction is None else self.correction(old, rollout_log_probs, mask)
        figures = mismatch_figures(old, rollout_log_probs, mask, weights).unsqueeze(0)
        policy = replace(whole.policy, old_log_probs=old, correction=weights)
        return whole.replace(policy=policy), named(gathered_over_ranks(figures, self.trainer))

    def _advantages(
        self, rewards: PerCompletion, components: Tensor, completion_mask: PerToken, seed: int
    ) -> PerCompletion | PerToken:
        """Advantages of this rank's completions, estimated on the rollout of all ranks."""
        assert self.trainer is not None
        sizes = {"rank": number_of_data_ranks(self.trainer), "group": self.group_size}
        columns = [rewards.unsqueeze(-1), completion_mask.sum(dim=-1, keepdim=True), components]
        gathered = gathered_over_ranks(torch.cat(columns, dim=-1).double(), self.trainer)
        # Ranks take the prompts in turn; back in the order of prompts, the rollout is the same for any number of ranks.
        table = rearrange(gathered, "(rank prompt group) column -> (prompt rank group) column", **sizes)
        step = GroupedRewards(
            rewards=table[:, 0].to(rewards.dtype),
            group_size=self.group_size,
            lengths=table[:, 1].long(),
            components=table[:, 2:].to(components.dtype),
            component_weights=self.rewards.weights,
            seed=seed,
        )
        advantages = self.advantages(step)
        longest = torch.Size([int(table[:, 1].max())] if advantages.ndim > 1 else [])
        words = "`batch` or `batch time`, `time` being the longest length"
        require_shape(self.advantages, "__call__", advantages, words, step.rewards.shape + longest)
        mine = rearrange(advantages, "(prompt rank group) ... -> rank (prompt group) ...", **sizes)
        mine = mine[data_rank(self.trainer)]
        if mine.ndim == 1:
            return mine
        # A negative width cuts: another rank's completions may be longer than any of this one's.
        return torch.nn.functional.pad(mine, (0, completion_mask.shape[1] - mine.shape[1]))

    def _by_pieces(self, log_probs_of: Callable[[RolloutBatch], PerToken], whole: RolloutBatch) -> PerToken:
        """Log-probabilities of all completions, a micro-batch at a time."""
        assert self.trainer is not None
        most = self.updates_per_rollout * self.trainer.accumulate_grad_batches
        log_probs = torch.zeros_like(whole.policy.old_log_probs)
        for rows in self._pieces(whole, torch.arange(len(log_probs)), most):
            # Sharded weights are gathered by all ranks, so each makes as many calls as the others.
            rows = rows if len(rows) else torch.tensor([0])
            piece = whole.select(rows)
            values = log_probs_of(piece.to(self.policy.device)).cpu()
            log_probs[rows, : values.shape[1]] = values
        return log_probs

    def _pieces(self, whole: RolloutBatch, rows: Tensor, most: int) -> list[Tensor]:
        """Rows of each of `most` micro-batches; there may be empty ones at the end."""
        pieces = micro_batches(whole, rows, most, self.policy.layout, self.tokens_per_micro_batch)
        return pieces + [rows[:0]] * (most - len(pieces))

    def _cut(self, whole: RolloutBatch, figures: dict[str, float]) -> list[RolloutBatch]:
        """Micro-batches of one rollout, each with the totals of its optimiser step over all ranks.

        Completions that cannot contribute are left out of the forward pass; the totals count them all the same.
        """
        assert self.trainer is not None
        mask = whole.policy.response_mask
        trained = mask.any(dim=-1)
        contributes = trained
        if not self.policy.objective.penalties:
            contributes = contributes & self._has_gradient(whole.policy.advantages)
        updates = torch.arange(len(mask)).tensor_split(self.updates_per_rollout)
        counts = torch.stack([trained, mask.sum(dim=-1), contributes], dim=-1).double()
        counts = summed_over_ranks(torch.stack([counts[rows].sum(dim=0) for rows in updates]), self.trainer)
        completions = self.prompts_per_rollout * self.group_size
        metrics = {**figures, "completions/trained_ratio": counts[:, 2].sum().item() / completions}
        batches = []
        for number in range(len(updates) * self.epochs_per_rollout):
            rows, (completions, tokens, _) = updates[number % len(updates)], counts[number % len(updates)].tolist()
            totals = StepTotals(
                completions=completions,
                tokens=tokens,
                progress=min((self.trainer.global_step + number) / self.trainer.estimated_stepping_batches, 1.0),
                reward_mean=figures["reward"],
                reward_std=figures["reward_std"],
            )
            pieces = self._pieces(whole, rows[contributes[rows]], self.trainer.accumulate_grad_batches)
            for index, piece in enumerate(pieces):
                # A micro-batch without completions would skip backward, which other ranks wait for.
                batch = whole.select(piece if len(piece) else rows[:1])
                inert = torch.zeros_like(batch.policy.response_mask) if not len(piece) else batch.policy.response_mask
                policy = replace(batch.policy, totals=totals, response_mask=inert)
                closes = index == len(pieces) - 1
                batches.append(batch.replace(policy=policy, closes_update=closes, metrics=metrics))
        return batches

    def _has_gradient(self, advantages: PerCompletion | PerToken) -> Tensor:
        """True for the completions of groups in which any advantage differs from zero."""
        differs = advantages != 0 if advantages.ndim == 1 else (advantages != 0).any(dim=-1)
        groups = rearrange(differs, "(prompt group) -> prompt group", group=self.group_size)
        return reduce(groups, "prompt group -> prompt", "max").repeat_interleave(self.group_size)


def _examples(name: str, dataset: PromptDataset | str) -> Sequence[Example]:
    if isinstance(dataset, str) and not Path(dataset).is_file():
        raise FileNotFoundError(f"`{name}` is {dataset!r}, which is not a file; pass a file of JSON lines.")
    examples = JSONLines(dataset) if isinstance(dataset, str) else dataset
    if len(examples) == 0:
        raise ValueError(f"`{name}` is {dataset!r}, which has no prompts; pass at least one example.")
    return examples
