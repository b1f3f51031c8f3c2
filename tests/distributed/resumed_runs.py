"""Trains, stops in the middle of a rollout and resumes, as a plan says; a program, started by the tests.

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
from aggregate_po.advantages import WhitenedReturns
from aggregate_po.recipes import dapo
from lightning_modules import AtomicCheckpointIO, LoRA, PolicyModule, RolloutDataModule, RunCheckpoint
from lightning_modules.distributed import data_parallel_rank, rank
from lightning_modules.model import policy as policy_file
from lightning_modules.model.sharding import whole
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


def reward_of_first_partner(completion, example):
    """Of each two ranks that divide tensors among them, the first one is to ask."""
    assert rank() % 2 == 0
    return text_reward(completion, example)


class EngineOfFirstPartner(PromptedEngine):
    """An engine in another process, which of each such two ranks the first one is to ask."""

    concurrent = True

    def generate(self, prompts, sampling):
        assert rank() % 2 == 0
        return super().generate(prompts, sampling)


class Stopped(Exception):
    """The run has been told to stop."""


class Record(Callback):
    """What each step trained on, and draws from the global generators, which differ between ranks; may stop the run."""

    def __init__(self, stop):
        self.stop, self.rows, self.draws = stop, {}, {}

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
            drawn = torch.rand(()).item(), random.random(), np.random.rand()  # noqa: NPY002
            self.draws[trainer.global_step] = drawn


def train(model, folder, strategy, accumulate=1, stop=False, resume=None, adapters=False):
    """One run, into `folder`; from the checkpoint of the run in the folder `resume`."""
    lora = LoRA(4) if adapters else None
    module = PolicyModule(model, dapo(), learning_rate=1e-3, warmup_steps=4, lora=lora)
    data = RolloutDataModule(
        [{"prompt": f"{number} + {number}"} for number in range(16)],
        reward_of_first_partner if strategy in fixed_rollouts.DIVIDED else text_reward,
        rollouts=EngineOfFirstPartner() if strategy in fixed_rollouts.DIVIDED else PromptedEngine(),
        group_size=3,
        prompts_per_rollout=8,
        updates_per_rollout=UPDATES_PER_ROLLOUT,
        max_completion_length=LONGEST,
        old_log_probs="trainer",
        correction=TokenCorrection(),
        advantages=WhitenedReturns(discount=0.8),
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
    parameters = {name: whole(value.detach()).clone() for name, value in module.model.named_parameters()}
    save_file(parameters, folder / f"{rank()}.safetensors")
    notes = {"share": data_parallel_rank(trainer), "rows": record.rows, "draws": record.draws}
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
