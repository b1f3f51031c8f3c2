"""Trains with dynamic sampling, evaluates held-out prompts, and may stop between two rounds; started by the tests."""

import argparse
import json
import sys
import zlib
from pathlib import Path

import torch
from lightning import Callback, Trainer
from safetensors.torch import save_file

from aggregate_po.recipes import grpo
from lightning_modules import (
    AtomicCheckpointIO,
    CompletionsFile,
    PolicyModule,
    RolloutDataModule,
    RunCheckpoint,
    TokenWeightsFile,
)
from lightning_modules.data.schemes import DynamicSampling
from lightning_modules.distributed import rank
from tests.distributed.shared_rollouts import LONGEST, PromptedEngine

PROMPTS, PER_RANK, STEPS, SEED = 64, 2, 6, 5


def is_live(prompt: str) -> bool:
    """Whether the completions of a prompt differ in their reward."""
    return int(prompt.split()[0]) % 5 in (0, 3)


def reward_of_live_prompts(completion, example):
    """Return a number that depends on the completion for some prompts only."""
    return zlib.crc32((example["prompt"] + completion).encode()) / 2**32 if is_live(example["prompt"]) else 0.5


class Stopped(Exception):
    """Stands for the end of the process."""


class StoppingEngine(PromptedEngine):
    """Stops at a call, and notes the prompts of each."""

    def __init__(self, stop_at=None):
        self.stop_at, self.prompts = stop_at, []

    def generate(self, prompts, sampling):
        if len(self.prompts) == self.stop_at:
            raise Stopped
        self.prompts.append([list(prompt) for prompt in prompts])
        return super().generate(prompts, sampling)


class Trained(Callback):
    """Records the prompts of each update, and the metrics of its rollout."""

    def __init__(self):
        self.prompts, self.metrics = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        decode = pl_module.policy.tokenizer.decode
        rows = [decode(ids[mask]) for ids, mask in zip(batch.prompt_ids, batch.prompt_mask, strict=True)]
        self.prompts.append([rows[prompt] for prompt in batch.prompt_of.unique().tolist()])
        metrics = trainer.train_dataloader.metrics
        self.metrics.append({name: value for name, value in metrics.items() if name.startswith("groups/")})


def train(model, folder, devices, stop_at=None, resume=False):
    """Train into a folder, or resume from its checkpoint."""
    module = PolicyModule(model, grpo(), learning_rate=1e-3, warmup_steps=0)
    engine, trained = StoppingEngine(stop_at), Trained()
    data = RolloutDataModule(
        [{"prompt": f"{number} + {number}"} for number in range(PROMPTS)],
        reward_of_live_prompts,
        validation=[{"prompt": f"{number} + 1"} for number in range(5)],
        rollouts=engine,
        group_size=3,
        prompts_per_rollout=PER_RANK * devices,
        max_completion_length=LONGEST,
        truncated="score",
        schemes=[DynamicSampling()],
        seed=SEED,
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_steps=STEPS,
        max_epochs=-1,
        num_sanity_val_steps=0,
        check_val_every_n_epoch=STEPS + 1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[
            trained,
            RunCheckpoint(str(folder / "checkpoints"), every_n_train_steps=1),
            CompletionsFile(show_every_n_rollouts=0),
            TokenWeightsFile(),
        ],
        plugins=[AtomicCheckpointIO()],
    )
    last = folder / "checkpoints" / "last.ckpt"
    try:
        trainer.fit(module, data, ckpt_path=last if resume else None)
    except Stopped:
        return
    trainer.validate(module, data, verbose=False)
    held_out = module.held_out_metrics
    notes = {
        "sampled": engine.prompts,
        "trained": trained.prompts,
        "metrics": trained.metrics,
        "held_out": held_out,
    }
    (folder / f"{rank()}.json").write_text(json.dumps(notes))
    if rank() == 0:
        parameters = {name: value.detach().clone() for name, value in module.model.named_parameters()}
        save_file(parameters, folder / "parameters.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--stop_at", type=int, nargs="*", default=[])
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    train(arguments.model, arguments.output / "undisturbed", arguments.devices)
    for call in arguments.stop_at:
        folder = arguments.output / f"stopped_{call}"
        train(arguments.model, folder, arguments.devices, stop_at=call)
        train(arguments.model, folder, arguments.devices, resume=True)


if __name__ == "__main__":
    sys.exit(main())
