"""Groups that the start model samples for training prompts, and the time that they take."""

from __future__ import annotations

import time
from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass

import torch
from einops import rearrange, reduce
from lightning import Trainer
from torch import Tensor
from typing_extensions import override

from lightning_modules.batch import Evaluation
from lightning_modules.data.advantages import advantages
from lightning_modules.data.definitions import require_defined
from lightning_modules.data.groups import Groups, GroupSampler
from lightning_modules.data.module import RolloutDataModule
from lightning_modules.distributed import data_parallel_size, gathered_over_ranks
from lightning_modules.model.policy import Policy
from lightning_modules.progress import progress_bar
from lightning_modules.prompts import Example
from lightning_modules.seeding import derived_seed


@dataclass(frozen=True)
class TrialRollout:
    """Groups of the start model, from all ranks.

    Args:
        rewards: total rewards; shape `prompt group`; float64.
        scored: False for completions whose verdict failed; their rewards mean nothing; shape `prompt group`.
        have_signal: True for groups whose rewards are not all equal; shape `prompt`.
        have_advantage: True for groups in which an advantage of the run's estimator is not 0; shape `prompt`.
        lengths: number of tokens of each completion; shape `prompt group`.
        finished: False for truncated completions; shape `prompt group`.
        texts: completions of the groups of this rank; those of a group are adjacent.
        examples: example of each of these completions.
        sampling_seconds: seconds of sampling and scoring.
        pass_seconds: seconds of a forward and a backward pass over one micro-batch.
    """

    rewards: Tensor
    scored: Tensor
    have_signal: Tensor
    have_advantage: Tensor
    lengths: Tensor
    finished: Tensor
    texts: Sequence[str]
    examples: Sequence[Example]
    sampling_seconds: float
    pass_seconds: float


class TrialData(RolloutDataModule):
    """Data module that samples groups for training prompts where a validation would sample held-out ones.

    It has the arguments of a `RolloutDataModule`. Sampling schemes are left out: they would select what is measured.
    """

    trial: TrialRollout | None = None  # after the validation
    prompts_of_trial = 1  # over all ranks

    @override
    def val_dataloader(self) -> list[_TrialLoader]:  # type: ignore[override]
        """Return a loader that samples the groups of the trial.

        Raises:
            ValueError: the objective has no definition for what the run would give it.
        """
        require_defined(self._trainer, self.token_weights, self.schemes, self.correction, self.spans)
        self.new_buffer(self._trainer)  # makes the stream of prompts
        self.check_prompts()
        self.sampler.fix_lengths(dataset=self.dataset)
        self.policy.choose_layout()
        return [_TrialLoader(self, self._group_sampler, self._trainer)]

    def completions_of_pass(self) -> int:
        """Return the number of completions of a full micro-batch on each rank."""
        updates = self.updates_per_rollout * data_parallel_size(self._trainer)
        update = self.prompts_per_rollout * self.group_size // updates
        return -(-update // self._trainer.accumulate_grad_batches)


class _TrialLoader:
    """Data loader that samples the groups, measures the time of a pass over a micro-batch, and yields no batch."""

    def __init__(self, data: TrialData, of_rollout: Callable[[int], GroupSampler], trainer: Trainer) -> None:
        self._data, self._of_rollout, self._trainer = data, of_rollout, trainer

    def __len__(self) -> int:
        return 1  # with none, Lightning would not ask for a batch

    def __iter__(self) -> Iterator[Evaluation]:
        ranks = data_parallel_size(self._trainer)
        count, at_once = self._data.prompts_of_trial // ranks, self._data.prompts_per_rollout // ranks
        parts: list[Groups] = []
        started = time.perf_counter()
        with progress_bar(total=count * ranks, desc="sampling", unit="prompt", leave=False) as progress:
            for number, start in enumerate(range(0, count, at_once)):  # with the prompts and the seeds of that rollout
                parts.append(self._of_rollout(number)(min(at_once, count - start)))
                progress.update(len(parts[-1]) * ranks)
        groups, seconds = Groups.joined(parts), time.perf_counter() - started
        estimated = self._estimated(groups)
        self._data.trial = _trial(groups, estimated, seconds, self._pass_seconds(groups), self._trainer)
        yield from ()  # a generator, since Lightning asks for an iterator more often than for a batch

    def _estimated(self, groups: Groups) -> Tensor:
        """Return the advantages by the estimator of the run; shape `batch` or `batch time`."""
        data = self._data
        return advantages(
            data.advantages, groups, groups.rewards, data.rewards.weights, derived_seed(data.seed, 0), self._trainer
        )

    def _pass_seconds(self, groups: Groups) -> float:
        """Return the seconds of the second of two passes, since the first one also allocates memory."""
        rows = torch.arange(min(self._data.completions_of_pass(), len(groups.texts)))
        policy, seconds = self._data.policy, 0.0
        sequences = groups.sequences(self._data.temperature).select(rows).to(policy.device)
        for _ in range(2):
            started = time.perf_counter()
            with torch.enable_grad(), self._trainer.precision_plugin.forward_context():
                log_probs, _ = policy.log_probs_and_entropy(sequences)
                log_probs.sum().backward()
            _wait_for(policy)
            seconds = time.perf_counter() - started
        policy.model.zero_grad(set_to_none=True)
        return seconds * self._data.completions_of_pass() / len(rows)


def _wait_for(policy: Policy) -> None:
    """Wait until the device of the policy has finished what it was given."""
    if policy.device.type == "cuda":
        torch.cuda.synchronize(policy.device)


def _trial(
    groups: Groups, estimated: Tensor, sampling_seconds: float, pass_seconds: float, trainer: Trainer
) -> TrialRollout:
    lengths, finished = groups.completions.mask.sum(dim=-1), groups.completions.finished
    signal = groups.have_signal.repeat_interleave(groups.group_size)
    nonzero = reduce(estimated != 0, "batch ... -> batch", "max")
    columns = groups.rewards, groups.scored, signal, nonzero, lengths, finished
    table = torch.stack([column.double() for column in columns], dim=-1)
    by_group = rearrange(
        gathered_over_ranks(table, trainer), "(prompt group) column -> column prompt group", group=groups.group_size
    )
    return TrialRollout(
        rewards=by_group[0],
        scored=by_group[1].bool(),
        have_signal=by_group[2, :, 0].bool(),
        have_advantage=by_group[3].bool().any(dim=-1),
        lengths=by_group[4],
        finished=by_group[5].bool(),
        texts=groups.texts,
        examples=[prompt.example for prompt in groups.prompts for _ in range(groups.group_size)],
        sampling_seconds=sampling_seconds,
        pass_seconds=pass_seconds,
    )
