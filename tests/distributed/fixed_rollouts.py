"""Trains models on rollouts that do not depend on how the work is split; a program, started by the tests.

Completions have unequal lengths, some rows have no trained token, and with two ranks the second one's rows of one
update are all without. Everything is computed in float64, unless a case asks for another precision.
"""

import argparse
import sys
from collections.abc import Callable
from dataclasses import dataclass, field
from datetime import timedelta
from pathlib import Path
from typing import Any

import torch
from lightning import Callback, LightningDataModule, Trainer
from lightning.pytorch.strategies import DDPStrategy, ModelParallelStrategy
from safetensors.torch import save_file
from transformers import AutoModelForCausalLM

from aggregate_po import GeometricMean, PolicyBatch, PolicyObjective, StepTotals, recipes
from aggregate_po.transforms import PessimisticClip
from lightning_modules import AggregationDiagnostics, LoRA, PackedSequences, PolicyModule, SharedPrompts
from lightning_modules.batch import RolloutBatch, left_padded
from lightning_modules.data.buffer import PreparedRollout, RolloutBuffer
from lightning_modules.data.loader import RolloutLoader
from lightning_modules.distributed import data_parallel_rank, data_parallel_size, rank
from lightning_modules.model import policy as policy_file
from lightning_modules.model.sharding import full_tensor, is_sharded
from lightning_modules.rollouts import SamplingParameters, TransformersEngine
from tests.lightning_modules.training import exact
from tests.third_party.lehmer import LehmerMean

ROWS, TIME, UPDATES = 12, 9, 3
ACCUMULATE = (1, 2, 4)
DIAGNOSED = ("weights/", "clip_ratio/", "log_ratio/", "exponent/")
TIMEOUT = timedelta(seconds=300)  # of collectives


@dataclass(frozen=True)
class Case:
    """A training case: an objective, options of trainer and module, and the row whose advantage is infinite."""

    objective: Callable[[], PolicyObjective]
    options: dict[str, Any] = field(default_factory=dict)
    infinite: int | None = None
    module: dict[str, Any] = field(default_factory=dict)


CASES = {
    "grpo": Case(recipes.grpo),
    "dapo": Case(recipes.dapo),
    "dr_grpo": Case(lambda: recipes.dr_grpo(TIME)),
    "gmpo": Case(recipes.gmpo),
    "pmpo": Case(recipes.pmpo),
    "a user's mean": Case(lambda: PolicyObjective(LehmerMean(2.0), PessimisticClip.log(0.4, 0.4))),
    "clipped gradients": Case(recipes.gmpo, {"gradient_clip_val": 0.1}),
    "a skipped step": Case(recipes.gmpo, infinite=ROWS - 2),
    "two passes": Case(recipes.gmpo, module={"layout": SharedPrompts()}),
    "packed": Case(recipes.gmpo, module={"layout": PackedSequences()}),
    "recomputed": Case(recipes.gmpo, module={"layout": PackedSequences(recompute=True)}),
    "adapters": Case(recipes.gmpo, module={"lora": LoRA(4)}),
    "real": Case(recipes.real),
    "tpo": Case(recipes.tpo),
}
# Without a clip, whose gates may change by rounding.
EXACT, ROUNDED = "unclipped", "unclipped in bfloat16"
PRECISIONS = {
    EXACT: Case(lambda: PolicyObjective(GeometricMean())),
    ROUNDED: Case(lambda: PolicyObjective(GeometricMean()), {"precision": "bf16-mixed"}),
}
STRATEGIES: dict[str, Callable[[], Any]] = {
    "single": lambda: "auto",
    "ddp": lambda: DDPStrategy(timeout=TIMEOUT),
    "sharded": lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=1, timeout=TIMEOUT),
    "tensor_parallel": lambda: ModelParallelStrategy(data_parallel_size=1, tensor_parallel_size=2, timeout=TIMEOUT),
    "both": lambda: ModelParallelStrategy(data_parallel_size=2, tensor_parallel_size=2, timeout=TIMEOUT),
}
RANKS = {"single": 1, "both": 4}
TENSOR_PARALLEL = ("tensor_parallel", "both")


def micro_batch_counts(name: str, strategy: str) -> tuple[int, ...]:
    """Return the numbers of micro-batches that a case is trained with; none if adapters are refused.

    One case has every number under every strategy. The others have one that divides the rows unevenly, in one process
    and under DDP, and an even one elsewhere.
    """
    if strategy in TENSOR_PARALLEL:
        return () if "lora" in {**CASES, **PRECISIONS}[name].module else (2,)
    if name in PRECISIONS:
        return (2,)
    return ACCUMULATE if name == "gmpo" else {"single": (1, 4), "ddp": (4,), "sharded": (2,)}[strategy]


class ExactModels:
    """Loads models in float64; the sharding strategy accepts no such precision."""

    @staticmethod
    def from_pretrained(path, dtype, **options):
        """Replace the method of transformers."""
        return exact(AutoModelForCausalLM.from_pretrained(path, dtype=torch.float64))


def full_update(number: int) -> RolloutBatch:
    """Return all completions of one optimizer step."""
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
            groups=torch.arange(ROWS) % 4,  # every group has completions on both ranks
        ),
    )


class FixedRollouts(LightningDataModule):
    """Shards of the same rollouts; in the first one the advantage of one row may be infinite."""

    def __init__(self, infinite: int | None = None) -> None:
        super().__init__()
        self.infinite = infinite

    def train_dataloader(self) -> RolloutLoader:
        """Return a loader with one optimizer step per rollout."""
        size = self.trainer.accumulate_grad_batches
        return RolloutLoader(RolloutBuffer(lambda number: PreparedRollout(self._shard(number)), size))

    def transfer_batch_to_device(self, batch: RolloutBatch, device: torch.device, dataloader_idx: int) -> RolloutBatch:
        """Leave the batch on the CPU."""
        return batch

    def _shard(self, number: int) -> list[RolloutBatch]:
        local = torch.arange(ROWS).tensor_split(data_parallel_size(self.trainer))[data_parallel_rank(self.trainer)]
        parts = local.tensor_split(self.trainer.accumulate_grad_batches)
        update = full_update(number)
        if number == 0 and self.infinite is not None:
            update.policy.advantages[self.infinite] = torch.inf
        return [update.select(rows).replace(closes_update=rows is parts[-1]) for rows in parts]


class Metrics(Callback):
    """Records the gradient norm and the diagnostics of each step, and the number of skipped steps."""

    def __init__(self) -> None:
        self.norms: list[float] = []
        self.diagnostics: list[list[float]] = []
        self.skipped = 0.0

    def on_train_batch_end(self, trainer, pl_module, outputs, batch, batch_idx):
        """Record after the last micro-batch of a step."""
        if batch.closes_update:
            self.norms.append(float(trainer.callback_metrics["grad_norm"]))
            found = sorted(trainer.callback_metrics.items())
            self.diagnostics.append([float(value) for name, value in found if name.startswith(DIAGNOSED)])
            self.skipped = float(trainer.callback_metrics["skipped_steps"])


def train(model: str, case: Case, strategy: str, accumulate: int, folder: Path) -> dict[str, torch.Tensor]:
    """Return full parameters and metrics after training, and export the model to the folder."""
    rounded = "precision" in case.options
    policy_file.AutoModelForCausalLM = AutoModelForCausalLM if rounded else ExactModels
    # Plain gradient descent: an adaptive optimizer would hide a gradient of the wrong scale.
    module = PolicyModule(
        model,
        case.objective(),
        warmup_steps=0,
        optimizer=lambda parameters: torch.optim.SGD(parameters, lr=0.1),
        **case.module,
    )
    metrics = Metrics()
    trainer = Trainer(
        accelerator="cpu",
        devices=RANKS.get(strategy, 2),
        strategy=STRATEGIES[strategy](),
        accumulate_grad_batches=accumulate,
        max_steps=UPDATES,
        max_epochs=-1,
        logger=False,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
        callbacks=[AggregationDiagnostics(), metrics],
        **case.options,
    )
    trainer.fit(module, FixedRollouts(case.infinite))
    assert is_sharded(module.model) == (strategy in ("sharded", *TENSOR_PARALLEL))
    parameters = {name: full_tensor(value.detach()).clone() for name, value in module.model.named_parameters()}
    assert {value.dtype for value in parameters.values()} == {torch.float32 if rounded else torch.float64}
    module.policy.save_pretrained(folder)
    noted = {
        "grad_norm": torch.tensor(metrics.norms),
        "diagnostics": torch.tensor(metrics.diagnostics, dtype=torch.double),
        "skipped_steps": torch.tensor(metrics.skipped),
    }
    return {**parameters, **noted, **generated(module)}


def generated(module: PolicyModule) -> dict[str, torch.Tensor]:
    """Return log-probabilities of the first tokens of completions that are longer on rank 1."""
    engine, prompts = TransformersEngine(), [[5, 6, 7], [8, 9]]
    engine.load_policy(module.model)
    completions = engine.generate(
        prompts,
        SamplingParameters(3 + 4 * data_parallel_rank(module.trainer), stop_token_ids=(0,), samples_per_prompt=2),
    )
    return {"generated": completions.log_probs[:, :3].clone()}


def main() -> None:
    parser = argparse.ArgumentParser()
    parser.add_argument("model")
    parser.add_argument("output", type=Path)
    parser.add_argument("strategies", nargs="+", choices=list(STRATEGIES))
    parser.add_argument("--cases", nargs="+", default=[*CASES, *PRECISIONS])
    arguments = parser.parse_args()
    for strategy in arguments.strategies:
        for name in arguments.cases:
            case = {**CASES, **PRECISIONS}[name]
            for accumulate in micro_batch_counts(name, strategy):
                output = arguments.output / f"{name}-{strategy}-{accumulate}"
                trained = train(arguments.model, case, strategy, accumulate, output)
                save_file(trained, f"{output}-{rank()}.safetensors")


if __name__ == "__main__":
    sys.exit(main())
