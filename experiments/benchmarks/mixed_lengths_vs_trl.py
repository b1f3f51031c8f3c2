"""Useful tokens per second of a training step on completions of long-tailed lengths: this project's layouts, and TRL's.

A step is the forward pass, GRPO's loss with the metrics of each side, the backward pass and AdamW, on the same
completions of the same model in the same number of micro-batches. Useful tokens are completion tokens. Lengths are
log-normal, truncated at the longest. Each run is a separate process, and its first step is not counted. It needs TRL,
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
    """Return a randomly initialized model."""
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
    """Return the completions of one optimizer step."""
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


def step_here(model: Qwen2ForCausalLM, rollout: RolloutBatch, parts: int, layout: SequenceLayout) -> Callable[[], None]:
    """Return one optimizer step of this project, as in `PolicyModule.training_step`."""
    objective, optimizer = grpo(), AdamW(model.parameters(), lr=LEARNING_RATE)
    rollout = rollout.replace(policy=replace(rollout.policy, totals=StepTotals.of(rollout.policy.response_mask)))

    def step() -> None:
        every = torch.arange(len(rollout.prompt_of), device=rollout.prompt_of.device)
        for rows in micro_batches(rollout, every, parts, layout):
            batch = rollout.select(rows)
            log_probs, _ = log_probs_and_entropy(model, batch, layout)
            (-objective(log_probs, batch.policy)).backward()
            objective.gradient_weights(log_probs.detach(), batch.policy)
        optimizer.step()
        optimizer.zero_grad()

    return step


def step_trl(model: Qwen2ForCausalLM, rollout: RolloutBatch, parts: int) -> Callable[[], None]:
    """Return one optimizer step of TRL, which pads micro-batches to the length of the full rollout."""
    from datasets import Dataset
    from transformers import AutoTokenizer
    from trl import GRPOConfig, GRPOTrainer

    from lightning_modules.addition import AdditionWarmStart

    config = GRPOConfig(
        output_dir=tempfile.mkdtemp(),
        use_cpu=not torch.cuda.is_available(),
        bf16=False,
        gradient_checkpointing=False,
        per_device_train_batch_size=PROMPTS * GROUP_SIZE // parts,
        gradient_accumulation_steps=parts,
        num_generations=GROUP_SIZE,
        max_completion_length=rollout.completion_ids.shape[1],
        beta=0.0,
        loss_type="grpo",
        report_to="none",
    )
    trainer = GRPOTrainer(
        model=model,
        processing_class=AutoTokenizer.from_pretrained(
            AdditionWarmStart().prepare(), padding_side="left", trust_remote_code=False
        ),
        reward_funcs=lambda completions, **_: [0.0] * len(completions),
        args=config,
        train_dataset=Dataset.from_list([{"prompt": "1 + 1"}] * PROMPTS),
    )
    trainer.current_gradient_accumulation_steps = parts
    optimizer = AdamW(model.parameters(), lr=LEARNING_RATE)
    inputs = {
        "prompt_ids": rollout.prompt_ids[rollout.prompt_of],
        "prompt_mask": rollout.prompt_mask[rollout.prompt_of].long(),
        "completion_ids": rollout.completion_ids,
        "completion_mask": rollout.completion_mask.long(),
        "advantages": rollout.policy.advantages,
        "old_per_token_logps": rollout.policy.old_log_probs,
    }
    order = torch.randperm(len(rollout.prompt_of), generator=torch.Generator().manual_seed(2))  # TRL shuffles them, too

    def step() -> None:
        for rows in order.tensor_split(parts):
            part: dict[str, Any] = {name: tensor[rows] for name, tensor in inputs.items()}
            trainer.compute_loss(model, {**part, "num_items_in_batch": rollout.completion_mask.sum()}).backward()
        optimizer.step()
        optimizer.zero_grad()

    return step


def measured(side: str, options: argparse.Namespace) -> dict[str, float]:
    """Return the useful tokens per second of one run, and the fraction of useful tokens in the rollout."""
    rollout = make_step(options.vocabulary, options.median, options.longest, options.device)
    model = make_model(options.vocabulary, options.width, options.layers).to(options.device)
    with torch.no_grad():
        old, _ = log_probs_and_entropy(model, rollout)
    rollout = rollout.replace(policy=replace(rollout.policy, old_log_probs=old))
    if side == "trl":
        step = step_trl(model.train(), rollout, options.micro_batches)
    else:
        layout = PackedSequences() if side == "packed" else SharedPrompts()
        step = step_here(model, rollout, options.micro_batches, layout)
    step()
    started = time.perf_counter()
    for _ in range(options.steps):
        step()
    if options.device == "cuda":
        torch.cuda.synchronize()
    seconds = (time.perf_counter() - started) / options.steps
    useful = rollout.completion_mask.sum().item()
    return {"tokens_per_second": useful / seconds, "useful": useful / rollout.completion_mask.numel()}


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="number of runs of each side")
    parser.add_argument("--steps", type=int, default=3, help="number of measured steps of a run")
    parser.add_argument("--micro_batches", type=int, default=4, help="number of micro-batches of a step")
    parser.add_argument("--median", type=int, default=60, help="median length of a completion")
    parser.add_argument("--longest", type=int, default=512, help="maximum length of a completion")
    parser.add_argument("--vocabulary", type=int, default=8192)
    parser.add_argument("--width", type=int, default=256)
    parser.add_argument("--layers", type=int, default=4)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument("--side", choices=SIDES, help="run one side only and print its metrics")
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
    for side, metrics in runs.items():
        speeds = [one["tokens_per_second"] for one in metrics]
        ratios = [one / other["tokens_per_second"] for one, other in zip(speeds, runs["trl"], strict=True)]
        print(
            f"  {side:14} {statistics.median(speeds):7.0f} tokens per second, {statistics.median(ratios):.2f} of TRL "
            f"({min(ratios):.2f} to {max(ratios):.2f})"
        )


if __name__ == "__main__":
    main()
