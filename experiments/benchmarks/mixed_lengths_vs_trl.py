"""Useful tokens per second of a training step on completions of long-tailed lengths: this project's layouts, and TRL's.

A step is forward, GRPO's loss with what each side measures beside it, backward and AdamW, over the same completions of
the same model in the same number of micro-batches. Useful tokens are those of the completions. Lengths are
log-normal, cut off at the longest. Each run is a process of its own, and its first step is not counted. It needs TRL,
which the tests install:

    .venv/bin/python experiments/benchmarks/mixed_lengths_vs_trl.py --rounds 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable
from dataclasses import replace
from typing import Any

import torch
from torch.optim import AdamW
from transformers import Qwen2Config, Qwen2ForCausalLM

from aggregate_po import PolicyBatch, StepTotals
from aggregate_po.recipes import grpo
from lightning_modules.batch import RolloutBatch, left_padded
from lightning_modules.data.micro_batches import micro_batches
from lightning_modules.model.layouts import PackedSequences, SequenceLayout, SharedPrompts
from lightning_modules.model.log_probs import log_probs_and_entropy

PROMPTS, GROUP_SIZE, LEARNING_RATE = 8, 8, 1e-6
SIDES = ("shared prompts", "packed", "trl")


def make_model(vocabulary: int, width: int, layers: int) -> Qwen2ForCausalLM:
    """A model of random weights."""
    torch.manual_seed(0)
    config = Qwen2Config(
        vocab_size=vocabulary,
        hidden_size=width,
        intermediate_size=3 * width,
        num_hidden_layers=layers,
        num_attention_heads=width // 64,
        num_key_value_heads=width // 64,
        tie_word_embeddings=True,
    )
    return Qwen2ForCausalLM(config)


def make_step(vocabulary: int, median: int, longest: int, device: str) -> RolloutBatch:
    """The completions of one optimiser step."""
    generator = torch.Generator().manual_seed(1)
    batch = PROMPTS * GROUP_SIZE
    lengths = (median * torch.randn(batch, generator=generator).exp()).round().long().clamp(1, longest)
    mask = torch.arange(int(lengths.max())) < lengths.unsqueeze(-1)
    prompt_lengths = torch.randint(30, 91, (PROMPTS,), generator=generator).tolist()
    prompts = [torch.randint(5, vocabulary, (length,), generator=generator).tolist() for length in prompt_lengths]
    prompt_ids, prompt_mask = left_padded(prompts)
    return RolloutBatch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        prompt_of=torch.arange(PROMPTS).repeat_interleave(GROUP_SIZE),
        completion_ids=torch.randint(5, vocabulary, mask.shape, generator=generator) * mask,
        completion_mask=mask,
        policy=PolicyBatch(torch.zeros(mask.shape), mask, torch.randn(batch, generator=generator)),
    ).to(device)


def step_here(model: Qwen2ForCausalLM, whole: RolloutBatch, pieces: int, layout: SequenceLayout) -> Callable[[], None]:
    """One optimiser step of this project, as `PolicyModule.training_step` makes it."""
    objective, optimizer = grpo(), AdamW(model.parameters(), lr=LEARNING_RATE)
    whole = whole.replace(policy=replace(whole.policy, totals=StepTotals.of(whole.policy.response_mask)))

    def step() -> None:
        every = torch.arange(len(whole.prompt_of), device=whole.prompt_of.device)
        for rows in micro_batches(whole, every, pieces, layout):
            batch = whole.select(rows)
            log_probs, _ = log_probs_and_entropy(model, batch, layout)
            (-objective(log_probs, batch.policy)).backward()
            objective.gradient_weights(log_probs.detach(), batch.policy)
        optimizer.step()
        optimizer.zero_grad()

    return step


def step_trl(model: Qwen2ForCausalLM, whole: RolloutBatch, pieces: int) -> Callable[[], None]:
    """One optimiser step of TRL, whose micro-batches are padded as the whole rollout is."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from lightning_modules.addition import AdditionWarmStart

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=PROMPTS * GROUP_SIZE // pieces,
        gradient_accumulation_steps=pieces,
        num_generations=GROUP_SIZE,
        max_completion_length=whole.completion_ids.shape[1],
        beta=0.0,
        loss_type="grpo",
        report_to="none",
    )
    trainer = GRPOTrainer(
        model=model,
        processing_class=AutoTokenizer.from_pretrained(AdditionWarmStart().prepare(), padding_side="left"),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "1 + 1"}] * PROMPTS),
    )
    trainer.current_gradient_accumulation_steps = pieces
    optimizer = AdamW(model.parameters(), lr=LEARNING_RATE)
    inputs = {
        "prompt_ids": whole.prompt_ids[whole.prompt_of],
        "prompt_mask": whole.prompt_mask[whole.prompt_of].long(),
        "completion_ids": whole.completion_ids,
        "completion_mask": whole.completion_mask.long(),
        "advantages": whole.policy.advantages,
        "old_per_token_logps": whole.policy.old_log_probs,
    }
    order = torch.randperm(len(whole.prompt_of), generator=torch.Generator().manual_seed(2))  # as TRL shuffles them

    def step() -> None:
        for rows in order.tensor_split(pieces):
            piece: dict[str, Any] = {name: tensor[rows] for name, tensor in inputs.items()}
            trainer.compute_loss(model, {**piece, "num_items_in_batch": whole.completion_mask.sum()}).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measured(side: str, options: argparse.Namespace) -> dict[str, float]:
    """Useful tokens per second of the steps of one run, and the padding of the rollout."""
    whole = make_step(options.vocabulary, options.median, options.longest, options.device)
    model = make_model(options.vocabulary, options.width, options.layers).to(options.device)
    with torch.no_grad():
        old, _ = log_probs_and_entropy(model, whole)
    whole = whole.replace(policy=replace(whole.policy, old_log_probs=old))
    if side == "trl":
        step = step_trl(model.train(), whole, options.micro_batches)
    else:
        layout = PackedSequences() if side == "packed" else SharedPrompts()
        step = step_here(model, whole, options.micro_batches, layout)
    step()
    started = time.perf_counter()
    for _ in range(options.steps):
        step()
    if options.device == "cuda":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / options.steps
    useful = whole.completion_mask.sum().item()
    return {"tokens_per_second": useful / seconds, "useful": useful / whole.completion_mask.numel()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="runs of each side")
    parser.add_argument("--steps", type=int, default=3, help="counted steps of a run")
    parser.add_argument("--micro_batches", type=int, default=4, help="of a step")
    parser.add_argument("--median", type=int, default=60, help="length of a completion")
    parser.add_argument("--longest", type=int, default=512, help="length of a completion")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--side", choices=SIDES, help="run one side only and print its figures")
    arguments = parser.parse_args()
    if arguments.side:
        print(json.dumps(measured(arguments.side, arguments)))
        return
    runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
    for _ in range(arguments.rounds):
        for side in SIDES:
            command = [sys.executable, __file__, *sys.argv[1:], "--side", side]
            output = subprocess.run(command, check=True, capture_output=True, text=True).stdout
            runs[side].append(json.loads(output.strip().splitlines()[-1]))
    print(f"{runs['trl'][0]['useful']:.2f} of a rollout padded to its longest completion is useful")
    for side, figures in runs.items():
        speeds = [one["tokens_per_second"] for one in figures]
        ratios = [one / other["tokens_per_second"] for one, other in zip(speeds, runs["trl"], strict=True)]
        print(
            f"  {side:14} {statistics.median(speeds):7.0f} tokens per second, {statistics.median(ratios):.2f} of TRL "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
