"""Trains, stops in the middle of a rollout and resumes, according to a plan; a program, started by the tests.

Completions depend on their prompt alone, so rollouts are the same for any number of ranks. Everything is computed in
float64.
"""

import argparse
import json
import random
import sys
from pathlib import Path

import numpy as np
import torch
from lightning import Callback, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from safetensors.torch import save_file

from aggregate_po import TokenCorrection
from aggregate_po.advantages import GroupNormalized, WhitenedReturns
from aggregate_po.recipes import dapo, tpo
from lightning_modules import AtomicCheckpointIO, LoRA, PolicyModule, RolloutDataModule, RunCheckpoint
from lightning_modules.distributed import data_parallel_rank, rank
from lightning_modules.model import policy as policy_file
from lightning_modules.model.sharding import full_tensor
from tests.distributed import fixed_rollouts
from tests.distributed.shared_rollouts import LONGEST, PromptedEngine, text_reward

SIZES = {"data_parallel_size": 2, "tensor_parallel_size": 1, "timeout": fixed_rollouts.TIMEOUT}
STRATEGIES = {
    **fixed_rollouts.STRATEGIES,
    "sharded, one file": lambda: ModelParallelStrategy(**SIZES, save_distributed_checkpoint=False),
    "sharded over one": lambda: ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=1),
}
RANKS = {**fixed_rollouts.RANKS, "sharded over one": 1}
UPDATES_PER_ROLLOUT, STOP, STEPS = 4, 3, 6


def reward_on_leader(completion, example):
    """Return the text reward; only rank 0 of a tensor-parallel group may call it."""
    assert rank() % 2 == 0
    return text_reward(completion, example)


class EngineOnLeader(PromptedEngine):
    """An out-of-process engine, which only rank 0 of a tensor-parallel group may call."""

    concurrent = True

    def generate(self, prompts, sampling):
        assert rank() % 2 == 0
        return super().generate(prompts, sampling)


class Stopped(Exception):
    """Stops the run."""


class Record(Callback):
    """Records the rows of each step, and random numbers of the global generators, which differ between ranks."""

    def __init__(self, stop):
        self.stop, self.rows, self.random_numbers = stop, {}, {}

    def on_train_start(self, trainer, pl_module):
        if trainer.global_step == 0:
            for seed in (torch.manual_seed, random.seed, np.random.seed):
                seed(100 + rank())

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        if self.stop and trainer.global_step == STOP:
            raise Stopped
        rows = self.rows.setdefault(trainer.global_step, [])
        for row in batch.policy.response_mask.any(dim=-1).nonzero().flatten().tolist():
            prompt = batch.prompt_of[row]
            rows.append(
                [
                    batch.prompt_ids[prompt][batch.prompt_mask[prompt]].tolist(),
                    batch.completion_ids[row][batch.completion_mask[row]].tolist(),
                ]
            )

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        if batch.closes_update:
            numbers = torch.rand(()).item(), random.random(), np.random.rand()  # noqa: NPY002
            self.random_numbers[trainer.global_step] = numbers


def train(model, folder, strategy, accumulate=1, stop=False, resume=None, adapters=False, compared=False):
    """Train into `folder`, from the checkpoint in the folder `resume` if there is one; `compared` compares groups."""
    lora = LoRA(4) if adapters else None
    objective, advantages = (tpo(), GroupNormalized()) if compared else (dapo(), WhitenedReturns(discount=0.8))
    # The engine and the reward of a tensor-parallel group are others by name, which a resume would refuse.
    module = PolicyModule(model, objective, learning_rate=1e-3, warmup_steps=4, lora=lora, resume_with_changes=True)
    data = RolloutDataModule(
        [{"prompt": f"{number} + {number}"} for number in range(16)],
        reward_on_leader if strategy in fixed_rollouts.TENSOR_PARALLEL else text_reward,
        rollouts=EngineOnLeader() if strategy in fixed_rollouts.TENSOR_PARALLEL else PromptedEngine(),
        group_size=3,
        prompts_per_rollout=8,
        updates_per_rollout=UPDATES_PER_ROLLOUT,
        max_completion_length=LONGEST,
        old_log_probs="trainer",
        correction=None if compared else TokenCorrection(),
        advantages=advantages,
        truncated="mask",
        kl_in_reward=0.1,
        seed=5,
    )
    # In this order the stop comes after the checkpoint of its step.
    record, checkpoint = Record(stop), RunCheckpoint(str(folder / "checkpoints"), every_n_train_steps=STOP)
    trainer = Trainer(
        accelerator="cpu",
        devices=RANKS.get(strategy, 2),
        strategy=STRATEGIES[strategy](),
        accumulate_grad_batches=accumulate,
        max_steps=STEPS,
        max_epochs=-1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[record, checkpoint],
        plugins=[AtomicCheckpointIO()],
    )
    try:
        trainer.fit(module, data, ckpt_path=resume and resume / "checkpoints" / "last.ckpt")
    except Stopped:
        return
    folder.mkdir(exist_ok=True)
    parameters = {name: full_tensor(value.detach()).clone() for name, value in module.model.named_parameters()}
    save_file(parameters, folder / f"{rank()}.safetensors")
    notes = {"shard": data_parallel_rank(trainer), "rows": record.rows, "random_numbers": record.random_numbers}
    (folder / f"{rank()}.json").write_text(json.dumps(notes))


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("plan", type=json.loads)
    arguments = parser.parse_args()
    policy_file.AutoModelForCausalLM = fixed_rollouts.ExactModels
    for name, options in arguments.plan.items():
        resume = options.pop("resume", None)
        train(
            arguments.model,
            arguments.output / name,
            resume=None if resume is None else arguments.output / resume,
            **options,
        )


if __name__ == "__main__":
    sys.exit(main())
