"""Trains a model on rollouts that are the same however the work is cut; a program, started by the tests.

Completions have unequal lengths, some rows have no trained token, and with two ranks the second one's rows of one
update are all without.
"""

import argparse
import sys
from pathlib import Path

import torch
from lightning import LightningDataModule, Trainer
from safetensors.torch import save_file

from aggregate_po import PolicyBatch, StepTotals, recipes
from lightning_modules import LoRA, PolicyModule
from lightning_modules.rollout_batch import RolloutBatch, left_padded
from lightning_modules.rollout_loader import RolloutLoader

ROWS, TIME, UPDATES = 12, 9, 3


def whole_update(number: int) -> RolloutBatch:
    """All completions of one optimiser step."""
    generator = torch.Generator().manual_seed(number)
    prompts = [torch.randint(5, 200, (length,), generator=generator).tolist() for length in (3, 5, 4, 6)]
    prompt_ids, prompt_mask = left_padded(prompts)
    lengths = torch.randint(1, TIME + 1, (ROWS,), generator=generator)
    mask = torch.arange(TIME) < lengths.unsqueeze(-1)
    response_mask = mask.clone()
    response_mask[3] = False
    if number == 1:
        response_mask[ROWS // 2 :] = False
    return RolloutBatch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        prompt_of=torch.arange(4).repeat_interleave(ROWS // 4),
        completion_ids=torch.randint(5, 200, (ROWS, TIME), generator=generator) * mask,
        completion_mask=mask,
        policy=PolicyBatch(
            old_log_probs=-5.5 + 0.3 * torch.randn(ROWS, TIME, generator=generator, dtype=torch.double),
            response_mask=response_mask,
            advantages=torch.randn(ROWS, generator=generator, dtype=torch.double),
            totals=StepTotals.of(response_mask),
        ),
    )


class FixedRollouts(LightningDataModule):
    """Each rank's share of the same rollouts."""

    def train_dataloader(self) -> RolloutLoader:
        """One optimiser step to a rollout."""
        return RolloutLoader(self._share, self.trainer.accumulate_grad_batches)

    def transfer_batch_to_device(self, batch: RolloutBatch, device: torch.device, dataloader_idx: int) -> RolloutBatch:
        """Stay on the CPU."""
        return batch

    def _share(self, number: int) -> list[RolloutBatch]:
        mine = torch.arange(ROWS).tensor_split(self.trainer.world_size)[self.trainer.global_rank]
        pieces = mine.tensor_split(self.trainer.accumulate_grad_batches)
        whole = whole_update(number)
        return [whole.select(rows).replace(closes_update=rows is pieces[-1]) for rows in pieces]


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--recipe", default="gmpo")
    parser.add_argument("--devices", type=int, default=1)
    parser.add_argument("--accumulate", type=int, default=1)
    parser.add_argument("--rank", type=int, default=0, help="of adapters; the weights are trained without")
    arguments = parser.parse_args()
    objective = getattr(recipes, arguments.recipe)(*([TIME] if arguments.recipe == "dr_grpo" else []))
    # Plain gradient descent: an adaptive optimiser would hide a gradient of the wrong scale.
    module = PolicyModule(
        arguments.model,
        objective,
        warmup_steps=0,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        lora=LoRA(arguments.rank) if arguments.rank else None,
    )
    trainer = Trainer(
        accelerator="cpu",
        devices=arguments.devices,
        strategy="ddp" if arguments.devices > 1 else "auto",
        precision="64-true",
        accumulate_grad_batches=arguments.accumulate,
        max_steps=UPDATES,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )
    trainer.fit(module, FixedRollouts())
    if trainer.is_global_zero:
        parameters = {name: value.detach().clone() for name, value in module.model.named_parameters()}
        save_file(parameters, arguments.output)


if __name__ == "__main__":
    sys.exit(main())
