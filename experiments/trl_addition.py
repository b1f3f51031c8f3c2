"""Held-out accuracy of the addition task after training in TRL's trainer and under Lightning, with the same objective.

    python -m experiments.trl_addition --seeds 0,1,2 --output runs/trl_addition

Both sides start from the model of the default job and take its 300 optimizer steps: two on each rollout of 16 prompts
with 8 completions. Learning rate, clipped gradient norm, advantages and the score of truncated completions are equal,
but each trainer samples by itself, in another order. The same code evaluates both models on 256 held-out problems, with
one sampled and one greedy completion. The output is a row for each run in `accuracy.csv`, and a table of means with
bootstrap intervals over the seeds. TRL must be installed, see the extra `trl`.
"""

from __future__ import annotations

import argparse
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from tempfile import TemporaryDirectory
from typing import Any

import torch
from lightning import Trainer, seed_everything
from safetensors.torch import load_file

from aggregate_po.advantages import GroupNormalized
from aggregate_po.recipes import gmpo
from experiments.estimate import Estimate, estimate_cell
from experiments.options import count, seeds
from experiments.start import require_start, weights_digest
from experiments.tables import Row, Table, append_rows, markdown, read_rows
from lightning_modules import PolicyModule, RolloutDataModule, boxed_answer
from lightning_modules.addition import AdditionProblems, AdditionWarmStart

GROUP_SIZE, PROMPTS, UPDATES, MAX_LENGTH = 8, 16, 2, 40
LEARNING_RATE, WARMUP_STEPS, PROBLEMS, HELD_OUT = 1e-4, 5, 8192, 256
MEASURES = ("sampled", "greedy")


def train_lightning(model: str, steps: int, seed: int, folder: Path) -> None:
    """Train under Lightning, and save the model."""
    module = PolicyModule(model, gmpo(), LEARNING_RATE, WARMUP_STEPS)
    _trainer(steps).fit(module, datamodule=_data(seed))
    module.policy.save_pretrained(folder)


def train_trl(model: str, steps: int, seed: int, folder: Path) -> None:
    """Train in TRL's trainer, and save the model."""
    from datasets import Dataset
    from transformers import AutoModelForCausalLM, AutoTokenizer
    from trl import GRPOConfig

    from aggregate_po.adapters.trl import ObjectiveGRPOTrainer

    def reward(completions: list[str], answer: list[str], **_: Any) -> list[float]:
        return [boxed_answer(text, {"answer": one}) for text, one in zip(completions, answer, strict=True)]

    config = GRPOConfig(
        output_dir=str(folder),
        use_cpu=True,
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=PROMPTS * GROUP_SIZE // UPDATES,
        steps_per_generation=UPDATES,
        num_generations=GROUP_SIZE,
        max_completion_length=MAX_LENGTH,
        learning_rate=LEARNING_RATE,
        lr_scheduler_type="constant_with_warmup",
        warmup_steps=WARMUP_STEPS,
        weight_decay=0.0,
        max_grad_norm=1.0,
        max_steps=steps,
        seed=seed,
        save_strategy="no",
        report_to="none",
        disable_tqdm=True,
    )
    tokenizer = AutoTokenizer.from_pretrained(model, padding_side="left", trust_remote_code=False)
    trainer = ObjectiveGRPOTrainer(
        model=AutoModelForCausalLM.from_pretrained(model, trust_remote_code=False),
        processing_class=tokenizer,
        reward_funcs=reward,
        args=config,
        train_dataset=Dataset.from_list([dict(example) for example in AdditionProblems(PROBLEMS)]),
        objective=gmpo(),
    )
    trainer.train()
    trainer.model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)


SIDES: dict[str, Callable[[str, int, int, Path], None]] = {"Lightning": train_lightning, "TRL": train_trl}


def accuracy(model: str, seed: int) -> dict[str, float]:
    """Return the held-out accuracy of a saved model, sampled and greedy."""
    module, data = PolicyModule(model, gmpo()), _data(seed)
    seed_everything(seed, verbose=False)
    _trainer(1).validate(module, datamodule=data, verbose=False)
    return {name: module.held_out_metrics[f"reward_{name}"] for name in MEASURES}


def run(side: str, steps: int, seed: int, start: str) -> Row:
    """Train from the model in the folder `start`, and evaluate once."""
    seed_everything(seed, verbose=False)
    began = time.perf_counter()
    with TemporaryDirectory() as folder:
        if steps:
            SIDES[side](start, steps, seed, Path(folder))
        seconds = time.perf_counter() - began
        found = accuracy(folder if steps else start, seed)
    measured = {name: f"{value:.4f}" for name, value in found.items()}
    about = {"side": side, "steps": str(steps), "seed": str(seed), "start": _digest(start)}
    return {**about, **measured, "seconds": f"{seconds:.0f}"}


def _digest(start: str) -> str:
    return weights_digest(load_file(Path(start) / "model.safetensors"))


def table(rows: Sequence[Row], steps: int) -> Table:
    """Yield the accuracy of the model at the start, and the mean accuracy of each side with its interval."""
    yield ["", "seeds", *MEASURES]
    start = [row for row in rows if row["side"] == "start"][:1]
    trained = {side: [row for row in rows if row["side"] == side and row["steps"] == str(steps)] for side in SIDES}
    for side, found in {"start": start, **trained}.items():
        cells = [estimate_cell(Estimate.of([float(row[name]) for row in found])) for name in MEASURES]
        yield [side, str(len(found)), *cells]


def _data(seed: int) -> RolloutDataModule:
    return RolloutDataModule(
        AdditionProblems(PROBLEMS),
        boxed_answer,
        validation=AdditionProblems(HELD_OUT, held_out=True),
        group_size=GROUP_SIZE,
        prompts_per_rollout=PROMPTS,
        updates_per_rollout=UPDATES,
        max_completion_length=MAX_LENGTH,
        advantages=GroupNormalized(delta=1e-4),
        truncated="score",
        seed=seed,
    )


def _trainer(steps: int) -> Trainer:
    return Trainer(
        accelerator="cpu",
        devices=1,
        max_steps=steps,
        max_epochs=-1,
        gradient_clip_val=1.0,
        logger=False,
        limit_val_batches=1.0,
        check_val_every_n_epoch=1_000_000,
        num_sanity_val_steps=0,
        enable_checkpointing=False,
        enable_progress_bar=False,
        enable_model_summary=False,
    )


def main(arguments: Sequence[str] | None = None) -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--seeds", type=seeds, default=(0, 1, 2), help="seeds of the runs of each side, by commas")
    parser.add_argument("--steps", type=count, default=300, help="optimizer steps of a run")
    parser.add_argument("--output", type=Path, default=Path("runs/trl_addition"), help="folder of accuracy.csv")
    options = parser.parse_args(arguments)
    torch.set_num_threads(1)
    options.output.mkdir(parents=True, exist_ok=True)
    path, start = options.output / "accuracy.csv", AdditionWarmStart().prepare()
    require_start(parser, options.output, read_rows(path), _digest(start))
    for side, steps, seed in _runs(options.steps, options.seeds):
        done = {(row["side"], row["steps"], row["seed"]) for row in read_rows(path)}
        if (side, str(steps), str(seed)) not in done:
            row = run(side, steps, seed, start)
            append_rows(path, [row])
            print(", ".join(f"{name} {value}" for name, value in row.items()), flush=True)
    print(markdown(table(read_rows(path), options.steps)))


def _runs(steps: int, seeds: Sequence[int]) -> Iterator[tuple[str, int, int]]:
    yield "start", 0, seeds[0]
    for seed in seeds:
        for side in SIDES:
            yield side, steps, seed


if __name__ == "__main__":
    main()
