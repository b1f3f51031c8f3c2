"""One run of the study: training without checkpoints, and its measures."""

from __future__ import annotations

import itertools
import math
import warnings
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

from lightning import Callback, LightningModule, Trainer, seed_everything
from typing_extensions import override

from experiments.study.design import MAX_COMPLETION_LENGTH, Job
from experiments.study.tasks import TASKS
from lightning_modules import PolicyModule, RolloutDataModule

GROUP_SIZE, PROMPTS_PER_ROLLOUT, WARMUP_STEPS = 8, 16, 5
RECENT = 5  # rollouts that the reward at the end is averaged over

Measures = dict[str, float | None]


@dataclass
class Curves(Callback):
    """Keeps the metrics of each optimizer step."""

    rows: list[dict[str, float]] = field(default_factory=list)

    @override
    def on_train_batch_end(
        self, trainer: Trainer, pl_module: LightningModule, outputs: Any, batch: Any, batch_idx: int
    ) -> None:
        self.rows.append({name: float(value) for name, value in trainer.callback_metrics.items()})


def train(job: Job, rollouts: int) -> tuple[Measures, list[Measures]]:
    """Run a job.

    Returns:
        The measures of the run, and the metrics of each rollout, see `by_rollout`.
    """
    warnings.filterwarnings("ignore", module="lightning")
    seed_everything(job.seed, verbose=False)
    task, curves = TASKS[job.task](), Curves()
    module = PolicyModule(task.model, job.variant.objective(), job.learning_rate, WARMUP_STEPS)
    module.policy.keep_reference()  # for the divergence from the start
    data = RolloutDataModule(
        task.problems,
        task.reward,
        validation=task.held_out,
        group_size=GROUP_SIZE,
        prompts_per_rollout=PROMPTS_PER_ROLLOUT,
        updates_per_rollout=job.updates,
        max_completion_length=MAX_COMPLETION_LENGTH,
        advantages=job.variant.advantages,
        seed=job.seed,
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=rollouts * job.updates,
        max_epochs=-1,
        gradient_clip_val=1.0,
        logger=False,
        limit_val_batches=1.0,
        check_val_every_n_epoch=1_000_000,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[curves],
    )
    try:
        trainer.fit(module, datamodule=data)
        trainer.validate(module, datamodule=data, verbose=False)
    except FloatingPointError:  # too many gradients in a row were not finite
        rows = by_rollout(curves.rows, job.updates)
        return {"sampled": None, "greedy": None, **measures(rows), "collapsed": 1.0}, rows
    rows = by_rollout(curves.rows, job.updates)
    held_out = {name: module.held_out_metrics[f"reward_{name}"] for name in ("sampled", "greedy")}
    return {**held_out, **measures(rows)}, rows


def by_rollout(steps: Sequence[dict[str, float]], updates: int) -> list[Measures]:
    """Return a row for each rollout: its reward, and the extremes and means of the metrics of its updates."""
    rows: list[Measures] = []
    for start in range(0, len(steps), updates):
        part = steps[start : start + updates]
        log_ratios = [math.log(step[name]) for step in part for name in ("ratio/min", "ratio/max") if step[name] > 0]
        widths = [_width(step["ratio/quantile_05"], step["ratio/quantile_95"]) for step in part]
        rows.append(
            {
                "rollout": start // updates,
                "reward": part[0]["reward"],
                "length": part[0]["completions/mean_length"],
                "entropy": _mean([step["entropy"] for step in part]),
                "kl": _mean([step["kl"] for step in part]),
                "log_ratio_min": min(log_ratios, default=None),
                "log_ratio_max": max(log_ratios, default=None),
                "log_ratio_90": _mean(widths),
                "clipped": _mean([step["clip_ratio/region_mean"] for step in part]),
                "ess_fraction": _mean([step["weights/ess_fraction"] for step in part]),
                "grad_norm": _mean([step["grad_norm"] for step in part]),
                "grad_norm_max": _largest([step["grad_norm"] for step in part]),
                "skipped_steps": part[-1]["skipped_steps"],
            }
        )
    return rows


def measures(rows: Sequence[Measures]) -> Measures:
    """Return the measures of a run from its rollouts, and whether it collapsed.

    A run has collapsed if the mean reward of its last rollouts is below half of the best mean of as many rollouts in
    a row, or not above that of the first rollout.
    """
    rewards = [row["reward"] or 0.0 for row in rows]
    recent = min(RECENT, len(rewards))
    means = [sum(rewards[end - recent : end]) / recent for end in range(recent, len(rewards) + 1)]
    final, best = means[-1], max(means)
    changes = [abs(after - before) for before, after in itertools.pairwise(rewards)]
    return {
        "reward_first": rewards[0],
        "reward_last": final,
        "reward_best": best,
        "reward_area": sum(rewards) / len(rewards),
        "reward_change": _mean(changes),
        "collapsed": float(final < best / 2 or final <= rewards[0]),
        "entropy_last": _mean(_recent(rows, "entropy")),
        "kl_last": _mean(_recent(rows, "kl")),
        "log_ratio_min": min((row["log_ratio_min"] for row in rows if row["log_ratio_min"] is not None), default=None),
        "log_ratio_max": max((row["log_ratio_max"] for row in rows if row["log_ratio_max"] is not None), default=None),
        "log_ratio_90": _mean([row["log_ratio_90"] for row in rows]),
        "clipped": _mean([row["clipped"] for row in rows]),
        "ess_fraction": _mean([row["ess_fraction"] for row in rows]),
        "grad_norm": _mean([row["grad_norm"] for row in rows]),
        "grad_norm_max": _largest([row["grad_norm_max"] for row in rows]),
        "skipped_steps": rows[-1]["skipped_steps"],
    }


def _recent(rows: Sequence[Measures], name: str) -> list[float | None]:
    return [row[name] for row in rows[-RECENT:]]


def _width(low: float, high: float) -> float | None:
    """Return the logarithm of a quotient, None where a ratio is too small for a number."""
    return math.log(high) - math.log(low) if low > 0 and high > 0 else None


def _largest(values: Sequence[float | None]) -> float | None:
    """Return the largest value that is known and no NaN, which would hide those before or after it."""
    return max((value for value in values if value is not None and not math.isnan(value)), default=None)


def _mean(values: Sequence[float | None]) -> float | None:
    """Return the mean of the values that are known and finite, None without any."""
    known = [value for value in values if value is not None and math.isfinite(value)]
    return sum(known) / len(known) if known else None
