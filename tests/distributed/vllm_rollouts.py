"""Trains with a vLLM engine on each rank; a program, started by the tests.

Each rank writes how far its ratios were from one before each update, and what it drew.
"""

import argparse
import json
import sys
from pathlib import Path

import torch
from lightning import Callback, Trainer
from lightning.pytorch.strategies import ModelParallelStrategy
from torch.distributed.tensor import DTensor

from aggregate_po.recipes import gmpo
from lightning_modules import PolicyModule, RolloutDataModule
from lightning_modules.addition import AdditionProblems
from lightning_modules.rollouts import VLLM
from tests.lightning_modules.training import text_reward


class Record(Callback):
    """Records the largest deviation of a ratio from 1 at each update, and the first token of each completion."""

    def __init__(self):
        self.deviations, self.first_tokens = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        with torch.no_grad():
            log_ratio = pl_module.policy.log_probs(batch) - batch.policy.old_log_probs
        self.deviations.append((log_ratio.exp() - 1)[batch.policy.response_mask].abs().max().item())
        self.first_tokens.append(batch.completion_ids[:, 0].tolist())


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--strategy", choices=["ddp", "sharded"], default="ddp")
    parser.add_argument("--tensor-parallel-size", type=int, default=1)
    arguments = parser.parse_args()
    sharded = arguments.strategy == "sharded"
    record = Record()
    engine = VLLM(
        max_model_length=64,
        tensor_parallel_size=arguments.tensor_parallel_size,
        engine_options={"kv_cache_memory_bytes": 2**28},
    )
    data = RolloutDataModule(
        AdditionProblems(16),
        text_reward,
        rollouts=engine,
        group_size=4,
        prompts_per_rollout=4,
        max_completion_length=8,
        truncated="score",
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=2,
        strategy=ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1) if sharded else "ddp",
        max_steps=3,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=arguments.output,
        callbacks=[record],
    )
    policy = PolicyModule(arguments.model, gmpo(), learning_rate=1e-3, warmup_steps=0)
    trainer.fit(policy, data)
    written = {
        "deviations": record.deviations,
        "first_tokens": record.first_tokens,
        "sharded": all(isinstance(parameter, DTensor) for parameter in policy.model.parameters()),
        "group": torch.distributed.get_world_size(),
    }
    (arguments.output / f"{trainer.global_rank}.json").write_text(json.dumps(written))


if __name__ == "__main__":
    sys.exit(main())
