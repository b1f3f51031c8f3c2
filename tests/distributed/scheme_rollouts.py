"""Trains with sampling schemes on any number of ranks, undisturbed and stopped once; started by the tests."""

import argparse
import json
import sys
from pathlib import Path

import torch
from lightning import Callback, Trainer
from safetensors.torch import save_file

from aggregate_po import PositionWeights, TokenWeighting, TopEntropy
from aggregate_po.recipes import grpo
from lightning_modules import (
    AtomicCheckpointIO,
    Curriculum,
    DraftRefinement,
    DynamicPruning,
    PolicyModule,
    Replay,
    RolloutDataModule,
    RunCheckpoint,
)
from lightning_modules.distributed import rank
from tests.distributed.dynamic_rollouts import Stopped, StoppingEngine, reward_of_live_prompts
from tests.distributed.shared_rollouts import LONGEST

PROMPTS, PER_RANK, STEPS, SEED = 12, 4, 6, 5


def stacked():
    """All schemes around each other, which takes one run for all of them."""
    return [
        Curriculum(low=0.3, high=0.8, exploration=0.5),
        DynamicPruning(prompt_rate=0.6, prompt_threshold=1.5),
        DraftRefinement(drafts=2, template="{question} {draft}"),
        Replay(max_age=3),
    ]


class LateAndUncertain(TokenWeighting):
    """Weights by position on the tokens of highest entropy."""

    needs_entropies = True

    def __call__(self, response_mask, entropies):
        kept = TopEntropy(0.8)(response_mask, entropies)
        return PositionWeights(power=1.0)(kept, None)


class Noted(Callback):
    """Records the metrics of each step, and how many completions of it are trained on here."""

    def __init__(self):
        self.metrics, self.trained = [], []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        metrics = trainer.train_dataloader.metrics
        self.metrics.append({name: value for name, value in metrics.items() if not name.startswith("time/")})
        self.trained.append([len(batch.completion_ids), batch.policy.totals.completions, batch.policy.totals.tokens])


def train(model, folder, devices, stop_at=None, resume=False):
    """Train into a folder, or resume from its checkpoint."""
    module, noted = PolicyModule(model, grpo(), learning_rate=1e-3, warmup_steps=0), Noted()
    engine = StoppingEngine(stop_at)
    data = RolloutDataModule(
        [{"prompt": f"{number} + {number}"} for number in range(PROMPTS)],
        reward_of_live_prompts,
        rollouts=engine,
        group_size=3,
        prompts_per_rollout=PER_RANK * devices,
        max_completion_length=LONGEST,
        truncated="score",
        schemes=stacked(),
        old_log_probs="trainer",
        token_weights=LateAndUncertain(),
        seed=SEED,
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=devices,
        strategy="ddp" if devices > 1 else "auto",
        max_steps=STEPS,
        max_epochs=-1,
        logger=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        default_root_dir=folder,
        callbacks=[noted, RunCheckpoint(str(folder / "checkpoints"), every_n_train_steps=1)],
        plugins=[AtomicCheckpointIO()],
    )
    last = folder / "checkpoints" / "last.ckpt"
    try:
        trainer.fit(module, data, ckpt_path=last if resume else None)
    except Stopped:
        return
    notes = {"sampled": engine.prompts, "metrics": noted.metrics, "trained": noted.trained}
    (folder / f"{rank()}.json").write_text(json.dumps(notes))
    if rank() == 0:
        parameters = {name: value.detach().clone() for name, value in module.model.named_parameters()}
        save_file(parameters, folder / "parameters.safetensors")


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--stop_at", type=int, required=True)
    arguments = parser.parse_args()
    torch.use_deterministic_algorithms(True)
    folder = arguments.output
    train(arguments.model, folder / "undisturbed", arguments.devices)
    train(arguments.model, folder / "stopped", arguments.devices, stop_at=arguments.stop_at)
    train(arguments.model, folder / "stopped", arguments.devices, resume=True)


if __name__ == "__main__":
    sys.exit(main())
