"""What a run leaves behind: metrics, picture, samples, the exported model, and a short table at the end."""

from __future__ import annotations

import json
import time
from pathlib import Path
from typing import Any, cast

from lightning import Callback, LightningModule, Trainer
from lightning.pytorch.utilities import rank_zero_only

from lightning_modules.batch import current_rollout_metrics, evaluation_metrics
from lightning_modules.callbacks.checkpoints import RunCheckpoint
from lightning_modules.callbacks.metrics_file import MetricsFile
from lightning_modules.data.module import RolloutDataModule
from lightning_modules.policy_module import PolicyModule
from lightning_modules.tally import Tally

_SAMPLES = 5


class RunReport(Callback):
    """Writes the run folder, `Trainer(default_root_dir=...)`.

    `metrics.csv` grows with each optimiser step; `samples.md`, `reward.png`, `summary.json` and the folder `model`,
    which `from_pretrained` loads, are written when training is complete.

    Held-out prompts are measured here and not by Lightning's validation loop, because that one runs after the
    checkpoint of the same step: a run killed between the two would resume without the measurement.

    Args:
        evaluate_every_n_steps: optimiser steps between measurements of the held-out prompts; 0 for none in between.

    Raises:
        ValueError: the number is negative.
    """

    def __init__(self, evaluate_every_n_steps: int = 50) -> None:
        if evaluate_every_n_steps < 0:
            raise ValueError(f"`evaluate_every_n_steps` is {evaluate_every_n_steps}; pass 0 or more.")
        self.evaluate_every_n_steps = evaluate_every_n_steps
        self._before: dict[str, float] | None = None
        self._samples_before: list[list[str]] = []
        self._tokens = 0.0
        self._seconds = 0.0
        self._step_started = 0.0
        self._metrics: MetricsFile | None = None  # of the first rank
        self._trained = False
        self._last_step = 0

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure the policy before its first update, which a resumed run remembers, and begin `metrics.csv`.

        Not when the fit starts: some strategies restore a checkpoint only after that.
        """
        self._trained = True
        if self._before is None:
            self._before, self._samples_before = evaluate(trainer)
        self._last_step = trainer.global_step
        self._step_started = time.perf_counter()
        if trainer.is_global_zero:
            fresh = trainer.global_step == 0
            keep_until = -1 if fresh else trainer.global_step
            self._metrics = MetricsFile(_folder(trainer) / "metrics.csv", keep_until)
            if fresh and self._before:
                self._metrics.append(0, _held_out(self._before))
                _log_elsewhere(trainer, self._before)

    def on_train_batch_start(self, trainer: Trainer, pl_module: LightningModule, batch: Any, batch_idx: int) -> None:
        """Count the tokens of a rollout once, however many updates use them."""
        if batch_idx == 0:
            self._tokens += current_rollout_metrics(trainer).get("num_tokens", 0.0)

    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        """Add the row of an optimiser step."""
        if trainer.global_step == self._last_step:
            return
        self._last_step = trainer.global_step
        now = time.perf_counter()
        seconds, self._step_started = now - self._step_started, now
        self._seconds += seconds
        figures = {name: float(value) for name, value in trainer.callback_metrics.items()}
        if self.evaluate_every_n_steps and trainer.global_step % self.evaluate_every_n_steps == 0:
            measured, _ = evaluate(trainer)
            figures |= _held_out(measured)
            _log_elsewhere(trainer, measured)
            self._step_started = time.perf_counter()
        if self._metrics is not None:
            self._metrics.append(trainer.global_step, {**figures, "time/step": seconds})

    def on_fit_end(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Measure again, and write what is left to write; a run that is out of time will do so after its resume."""
        callbacks: list[Callback] = trainer.callbacks  # type: ignore[attr-defined]  # set by Lightning's connector
        if any(isinstance(callback, RunCheckpoint) and callback.out_of_time for callback in callbacks):
            return
        if not self._trained:  # no step was asked for
            return
        after, samples_after = evaluate(trainer)
        if not self.evaluate_every_n_steps or trainer.global_step % self.evaluate_every_n_steps:
            _log_elsewhere(trainer, after)
        folder = _folder(trainer)
        cast(PolicyModule, pl_module).policy.save_pretrained(folder / "model")
        if self._metrics is None:  # on the other ranks
            return
        from lightning_modules.callbacks.plots import draw_run  # loads matplotlib, which nothing else here needs

        draw_run(folder / "metrics.csv", folder / "reward.png")
        before = self._before or {}
        speed = self._tokens / self._seconds if self._seconds else 0.0
        summary = {"before": before, "after": after, "steps": trainer.global_step, "tokens_per_second": speed}
        (folder / "summary.json").write_text(json.dumps(summary, indent=2) + "\n", encoding="utf-8")
        _write_samples(folder / "samples.md", {"before": self._samples_before, "after": samples_after})
        print_table({"before": before, "after": after})
        print(f"{trainer.global_step} updates, {speed:,.0f} completion tokens per second\nrun folder: {folder}")

    def state_dict(self) -> dict[str, Any]:
        """What a resumed run could not find out again."""
        return {
            "before": self._before,
            "samples_before": self._samples_before,
            "tokens": self._tokens,
            "seconds": self._seconds,
        }

    def load_state_dict(self, state_dict: dict[str, Any]) -> None:
        """Take it back."""
        self._before = state_dict["before"]
        self._samples_before = state_dict["samples_before"]
        self._tokens = state_dict["tokens"]
        self._seconds = state_dict["seconds"]


def evaluate(trainer: Trainer) -> tuple[dict[str, float], list[list[str]]]:
    """Held-out figures of the policy as it is, and a few prompts with their sampled completions.

    Returns:
        `pass@1_...`, `mean_length_...` and, of several rewards, `rewards/NAME_...` for each way of drawing, and
        `[prompt, completion]` pairs; empty without held-out prompts.
    """
    data = trainer.datamodule  # type: ignore[attr-defined]
    counted = Tally()
    samples: list[list[str]] = []
    if not isinstance(data, RolloutDataModule):
        return {}, samples
    for loader in data.val_dataloader():
        for evaluation in loader:
            counted += evaluation.tally
            if evaluation.name == "sampled" and not samples:
                sampled = zip(evaluation.examples, evaluation.completions, strict=True)
                samples = [[example["prompt"], text] for example, text in list(sampled)[:_SAMPLES]]
    return evaluation_metrics(counted.over_ranks(trainer)) if counted.sums else {}, samples


@rank_zero_only
def print_table(columns: dict[str, dict[str, float]]) -> None:
    """Print figures by name, one column for each measurement."""
    names = list(dict.fromkeys(name for figures in columns.values() for name in figures))
    if not names:
        print("no held-out prompts were given (`data.validation`), so nothing was measured")
        return
    width = max(22, *(len(name) + 1 for name in names))
    print("\n" + " " * width + "".join(f"{title:>10}" for title in columns))
    for name in names:
        cells = "".join(f"{figures[name]:>10.3f}" if name in figures else " " * 10 for figures in columns.values())
        print(f"{name:<{width}}{cells}")


def _log_elsewhere(trainer: Trainer, figures: dict[str, float]) -> None:
    """Give held-out figures to the loggers that were asked for, which Lightning gives all others."""
    for logger in trainer.loggers:
        logger.log_metrics(_held_out(figures), trainer.global_step)


def _held_out(figures: dict[str, float]) -> dict[str, float]:
    return {f"val/{name}": value for name, value in figures.items()}


def _folder(trainer: Trainer) -> Path:
    return Path(trainer.default_root_dir)


def _write_samples(path: Path, samples: dict[str, list[list[str]]]) -> None:
    lines = ["# Sampled completions of held-out prompts", ""]
    for title, pairs in samples.items():
        lines += [f"## {title.capitalize()} training", ""]
        for prompt, completion in pairs:
            lines += [f"**{prompt}**", "", "```text", completion, "```", ""]
    path.write_text("\n".join(lines), encoding="utf-8")
