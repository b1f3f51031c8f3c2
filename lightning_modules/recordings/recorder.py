"""Callback that records rollouts with everything that their training steps computed."""

from __future__ import annotations

from contextlib import ExitStack
from dataclasses import replace
from pathlib import Path
from typing import cast

import torch
from lightning import LightningModule, Trainer
from torch import Tensor
from typing_extensions import override

from aggregate_po import PerToken
from lightning_modules.atomic import replacing
from lightning_modules.batch import RolloutBatch
from lightning_modules.callbacks.completion_rows import Row, rows_of_rollout
from lightning_modules.callbacks.ratio_deviation import RatioDeviationStop
from lightning_modules.configuration import described
from lightning_modules.data.observers import RolloutObserver
from lightning_modules.data.rollout import Rollout
from lightning_modules.micro_batch_observers import EvaluatedMicroBatch, MicroBatchObserver
from lightning_modules.parquet_files import require_pyarrow
from lightning_modules.policy_module import PolicyModule
from lightning_modules.recordings.manifest import MODEL
from lightning_modules.recordings.steps import RecordedBatch, RecordedStep, detached
from lightning_modules.recordings.writer import RecordingWriter
from lightning_modules.token_rows import token_rows
from lightning_modules.token_texts import TokenTexts
from lightning_modules.validation import require_at_least


class RolloutRecorder(RolloutObserver, MicroBatchObserver):
    """Records the next rollouts with everything that their training steps compute, and then ends the training.

    The folder is complete or does not exist: it is written under another name and renamed at the end. A rollout that a
    checkpoint has begun is trained and not recorded. `Recording` reads the folder; `docs/frozen-rollouts.md` lists its
    files.

    Args:
        folder: Folder to write, which must not exist.
        rollouts: Number of rollouts to record.
        configuration: Configuration of the run as YAML, for the folder; none when None.

    Raises:
        FileExistsError: the folder exists.
        ImportError: pyarrow is not installed.
        ValueError: the number is less than 1; in training, if there are several devices.
    """

    def __init__(self, folder: str | Path, rollouts: int = 1, configuration: str | None = None) -> None:
        require_pyarrow("A recording", "train without RolloutRecorder")
        require_at_least(1, rollouts=rollouts)
        self.folder = Path(folder)
        require_new(self.folder)
        self.rollouts = rollouts
        self._text = configuration
        self._opened = ExitStack()
        self._writer: RecordingWriter | None = None
        self._rollout: Rollout | None = None  # the current one
        self._begun = self._updates = 0  # rollouts, and optimizer steps of the current one
        self._pending: list[RecordedBatch] = []  # micro-batches of the current optimizer step
        self._completions: list[Row] = []
        self._tokens: list[Row] = []
        self._model_step: int | None = None

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Check that there is one device and that rollouts are trained to their end, before anything is sampled.

        Raises:
            ValueError: a callback may end a rollout before its last step, before which the model is saved.
        """
        require_one_device(trainer)
        if any(isinstance(callback, RatioDeviationStop) for callback in trainer.callbacks):  # type: ignore[attr-defined]
            raise ValueError(
                "`trainer.callbacks` has RatioDeviationStop, which may end a rollout before its last step, so that the "
                "model of the recording would be missing; record without it."
            )

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Make the folder under its temporary name."""
        self.folder.parent.mkdir(parents=True, exist_ok=True)
        scratch = self._opened.enter_context(replacing(self.folder))
        scratch.mkdir()
        self._writer = RecordingWriter(scratch)
        self._texts = TokenTexts(cast(PolicyModule, pl_module).policy.tokenizer)

    @override
    def on_rollout(self, trainer: Trainer, rollout: Rollout) -> None:
        """Note a new rollout, and the rows of its completions."""
        self._begun, self._updates, self._rollout = self._begun + 1, 0, rollout
        if self._begun <= self.rollouts:
            names = trainer.datamodule.rewards.names  # type: ignore[attr-defined]  # the one that has made the rollout
            rows = rows_of_rollout(rollout, trainer.global_step + 1, names)
            self._completions += [{"rollout": self._begun, **row} for row in rows]

    @override
    def on_micro_batch(self, trainer: Trainer, micro_batch: EvaluatedMicroBatch) -> None:
        """Keep a micro-batch, and write the optimizer step that it completes."""
        if self._rollout is None or self._begun > self.rollouts:
            return
        batch = cast(RolloutBatch, micro_batch.batch.to("cpu"))
        self._pending.append(
            RecordedBatch(
                batch=batch,
                log_probs=micro_batch.log_probs.cpu(),
                entropy=micro_batch.entropy.cpu(),
                rollout_log_probs=sampler_log_probs(self._rollout, batch),
                evaluated=detached(micro_batch.evaluated),
            )
        )
        if batch.closes_update:
            self._write_step(trainer, cast(PolicyModule, trainer.lightning_module))

    def _write_step(self, trainer: Trainer, module: PolicyModule) -> None:
        """Write the optimizer step that is about to be made, and before the last one the model."""
        assert self._writer is not None
        self._updates += 1
        number = trainer.global_step + 1
        step = RecordedStep(number, self._begun, self._updates, self._pending)
        self._writer.add(step)
        self._tokens += step_rows(step, self._texts)
        self._pending = []
        if (self._begun == self.rollouts and trainer.is_last_batch) or number == trainer.max_steps:
            save_model(module, self._writer.folder / MODEL)
            self._model_step = number

    @override
    def on_train_epoch_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """End the training after the last rollout; a rollout is an epoch of Lightning."""
        if self._begun >= self.rollouts:
            trainer.should_stop = True

    @override
    def on_train_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the manifest, and give the folder its name."""
        if self._writer is None or not self._writer.steps:
            raise ValueError(
                f"no whole rollout was trained until step {trainer.global_step}, so there is nothing to record; raise "
                "`--trainer.max_steps`."
            )
        module = cast(PolicyModule, pl_module)
        self._writer.finish(
            self._completions,
            self._tokens,
            self._text,
            objective=repr(module.objective),
            model=described(module.policy.source),
            layout=described(module.policy.layout),
            attn_implementation=module.policy.attn_implementation,
            precision=str(trainer.precision),
            device=str(module.policy.device),
            every_completion=trainer.datamodule.keeps_all(module.objective),  # type: ignore[attr-defined]
            model_step=self._model_step,
            trained_parameters="all" if module.policy.lora is None else "adapters",
        )
        self._opened.close()

    @override
    def on_exception(self, trainer: Trainer, pl_module: LightningModule, exception: BaseException) -> None:
        """Remove what was written."""
        self._opened.__exit__(type(exception), exception, exception.__traceback__)


def require_new(folder: Path) -> None:
    """Check that a folder does not exist.

    Raises:
        FileExistsError: it does.
    """
    if folder.exists():
        raise FileExistsError(
            f"`output` is {str(folder)!r}, which exists; choose another folder, or remove it. Nothing is overwritten."
        )


def require_one_device(trainer: Trainer) -> None:
    """Check that the training has one process.

    Raises:
        ValueError: there are several.
    """
    if trainer.world_size > 1:
        raise ValueError(
            f"a recording is made by one process, but the trainer has {trainer.world_size}; pass `--trainer.devices 1` "
            "and, if the memory is too small, more `--trainer.accumulate_grad_batches`."
        )


def sampler_log_probs(rollout: Rollout, batch: RolloutBatch) -> PerToken:
    """Return the log-probabilities that the sampler returned for a micro-batch, 0 on padding; shape `batch time`."""
    groups, samples = cast(Tensor, batch.policy.groups), cast(Tensor, batch.samples)
    rows, time = groups * rollout.groups.group_size + samples, batch.completion_ids.shape[1]
    return torch.where(batch.completion_mask, rollout.groups.completions.log_probs[rows, :time], 0)


def step_rows(step: RecordedStep, texts: TokenTexts) -> list[Row]:
    """Return a row for each trained completion of an optimizer step: a `TokenRow`, and what a recording adds."""
    rows: list[Row] = []
    for number, part in enumerate(step.batches):
        trained = part.batch.policy.response_mask.any(dim=-1).nonzero().flatten().tolist()
        lengths = part.batch.completion_mask.sum(dim=-1).tolist()
        found = token_rows(step.step, part.batch, part.log_probs, part.evaluated, texts)
        for place, row in zip(trained, found, strict=True):
            own = {"rollout": step.rollout, "update": step.update, "micro_batch": number, "row": place}
            sampled = part.rollout_log_probs[place, : lengths[place]].tolist()
            rows.append({**own, **row, "rollout_log_probs": sampled})
    return rows


def save_model(module: PolicyModule, folder: Path) -> None:
    """Write the policy for `from_pretrained`, adapters merged into the weights."""
    policy = module.policy
    if policy.lora is None:
        policy.save_pretrained(folder)
    else:
        replace(policy.lora, export="merged").save(policy.model, folder)
        policy.tokenizer.save_pretrained(folder)
