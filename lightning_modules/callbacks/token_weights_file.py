"""Files of the gradient weights of a run, token by token."""

from __future__ import annotations

from typing import Any, cast

from lightning import LightningModule, Trainer
from typing_extensions import override

from lightning_modules.batch import RolloutBatch
from lightning_modules.callbacks.step_files import StepFiles
from lightning_modules.micro_batch_observers import EvaluatedMicroBatch, MicroBatchObserver
from lightning_modules.model.policy import Policy
from lightning_modules.parquet_files import require_pyarrow
from lightning_modules.token_rows import FOLDER, token_rows
from lightning_modules.token_texts import TokenTexts
from lightning_modules.validation import require_at_least


class TokenWeightsFile(MicroBatchObserver):
    """Writes the gradient weights of optimizer steps, token by token, to Parquet files `tokens/step-000050.parquet`.

    A file has the completions of all ranks that the step trains on, with the text, log-probabilities, weight,
    concentration and clip of each token; `read_token_rows` reads it. Completions without a gradient are left out of the
    step, and so of its file. Files are written atomically, and a resumed run replaces those of the steps that it
    repeats.

    By default the last optimizer step of each rollout has a file: there ratios are farthest from 1. A rollout that
    `RatioDeviationStop` ends early has none then.

    Args:
        every_n_steps: Number of optimizer steps between two files: with 10, steps 10, 20, ... have one. When None, the
            last step of each rollout has one.
        max_gigabytes: Maximum size of all files, in 10^9 bytes; beyond it the oldest are removed, and their number is
            logged as `tokens/removed_files`.

    Raises:
        ImportError: pyarrow is not installed.
        ValueError: a number is out of its range.
    """

    def __init__(self, every_n_steps: int | None = None, max_gigabytes: float = 10.0) -> None:
        require_pyarrow("TokenWeightsFile", "leave it out of `trainer.callbacks`")
        require_at_least(0, max_gigabytes=max_gigabytes)
        require_at_least(1, every_n_steps=every_n_steps)
        self.every_n_steps = every_n_steps
        self._files = StepFiles(FOLDER, max_gigabytes)
        self._update: list[EvaluatedMicroBatch] = []  # micro-batches of the current optimizer step
        self._texts: TokenTexts | None = None

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Remove the files of steps that this run repeats.

        Raises:
            TypeError: the policy has no tokens.
        """
        self._update = []
        policy = getattr(pl_module, "policy", None)
        if not isinstance(policy, Policy):
            raise TypeError(
                "`callbacks` has TokenWeightsFile, which writes the texts of tokens, but the trainer trains "
                f"{type(pl_module).__name__}; leave it out, or train a PolicyModule."
            )
        self._texts = TokenTexts(policy.tokenizer)
        self._files.forget_after(trainer.global_step, trainer)

    @override
    def on_micro_batch(self, trainer: Trainer, micro_batch: EvaluatedMicroBatch) -> None:
        """Write the rows of all ranks after the last micro-batch of an optimizer step, if it has a file."""
        self._update.append(micro_batch)
        if not micro_batch.batch.closes_update:
            return
        update, self._update = self._update, []
        if self._has_file(trainer):
            step, texts = trainer.global_step + 1, cast(TokenTexts, self._texts)
            rows = [
                row
                for one in update
                for row in token_rows(step, cast(RolloutBatch, one.batch), one.log_probs, one.evaluated, texts)
            ]
            self._files.write(step, rows, trainer)

    def _has_file(self, trainer: Trainer) -> bool:
        """Whether the current optimizer step, whose last micro-batch this is, has a file."""
        if self.every_n_steps is None:
            return trainer.is_last_batch  # of the epoch, which is a rollout
        return (trainer.global_step + 1) % self.every_n_steps == 0

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Log the number of files that were removed so far."""
        pl_module.log(f"{FOLDER}/removed_files", float(self._files.removed))

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the number of removed files."""
        return {"removed": self._files.removed}

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._files.removed = state_dict["removed"]
