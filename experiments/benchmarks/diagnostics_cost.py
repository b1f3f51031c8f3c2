"""Time that `AggregationDiagnostics` and `TokenWeightsFile` add to an optimizer step.

Steps are those of `Trainer.fit` with the addition model, or another one, on completions of random tokens, with the row
of `metrics.csv`. Rollouts with and without the callback alternate in the same run, and their order changes from pair to
pair; the median of the ratios of the pairs is printed, and the time in the callback alone. A step is timed from its
first micro-batch to the end of its update, without sampling, in seconds of the processor with one thread, so that other
processes disturb it little.

    .venv/bin/python experiments/benchmarks/diagnostics_cost.py
"""

from __future__ import annotations

import argparse
import statistics
import tempfile
import time
import warnings
from contextlib import redirect_stdout
from io import StringIO
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer

from aggregate_po.recipes import gmpo, pmpo
from lightning_modules import (
    AggregationDiagnostics,
    MicroBatchObserver,
    PolicyModule,
    RolloutDataModule,
    RunReport,
    TokenWeightsFile,
)
from lightning_modules.addition import AdditionProblems, AdditionWarmStart
from lightning_modules.micro_batch_observers import EvaluatedMicroBatch
from lightning_modules.rollouts import Completions, RolloutEngine

OBJECTIVES = {"gmpo": gmpo, "pmpo": pmpo}
CALLBACKS = {"AggregationDiagnostics": AggregationDiagnostics, "TokenWeightsFile": lambda: TokenWeightsFile(1)}


class RandomEngine(RolloutEngine):
    """Returns random completions of one length; their log-probabilities are near those of a uniform distribution."""

    def load_policy(self, model: Any) -> None:
        """Ignore the policy."""

    def generate(self, prompts: Any, sampling: Any) -> Completions:
        """Return random tokens."""
        shape = len(prompts) * sampling.samples_per_prompt, sampling.max_completion_length
        return Completions(
            token_ids=torch.randint(5, 200, shape),
            mask=torch.ones(shape, dtype=torch.bool),
            log_probs=torch.full(shape, -9.0),
            finished=torch.ones(shape[0], dtype=torch.bool),
        )


class EveryOtherRollout(MicroBatchObserver):
    """Passes micro-batches on to a callback in every other rollout."""

    def __init__(self, observed: MicroBatchObserver) -> None:
        self.observed = observed
        self.seconds: list[float] = []  # in the callback, of each step

    def on_train_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Start the callback."""
        self.observed.on_train_start(trainer, pl_module)
        self.names = set(trainer.callback_metrics)

    def on_micro_batch(self, trainer: Trainer, micro_batch: EvaluatedMicroBatch) -> None:
        """Pass a micro-batch on, or forget the metrics of the callback."""
        before = set(trainer.callback_metrics)
        if is_observed(trainer.current_epoch):
            started = time.process_time()
            self.observed.on_micro_batch(trainer, micro_batch)
            self.seconds.append(time.process_time() - started)
            self.names = set(trainer.callback_metrics) - before | self.names
        else:
            for name in self.names:
                trainer.callback_metrics.pop(name, None)


def is_observed(rollout: int) -> bool:
    """Whether the callback sees a rollout: the first of a pair or the second, in turn."""
    return rollout % 4 in (1, 2)


class StepTimes(Callback):
    """Records the seconds of each step by rollout."""

    def __init__(self) -> None:
        self.seconds: dict[int, list[float]] = {}
        self.begins = True

    def on_train_batch_start(self, *arguments: Any) -> None:
        """Start the clock at the first micro-batch."""
        if self.begins:
            self.started = time.process_time()
        self.begins = False

    def on_train_batch_end(self, trainer: Any, module: Any, outputs: Any, batch: Any, number: int) -> None:
        """Stop the clock after the last one, when the callbacks before this one are done."""
        if batch.closes_update:
            self.seconds.setdefault(trainer.current_epoch, []).append(time.process_time() - self.started)
            self.begins = True


def step_seconds(callback: str, arguments: argparse.Namespace) -> tuple[dict[int, float], float]:
    """Return the mean seconds of the steps of each rollout, and the median of those in the callback itself."""
    data = RolloutDataModule(
        AdditionProblems(64),
        reward=lambda text, example: float(len(text) % 2),
        rollouts=RandomEngine(),
        group_size=8,
        prompts_per_rollout=arguments.prompts,
        updates_per_rollout=2,
        max_completion_length=arguments.length,
    )
    times, observer = StepTimes(), EveryOtherRollout(CALLBACKS[callback]())
    with tempfile.TemporaryDirectory() as folder:
        report = RunReport(0, evaluate_before_training=False, evaluate_after_training=False)
        trainer = Trainer(
            accelerator="cpu",
            devices=1,
            max_steps=4 * arguments.pairs,
            max_epochs=-1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            default_root_dir=folder,
            callbacks=[observer, report, times],
        )
        model = arguments.model or AdditionWarmStart()
        with redirect_stdout(StringIO()):  # of the report
            trainer.fit(PolicyModule(model, OBJECTIVES[arguments.objective]()), data)
        assert (Path(folder) / "metrics.csv").exists()
    means = {rollout: statistics.mean(seconds) for rollout, seconds in times.seconds.items()}
    return means, statistics.median(observer.seconds)


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--pairs", type=int, default=30)
    parser.add_argument("--model", help="name or folder of a model; the addition model if there is none")
    parser.add_argument("--objective", choices=OBJECTIVES, default="gmpo")
    parser.add_argument("--prompts", type=int, default=16)
    parser.add_argument("--length", type=int, default=40)
    arguments = parser.parse_args()
    warnings.filterwarnings("ignore")
    torch.set_num_threads(1)
    for callback in CALLBACKS:
        seconds, inside = step_seconds(callback, arguments)
        pairs = [sorted((one, one + 1), key=is_observed) for one in range(2, 2 * arguments.pairs - 1, 2)]
        ratios = sorted(seconds[observed] / seconds[alone] for alone, observed in pairs)
        without = statistics.median(seconds[alone] for alone, _ in pairs)
        low, high = ratios[len(ratios) // 4], ratios[-1 - len(ratios) // 4]
        print(
            f"{callback}: {statistics.median(ratios) - 1:+.1%} of a step of {1e3 * without:.0f} ms "
            f"(half of the pairs between {low - 1:+.1%} and {high - 1:+.1%}); "
            f"in the callback itself {1e3 * inside:.1f} ms, {inside / without:.1%}"
        )


if __name__ == "__main__":
    main()
