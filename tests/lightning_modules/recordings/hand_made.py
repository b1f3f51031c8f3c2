"""Recordings made by hand: log ratios and advantages that a test states."""

import pytest
import torch

pytest.importorskip("pyarrow")

from aggregate_po import PolicyBatch, StepTotals
from lightning_modules.batch import RolloutBatch
from lightning_modules.recordings.steps import RecordedBatch, RecordedStep, detached
from lightning_modules.recordings.writer import RecordingWriter


def policy_batch(log_ratios, advantages, totals=None, **fields):
    """A batch of completions of different lengths, whose tokens had the probability one half."""
    width = max(map(len, log_ratios))
    mask = torch.tensor([[t < len(row) for t in range(width)] for row in log_ratios])
    old = torch.full(mask.shape, 0.5, dtype=torch.double).log()
    groups = fields.pop("groups", torch.zeros(len(mask), dtype=torch.long))
    advantages = torch.tensor(advantages, dtype=torch.double)
    return PolicyBatch(old, mask, advantages, totals, groups=groups, **fields)


def recorded_batch(objective, log_ratios, advantages, totals=None, **fields):
    """A micro-batch with what the objective computes from it."""
    policy = policy_batch(log_ratios, advantages, totals, **fields)
    width = policy.response_mask.shape[1]
    drift = torch.tensor([[*row, *[0.0] * (width - len(row))] for row in log_ratios], dtype=torch.double)
    log_probs = policy.old_log_probs + drift
    count = len(log_ratios)
    batch = RolloutBatch(
        prompt_ids=torch.tensor([[5]]),
        prompt_mask=torch.ones(1, 1, dtype=torch.bool),
        prompt_of=torch.zeros(count, dtype=torch.long),
        completion_ids=policy.response_mask.long(),
        completion_mask=policy.response_mask,
        policy=policy,
        samples=torch.arange(count),
        rewards=policy.advantages if policy.advantages.ndim == 1 else policy.advantages[:, 0],
    )
    evaluated = detached(objective.evaluate(log_probs, policy))
    return RecordedBatch(batch, log_probs, torch.zeros_like(log_probs), policy.old_log_probs, evaluated)


def recorded_step(objective, *batches, step=1, rollout=1, update=1, **fields):
    """A step of micro-batches, each given as log ratios and advantages, with the totals of all of them."""
    lengths = [len(row) for log_ratios, _ in batches for row in log_ratios]
    counts = {"completions": float(len(lengths)), "tokens": float(sum(lengths))}
    totals = StepTotals(**counts, progress=0.0, reward_mean=0.5, reward_std=0.5)
    parts = [recorded_batch(objective, *batch, totals, **fields) for batch in batches]
    for number, part in enumerate(parts, start=1):
        part.batch.closes_update = number == len(parts)
    return RecordedStep(step, rollout, update, parts)


def write(folder, objective, *steps, every_completion=True, model_step=None):
    """A recording of steps in a folder, without a model."""
    folder.mkdir()
    writer = RecordingWriter(folder)
    for step in steps:
        writer.add(step)
    rows = [{"rollout": 1, "completion": "a"}]
    about = {"model": "none", "layout": "none", "attn_implementation": None, "precision": "64-true", "device": "cpu"}
    about |= {"every_completion": every_completion, "model_step": model_step}
    writer.finish(rows, rows, "model: {}\n", objective=repr(objective), **about)
    return folder
