"""Parts and trainer put together in Python."""

import torch
from lightning import Trainer
from my_parts import Doubles, LehmerMean, Signs, Tanh, even_digits, lehmer_po
from torch import Tensor

from aggregate_po import (
    Chain,
    EntropyBonus,
    ESSMatching,
    GradientWeights,
    PessimisticClip,
    PolicyBatch,
    PolicyObjective,
    PowerMean,
    TokenMean,
    effective_sample_size,
    objective_of,
)
from aggregate_po.recipes import gmpo, grpo
from aggregate_po.transforms import SigmoidGate
from lightning_modules import LinearDecay, PolicyModule, RolloutDataModule, RunReport
from lightning_modules.addition import AdditionWarmStart
from lightning_modules.rollouts import TransformersEngine

MASK = torch.ones(1, 2, dtype=torch.bool)


def compared(log_probs: Tensor) -> dict[str, GradientWeights]:
    """Gradient weights of several objectives on the same tokens."""
    batch = PolicyBatch(old_log_probs=torch.zeros(1, 2), response_mask=MASK, advantages=torch.ones(1))
    objectives: dict[str, PolicyObjective] = {
        "mine": lehmer_po(order=3.0),
        "named": objective_of("my_parts.lehmer_po"),
        "geometric": gmpo(log_clip=0.4),
        "arithmetic": grpo(),
        "adaptive": PolicyObjective(PowerMean(ESSMatching()), PessimisticClip(0.2, 0.3), normalizer=TokenMean()),
        "gated": PolicyObjective(LehmerMean(), Chain([Tanh(), SigmoidGate()]), penalties=[EntropyBonus(0.01)]),
    }
    return {name: objective.gradient_weights(log_probs, batch) for name, objective in objectives.items()}


def trained(folder: str) -> PolicyModule:
    """A policy after one optimizer step."""
    module = PolicyModule(
        AdditionWarmStart(steps=2), objective=lehmer_po(), learning_rate=1e-3, lr_scheduler=LinearDecay
    )
    data = RolloutDataModule(
        dataset=Doubles(),
        validation=[{"prompt": "4+4=", "answer": "8"}],
        reward=even_digits,
        rollouts=TransformersEngine(),
        advantages=Signs(),
        group_size=4,
        prompts_per_rollout=2,
        max_completion_length=8,
    )
    trainer = Trainer(max_steps=1, default_root_dir=folder, callbacks=[RunReport()], accelerator="cpu", logger=False)
    trainer.fit(module, datamodule=data)
    return module


def main() -> None:
    """Print effective numbers of tokens, and train."""
    for name, weights in compared(torch.tensor([[0.1, -0.1]])).items():
        sizes: Tensor = effective_sample_size(weights.concentration)
        print(f"{name}: {sizes.item():.2f} of 2 tokens")
    print(f"trained for {trained('python').global_step} step")


if __name__ == "__main__":
    main()
