"""Report of a run: metrics, a plot, samples, the exported model, and a table at the end."""

from __future__ import annotations

import json
import time
from functools import partial
from pathlib import Path
from typing import Any, cast

import torch
from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only
from typing_extensions import override

from lightning_modules.batch import Evaluation
from lightning_modules.callbacks.checkpoints import RunCheckpoint
from lightning_modules.callbacks.held_out import evaluate, take_over_validation
from lightning_modules.callbacks.metrics_file import MetricsFile
from lightning_modules.callbacks.monitors import require_monitored
from lightning_modules.callbacks.results import RunResults, forget_results
from lightning_modules.callbacks.samples import Sample, samples_of, write_samples
from lightning_modules.micro_batch import current_rollout_metrics
from lightning_modules.objective_module import ObjectiveModule
from lightning_modules.run_folder import lock_run_folder
from lightning_modules.tally import Tally
from lightning_modules.validation import require_at_least

_SAMPLES = 5
HELD_OUT = "val/"  # prefix of the names of held-out metrics


class RunReport(Callback):
    """Writes the results of a run to the run folder, `Trainer(default_root_dir=...)`.

    A row is appended to `metrics.csv` after each optimizer step. The folder `model`, which `from_pretrained` loads,
    `samples.md`, `reward.png` and `summary.json` are written at the end of training; a resume of a run that has ended
    writes those that are missing.

    Held-out prompts are evaluated before training, on schedule, and after training. `val_check_interval` and
    `check_val_every_n_epoch` of the trainer schedule further evaluations. Each is made before the checkpoint of the
    same step: a run killed between the two would resume without the evaluation. Callbacks of Lightning act on it.

    The folder is locked while the process lives, so that no second process writes to it.

    Args:
        evaluate_every_n_steps: Number of optimizer steps between evaluations of the held-out prompts; with 0 there is
            no such schedule.
        evaluate_before_training: Whether to evaluate the held-out prompts before the first optimizer step.
        evaluate_after_training: Whether to evaluate them after the last one.

    Raises:
        ValueError: the number is negative, or another process has locked the folder; in training, if a callback
            monitors a metric that is not measured.
    """

    def __init__(
        self,
        evaluate_every_n_steps: int = 50,
        evaluate_before_training: bool = True,
        evaluate_after_training: bool = True,
    ) -> None:
        require_at_least(0, evaluate_every_n_steps=evaluate_every_n_steps)
        self.evaluate_every_n_steps = evaluate_every_n_steps
        self.evaluate_before_training = evaluate_before_training
        self.evaluate_after_training = evaluate_after_training
        self._before: dict[str, float] | None = None
        self._samples_before: list[Sample] = []
        self._measured: dict[str, float] = {}  # by the last evaluation
        self._measured_at = -1  # optimizer step of the last evaluation
        self._samples: list[Sample] = []  # of the last evaluation
        self._tokens = 0.0
        self._seconds = 0.0
        self._step_started = 0.0
        self._metrics: MetricsFile | None = None  # on rank 0 only
        self._columns: list[str] = []  # of `metrics.csv` at the checkpoint
        self._last_step = 0

    @override
    def setup(self, trainer: Trainer, pl_module: LightningModule, stage: str) -> None:
        """Lock the run folder for the life of this process."""
        if stage == "fit" and trainer.is_global_zero:
            lock_run_folder(_folder(trainer))

    @override
    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Try the export of the model, which comes after the training."""
        cast(ObjectiveModule, pl_module).try_export(_folder(trainer))

    @override
    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Evaluate the policy before its first update, unless the run is resumed, and open `metrics.csv`.

        `on_fit_start` would be too early: some strategies restore a checkpoint only after it.
        """
        if self._before is None:
            if self.evaluate_before_training:
                self._evaluate(trainer)
            self._before, self._samples_before = self._measured, self._samples
        self._last_step = trainer.global_step
        self._step_started = time.perf_counter()
        if trainer.is_global_zero and not _writes_nothing(trainer):
            forget_results(_folder(trainer))
            new_run = trainer.global_step == 0
            keep_until = -1 if new_run else trainer.global_step
            self._metrics = MetricsFile(_folder(trainer) / "metrics.csv", keep_until, self._columns)
            if new_run and self._before:
                self._metrics.append(0, _named(self._before))

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Append the row of an optimizer step to `metrics.csv`, with the held-out metrics if they are due."""
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        if batch_idx < trainer.accumulate_grad_batches:  # the first step of a rollout
            self._tokens += current_rollout_metrics(trainer).get("num_tokens", 0.0)
        now = time.perf_counter()
        seconds, self._step_started = now - self._step_started, now
        self._seconds += seconds
        logged = {name: value for name, value in trainer.callback_metrics.items() if not name.startswith(HELD_OUT)}
        metrics = dict(Tally.of(**{name: torch.as_tensor(value) for name, value in logged.items()}).sums)
        scheduled = self.evaluate_every_n_steps and trainer.global_step % self.evaluate_every_n_steps == 0
        if take_over_validation(trainer) or scheduled:
            self._evaluate(trainer)
            metrics |= _named(self._measured)
            self._step_started = time.perf_counter()
        require_monitored(trainer, self._to_come(trainer))
        if self._metrics is not None:
            self._metrics.append(trainer.global_step, {**metrics, "time/step": seconds})

    @override
    def on_validation_batch_end(
        self,
        trainer: Trainer,
        pl_module: LightningModule,
        outputs: Any,
        batch: Any,
        batch_idx: int,
        dataloader_idx: int = 0,
    ) -> None:
        """Keep some completions of the first evaluation."""
        if isinstance(batch, Evaluation) and dataloader_idx == batch_idx == 0:
            self._samples = samples_of(batch, _SAMPLES)

    @override
    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Write the results that are missing, unless the run has stopped at its time limit or has made no step.

        The last checkpoint is written by now: a run that fails or is killed here can be resumed, and owes only these.
        """
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's connector
        if any(isinstance(callback, RunCheckpoint) and callback.out_of_time for callback in callbacks):
            return
        if not trainer.global_step or _writes_nothing(trainer):
            return
        folder = _folder(trainer)
        results = RunResults(folder, trainer)
        if results.owed:
            pl_module.to(trainer.strategy.root_device)  # Lightning has moved it to the CPU
            self._write(results, trainer, cast(ObjectiveModule, pl_module))
            results.require_all()
        elif trainer.is_global_zero:
            print(f"nothing to do: the run in {folder} is complete at step {trainer.global_step}, with all its results")

    def _write(self, results: RunResults, trainer: Trainer, module: ObjectiveModule) -> None:
        """Write the results that are owed, the model first: it is what a failure of the others must not cost."""
        results.write("model", module.policy.save_pretrained)
        if not {"samples.md", "summary.json"}.isdisjoint(results.owed):
            with results.attempt("samples.md", "summary.json"):
                self._evaluate_trained(trainer)
        if not trainer.is_global_zero:
            return
        from lightning_modules.callbacks.plots import plot_run  # loads matplotlib, which nothing else here needs

        evaluated = self._measured_at == trainer.global_step
        after, samples = (self._measured, self._samples) if evaluated else ({}, [])
        results.write("samples.md", partial(write_samples, {"before": self._samples_before, "after": samples}))
        results.write("reward.png", partial(plot_run, _folder(trainer) / "metrics.csv"))
        before, speed = self._before or {}, self._tokens / self._seconds if self._seconds else 0.0
        summary = {"before": before, "after": after, "steps": trainer.global_step, "tokens_per_second": speed}
        results.write("summary.json", partial(_write_json, summary))
        print_table({"before": before, "after": after})
        print(f"{trainer.global_step} updates, {speed:,.0f} completion tokens per second")
        print(f"run folder: {_folder(trainer)}")

    def _evaluate_trained(self, trainer: Trainer) -> None:
        """Evaluate the trained policy, unless that was done after its last step, and amend the row of that step."""
        if not self.evaluate_after_training or self._measured_at == trainer.global_step:
            return
        self._evaluate(trainer)
        if trainer.is_global_zero and self._measured:
            # A run that is resumed after its last step has not opened the file.
            path = _folder(trainer) / "metrics.csv"
            metrics = self._metrics or MetricsFile(path, trainer.global_step, self._columns)
            metrics.amend(trainer.global_step, _named(self._measured))

    def _evaluate(self, trainer: Trainer) -> None:
        self._samples = []
        self._measured, self._measured_at = evaluate(trainer), trainer.global_step

    def _to_come(self, trainer: Trainer) -> str | None:
        """Return the prefix of the held-out metrics if none has been measured, but some will be."""
        data = trainer.datamodule  # type: ignore[attr-defined]
        will_be = self.evaluate_every_n_steps or self.evaluate_after_training
        has_prompts = getattr(data, "validation", None) is not None and trainer.limit_val_batches
        return HELD_OUT if will_be and has_prompts and self._measured_at < 0 else None

    @override
    def state_dict(self) -> dict[str, Any]:
        """Return the metrics and samples from before the training, and the totals behind the throughput."""
        return {
            "before": self._before,
            "samples_before": self._samples_before,
            "tokens": self._tokens,
            "seconds": self._seconds,
            "columns": self._columns if self._metrics is None else self._metrics.columns,
        }

    @override
    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Restore what `state_dict` returned."""
        self._before = state_dict["before"]
        self._samples_before = state_dict["samples_before"]
        self._tokens = state_dict["tokens"]
        self._seconds = state_dict["seconds"]
        self._columns = state_dict.get("columns", [])  # checkpoints of 0.1.0 have none


@rank_zero_only
def print_table(columns: dict[str, dict[str, float]]) -> None:
    """Print a table of metrics, with one column per evaluation."""
    names = list(dict.fromkeys(name for metrics in columns.values() for name in metrics))
    if not names:
        print("no held-out prompts were evaluated; `data.validation` gives them, and `report` says when")
        return
    width = max(22, *(len(name) + 1 for name in names))
    print("\n" + " " * width + "".join(f"{title:>10}" for title in columns))
    for name in names:
        cells = "".join(f"{metrics[name]:>10.3f}" if name in metrics else " " * 10 for metrics in columns.values())
        print(f"{name:<{width}}{cells}")


def _named(metrics: dict[str, float]) -> dict[str, float]:
    return {f"{HELD_OUT}{name}": value for name, value in metrics.items()}


def _writes_nothing(trainer: Trainer) -> bool:
    """Whether the run is a trial, `fast_dev_run`, of which Lightning keeps neither logs nor checkpoints."""
    return bool(trainer.fast_dev_run)  # type: ignore[attr-defined]  # set by Lightning's `_init_debugging_flags`


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir)


def _write_json(values: dict[str, Any], path: Path) -> None:
    path.write_text(json.dumps(values, indent=2) + "\n", encoding="utf-8")
