"""Predicted (`aggregate-po plan`) against measured memory of a training run, in each of its phases.

Each case is a separate process: a randomly initialized model of a few million parameters trains for three optimizer
steps of `Trainer.fit` on its own completions, all of maximum length. On a CPU the bytes of live tensors are counted,
and the resident memory of the process is shown, too; on a GPU the peak of PyTorch's allocator is measured.

    .venv/bin/python experiments/benchmarks/plan_vs_measured.py
"""

from __future__ import annotations

import argparse
import itertools
import json
import subprocess
import sys
import tempfile
import time
import warnings
from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import torch
from lightning import Callback, LightningModule, Trainer, seed_everything
from process_memory import peak_resident_bytes, reset_peak, resident_bytes
from transformers import AutoModelForCausalLM, LlamaConfig, Qwen2Config, Qwen3Config

from aggregate_po.recipes import gmpo
from lightning_modules import PolicyModule, RolloutDataModule
from lightning_modules.addition import AdditionProblems
from lightning_modules.addition.warm_start import make_tokenizer
from lightning_modules.memory import LiveMemory
from lightning_modules.model.layouts import PackedSequences
from lightning_modules.model.lora import LoRA
from lightning_modules.planning.job import job_plan
from lightning_modules.planning.settings import TrainerSettings

MIB = 2**20
# A rollout is scored before the first of its micro-batches, so both are measured as one.
PHASES = {"rollout": ("rollout", "scoring"), "training": ("training",), "update": ("update",)}


def _sizes(hidden: int, layers: int, heads: int, kv_heads: int, vocabulary: int, tied: bool) -> dict[str, Any]:
    return {
        "vocab_size": vocabulary,
        "hidden_size": hidden,
        "intermediate_size": hidden * 11 // 4,
        "num_hidden_layers": layers,
        "num_attention_heads": heads,
        "num_key_value_heads": kv_heads,
        "tie_word_embeddings": tied,
        "max_position_embeddings": 2048,
    }


@dataclass(frozen=True)
class Case:
    """A training run: configuration of the model, and arguments of module, data and trainer."""

    config: Any
    data: dict[str, Any] = field(default_factory=dict)
    trainer: dict[str, Any] = field(default_factory=dict)
    module: dict[str, Any] = field(default_factory=dict)


TWICE = {"accumulate_grad_batches": 2}
CASES = {
    "Qwen2, tied": Case(Qwen2Config(**_sizes(256, 6, 4, 2, 16384, True))),
    "Qwen2, tied, 4 micro-batches": Case(
        Qwen2Config(**_sizes(384, 6, 6, 2, 32768, True)), {"prompts_per_rollout": 8}, {"accumulate_grad_batches": 4}
    ),
    "Qwen2, bf16-mixed": Case(
        Qwen2Config(**_sizes(256, 6, 4, 2, 16384, True)), trainer={"precision": "bf16-mixed", **TWICE}
    ),
    "Qwen2, DDP of one rank": Case(
        Qwen2Config(**_sizes(256, 6, 4, 2, 16384, True)), trainer={"strategy": "ddp", **TWICE}
    ),
    "Qwen2, adapters, bf16-mixed": Case(
        Qwen2Config(**_sizes(256, 6, 4, 2, 16384, True)),
        {"kl_in_reward": 0.1},
        {"precision": "bf16-mixed", **TWICE},
        {"lora": LoRA(rank=8)},
    ),
    "Qwen2, packed, recomputed": Case(
        Qwen2Config(**_sizes(256, 6, 4, 2, 16384, True)),
        trainer=TWICE,
        module={"layout": PackedSequences(recompute=True)},
    ),
    "Llama, untied": Case(LlamaConfig(**_sizes(512, 8, 8, 8, 8192, False)), trainer=TWICE),
    "Qwen3, reference": Case(
        Qwen3Config(**_sizes(256, 4, 4, 2, 16384, True), head_dim=64),
        {"max_completion_length": 96, "kl_in_reward": 0.1},
        TWICE,
    ),
}
GROUP_SIZE = 8


_numbers = itertools.count()


def running_number(completion: str, example: Mapping[str, Any]) -> float:
    """Return a reward that differs within every group, so that all completions are trained on."""
    return float(next(_numbers))


class Peaks(Callback):
    """Records the peak memory of each phase, relative to the memory before the model was loaded."""

    def __init__(self, on_gpu: bool) -> None:
        self.on_gpu, self.memory = on_gpu, LiveMemory()
        self.live = dict.fromkeys(PHASES, 0)
        self.resident = dict.fromkeys(PHASES, 0)
        self.weights = self.before = 0

    def begin(self) -> None:
        """Record the memory before the training."""
        self.before = resident_bytes()
        self._reset()

    def on_fit_start(self, trainer: Trainer, pl_module: LightningModule) -> None:
        """Add the weights, which exist before the count of live tensors starts."""
        models = list(filter(None, [pl_module.model, pl_module.policy.reference]))
        tensors = [tensor for model in models for tensor in (*model.parameters(), *model.buffers())]
        self.weights = 0 if self.on_gpu else sum(tensor.numel() * tensor.itemsize for tensor in tensors)
        self._reset()

    def on_train_batch_start(self, trainer: Trainer, *_: Any) -> None:
        """Record the peak of the rollout."""
        self._ended("rollout", trainer)

    def on_before_optimizer_step(self, trainer: Trainer, *_: Any) -> None:
        """Record the peak of the backward passes."""
        self._ended("training", trainer)

    def on_train_batch_end(self, trainer: Trainer, *_: Any) -> None:
        """Record the peak of an update."""
        self._ended("update" if trainer.fit_loop.epoch_loop._should_accumulate() is False else "training", trainer)

    def _ended(self, phase: str, trainer: Trainer) -> None:
        if trainer.global_step > 0 or phase == "update":  # the first step has no previous gradients or optimizer states
            peak = torch.cuda.max_memory_allocated() if self.on_gpu else self.memory.peak + self.weights
            self.live[phase] = max(self.live[phase], peak)
            self.resident[phase] = max(self.resident[phase], peak_resident_bytes() - self.before)
        self._reset()

    def _reset(self) -> None:
        self.memory.reset_peak()
        if self.on_gpu:
            torch.cuda.reset_peak_memory_stats()
        reset_peak()


def measure(case: str, on_gpu: bool) -> dict[str, Any]:
    """Train, and plan the same run."""
    described = CASES[case]
    config = described.config
    options = {"accelerator": "gpu" if on_gpu else "cpu", "devices": 1, **described.trainer}
    seed_everything(0)
    with tempfile.TemporaryDirectory() as folder:
        make_tokenizer().save_pretrained(folder)
        config.eos_token_id = None  # the tokenizer's, which a random model seldom samples
        AutoModelForCausalLM.from_config(config, dtype=torch.float32, trust_remote_code=False).save_pretrained(folder)
        plan = job_plan(*parts(folder, described), TrainerSettings.of({"precision": None, **options}))
        peaks = Peaks(on_gpu)
        trainer = Trainer(
            **options,
            max_steps=3,
            max_epochs=-1,
            check_val_every_n_epoch=1_000_000,  # as on the command line; gradients are dropped before a validation
            gradient_clip_val=1.0,
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
            callbacks=[peaks],
            default_root_dir=folder,
        )
        module, data = parts(folder, described)
        peaks.begin()
        with peaks.memory:
            trainer.fit(module, data)
        state = trainer.optimizers[0].state
        exact = {
            "parameters": sum(parameter.numel() for parameter in module.parameters()),
            "state": sum(value.numel() * value.itemsize for values in state.values() for value in values.values()),
        }
    entries = {entry.name: entry.size for entry in plan.memory.entries}
    return {
        "exact": {
            "parameters": (plan.model.parameters, exact["parameters"]),
            "optimizer state": (entries["optimizer state"], exact["state"]),
        },
        "phases": {
            phase: (max(map(plan.memory.total, PHASES[phase])), peaks.live[phase], peaks.resident[phase])
            for phase in PHASES
        },
    }


def parts(folder: str, case: Case) -> tuple[PolicyModule, RolloutDataModule]:
    """Return module and data of a case."""
    options = {"group_size": GROUP_SIZE, "prompts_per_rollout": 4, "max_completion_length": 64, "truncated": "score"}
    data = RolloutDataModule(AdditionProblems(64), running_number, **{**options, **case.data})
    return PolicyModule(folder, gmpo(), **case.module), data


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--case", choices=CASES, help="run one case only, and print it as JSON")
    arguments = parser.parse_args()
    on_gpu = torch.cuda.is_available()
    if arguments.case:
        warnings.simplefilter("ignore")
        print(json.dumps(measure(arguments.case, on_gpu)))
        return
    how = "allocated on the GPU" if on_gpu else "live tensors"
    print(f"{'MiB':<30}{'planned':>10}{how:>22}{'error':>9}{'resident':>10}")
    worst = 0.0
    for case in CASES:
        start = time.perf_counter()
        command = [sys.executable, __file__, "--case", case]
        found = json.loads(subprocess.run(command, check=True, capture_output=True, text=True).stdout.splitlines()[-1])
        print(f"{case} ({time.perf_counter() - start:.0f} s)", flush=True)
        for name, (plan, measured) in found["exact"].items():
            print(f"  {name}: {'the same' if plan == measured else f'planned {plan:,}, found {measured:,}'}")
        peaks = dict.fromkeys(("planned", "measured", "resident"), 0)
        for phase, (plan, measured, rss) in found["phases"].items():
            peaks = dict(zip(peaks, map(max, peaks.values(), (plan, measured, rss)), strict=True))
            print_row(phase, plan, measured, rss)
        print_row("peak", *peaks.values())
        worst = max(worst, abs(peaks["planned"] / peaks["measured"] - 1))
    print(f"error of the peak: at most {worst:.1%}")


def print_row(name: str, plan: int, measured: int, rss: int) -> None:
    error = plan / measured - 1 if measured else float("nan")
    print(f"  {name:<28}{plan / MIB:>10.1f}{measured / MIB:>22.1f}{error:>+9.1%}{rss / MIB:>10.1f}", flush=True)


if __name__ == "__main__":
    main()
