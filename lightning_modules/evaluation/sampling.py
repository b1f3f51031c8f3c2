"""Completions of benchmark problems, sampled from a model without an objective."""

from __future__ import annotations

import logging
from collections.abc import Sequence
from pathlib import Path
from typing import Literal, cast

import torch
from lightning import Trainer

from lightning_modules.data.sampler import Sampled, Sampler
from lightning_modules.evaluation.benchmarks import Benchmark
from lightning_modules.model.policy import ModelSource, Policy
from lightning_modules.prompts import Prompt, PromptFormat
from lightning_modules.rollouts import RolloutEngine

Precision = Literal["32-true", "16-true", "bf16-true", "16-mixed", "bf16-mixed"]


class ProblemSampler:
    """Samples completions of benchmark problems from a model on one device.

    Args:
        model: hub id or folder of a model, or a `ModelSource` that builds one.
        benchmarks: benchmarks whose problems are sampled; each is tokenized and checked at once.
        engine: engine that generates the completions.
        max_completion_length: maximum number of tokens of a completion.
        prompt_format: format of the prompts.
        precision: precision of Lightning's trainer; "bf16-true" on a GPU and "32-true" elsewhere when None.
        accelerator: accelerator of Lightning's trainer.

    Raises:
        ValueError: the model or the engine cannot hold a problem with its completion.
    """

    def __init__(
        self,
        model: str | ModelSource,
        benchmarks: Sequence[Benchmark],
        engine: RolloutEngine,
        max_completion_length: int,
        prompt_format: PromptFormat = PromptFormat(),
        precision: Precision | None = None,
        accelerator: str = "auto",
    ) -> None:
        trainer = _trainer(precision, accelerator)
        policy = Policy(model)
        policy.load(forward_context=trainer.precision_plugin.forward_context)
        policy.model.requires_grad_(False)
        trainer.precision_plugin.convert_module(policy.model).to(trainer.strategy.root_device)
        self._sampler = Sampler(engine, policy, trainer, max_completion_length, prompt_format)
        problems = {one.name: one.problems for one in benchmarks}
        self._sampler.fix_lengths(**problems)
        self._prompts = {
            name: list(self._sampler.tokenizer.prompts("benchmarks", examples)) for name, examples in problems.items()
        }

    def __call__(
        self, benchmark: str, problems: range, temperature: float, top_p: float, samples: int, seed: int
    ) -> Sampled:
        """Sample completions of some problems of a benchmark; those of one problem are adjacent.

        Args:
            benchmark: name of the benchmark.
            problems: indices of the problems.
            temperature: sampling temperature; 0 means greedy decoding.
            top_p: probability of the nucleus to sample from.
            samples: number of completions per problem.
            seed: sampling seed.
        """
        prompts: list[Prompt] = [self._prompts[benchmark][index] for index in problems]
        return self._sampler.sample(prompts, temperature, seed, samples, top_p)

    def close(self) -> None:
        """Release the resources of the engine."""
        self._sampler.close()


def exported_model(model: str | ModelSource) -> str | ModelSource:
    """Return the exported model of a finished run, if the model is the folder of one, or else the model itself."""
    if isinstance(model, str) and (Path(model) / "config.yaml").exists() and (Path(model) / "model").is_dir():
        return str(Path(model) / "model")
    return model


def _trainer(precision: Precision | None, accelerator: str) -> Trainer:
    """Return a trainer that trains nothing: it knows the device and the precision."""
    on_gpu = accelerator in ("auto", "gpu", "cuda") and torch.cuda.is_available()
    log = logging.getLogger("lightning.pytorch.utilities.rank_zero")
    level = log.level
    log.setLevel(logging.WARNING)  # Lightning would list devices and advertise loggers
    try:
        return Trainer(
            accelerator=accelerator,
            devices=1,
            precision=precision or cast(Precision, "bf16-true" if on_gpu else "32-true"),
            logger=False,
            enable_checkpointing=False,
            enable_progress_bar=False,
            enable_model_summary=False,
        )
    finally:
        log.setLevel(level)
