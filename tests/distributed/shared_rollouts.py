"""Trains on rollouts that do not depend on the number of ranks, once per rule; a program, started by the tests.

Completions depend on their prompt alone, where those of a real engine would differ with the number of ranks. With two
ranks the longest completion of one is shorter than that of the other.
"""

import argparse
import sys
import zlib
from pathlib import Path

import torch
from lightning import Trainer
from safetensors.torch import save_file
from torch.nn.utils.rnn import pad_sequence

from aggregate_po import AdvantageEstimator, PositionWeights, TopEntropy
from aggregate_po.advantages import (
    BatchScaled,
    ComponentNormalized,
    KalmanBaseline,
    OverlongShaping,
    WhitenedCentered,
    WhitenedReturns,
)
from aggregate_po.recipes import dapo
from lightning_modules import PolicyModule, RolloutDataModule
from lightning_modules.rewards import Verdict
from lightning_modules.rollouts import Completions, RolloutEngine

LONGEST, UPDATES = 9, 4
ESTIMATORS: dict[str, AdvantageEstimator] = {
    "BatchScaled": BatchScaled(),
    "WhitenedCentered": WhitenedCentered(),
    "WhitenedReturns per token": WhitenedReturns(discount=0.8),
    "ComponentNormalized": OverlongShaping(ComponentNormalized(), LONGEST, 4),
    "KalmanBaseline shuffled": KalmanBaseline("shuffled"),
    "BatchScaled, failed verdicts": BatchScaled(),
    "BatchScaled, TopEntropy": BatchScaled(),
    "BatchScaled, PositionWeights": BatchScaled(),
}
WEIGHTINGS = {"TopEntropy": TopEntropy(0.4), "PositionWeights": PositionWeights(power=1.0, base=0.8)}


class PromptedEngine(RolloutEngine):
    """Generates completions that are a function of the prompt and of their index in the group."""

    def load_policy(self, model):
        """Ignore the policy."""

    def generate(self, prompts, sampling):
        rows, log_probs = [], []
        for prompt in prompts:
            for number in range(sampling.samples_per_prompt):
                generator = torch.Generator().manual_seed(zlib.crc32(repr((prompt, number)).encode()))
                longest = 2 + zlib.crc32(repr(prompt).encode()) % (LONGEST - 1)
                length = int(torch.randint(1, longest + 1, (1,), generator=generator))
                rows.append(torch.randint(5, 200, (length,), generator=generator))
                log_probs.append(-5.5 + 0.3 * torch.randn(length, generator=generator, dtype=torch.double))
        lengths = torch.tensor([len(row) for row in rows])
        mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(-1)
        return Completions(
            token_ids=pad_sequence(rows, batch_first=True),
            mask=mask,
            log_probs=pad_sequence(log_probs, batch_first=True),
            finished=lengths < LONGEST,
        )


def text_reward(completion, example):
    """Return a number from 0 to 1 that depends on every character."""
    return zlib.crc32((example["prompt"] + completion).encode()) % 5 / 4


def failing_reward(completion, example):
    """Return the same, and a failed verdict for one completion in four."""
    failed = zlib.crc32(completion.encode()) % 4 == 0
    return Verdict(None, "time") if failed else text_reward(completion, example)


def length_reward(completion, example):
    """Return a number on another scale."""
    return float(len(completion) % 7)


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("--devices", type=int, default=1)
    arguments = parser.parse_args()
    for name, estimator in ESTIMATORS.items():
        module = PolicyModule(
            arguments.model, dapo(), warmup_steps=0, optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1)
        )
        data = RolloutDataModule(
            [{"prompt": f"{number} + {number}"} for number in range(8)],
            [failing_reward if "failed" in name else text_reward, length_reward],
            reward_weights=[1.0, 0.1],
            rollouts=PromptedEngine(),
            group_size=3,
            prompts_per_rollout=8,
            updates_per_rollout=2,
            max_completion_length=LONGEST,
            advantages=estimator,
            old_log_probs="trainer" if "TopEntropy" in name else "sampler",
            token_weights=WEIGHTINGS.get(name.rpartition(" ")[2]),
            truncated="score",
            seed=5,
        )
        trainer = Trainer(
            accelerator="cpu",
            devices=arguments.devices,
            strategy="ddp" if arguments.devices > 1 else "auto",
            precision="64-true",
            max_steps=UPDATES,
            max_epochs=-1,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
        trainer.fit(module, data)
        if trainer.is_global_zero:
            parameters = {key: value.detach().clone() for key, value in module.model.named_parameters()}
            save_file(parameters, arguments.output / f"{name}.safetensors")


if __name__ == "__main__":
    sys.exit(main())
