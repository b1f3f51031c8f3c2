"""Fraction of the time of an update that each objective and its diagnostics take, forward and backward.

An update is the forward and backward pass of the addition model on 64 completions of eight prompts, as in the default
configuration; the objective is computed between the two. Each round times all objectives in turn, and the fractions are
medians over rounds.

    .venv/bin/python experiments/benchmarks/objective_cost.py
"""

from __future__ import annotations

import argparse
import statistics
import time
from collections.abc import Callable

import torch
from transformers import AutoModelForCausalLM

from aggregate_po import PolicyBatch, StepTotals, recipes
from lightning_modules.addition import AdditionWarmStart
from lightning_modules.batch import RolloutBatch, left_padded
from lightning_modules.model.log_probs import log_probs_and_entropy

PROMPTS, GROUP_SIZE, LENGTH = 8, 8, 32
RECIPES = ("grpo", "gmpo", "gspo", "hmpo", "pmpo", "holder_po", "ctpo", "ctpo_geometric", "minpro", "kpo", "fipo")


def random_batch() -> RolloutBatch:
    """Return completions of random tokens, of nearly maximum length."""
    generator = torch.Generator().manual_seed(0)
    batch = PROMPTS * GROUP_SIZE
    lengths = torch.randint(LENGTH - 8, LENGTH + 1, (batch, 1), generator=generator)
    mask = torch.arange(LENGTH) < lengths
    prompts = [torch.randint(5, 200, (11,), generator=generator).tolist() for _ in range(PROMPTS)]
    prompt_ids, prompt_mask = left_padded(prompts)
    return RolloutBatch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        prompt_of=torch.arange(PROMPTS).repeat_interleave(GROUP_SIZE),
        completion_ids=torch.randint(5, 200, (batch, LENGTH), generator=generator),
        completion_mask=mask,
        policy=PolicyBatch(torch.zeros(mask.shape), mask, torch.randn(batch, generator=generator)),
    )


def seconds(work: Callable[[], object]) -> float:
    """Return the wall-clock time of one call."""
    start = time.perf_counter()
    work()
    return time.perf_counter() - start


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=30)
    arguments = parser.parse_args()
    model = AutoModelForCausalLM.from_pretrained(AdditionWarmStart().prepare(), trust_remote_code=False)
    batch = random_batch()
    log_probs = log_probs_and_entropy(model, batch)[0].detach()
    # An off-policy batch: one token in a hundred is clipped, and PMPO must solve for exponents.
    moved = log_probs + 0.17 * torch.randn(log_probs.shape, generator=torch.Generator().manual_seed(1))
    totals = StepTotals.of(batch.policy.response_mask, progress=0.0)
    policy = PolicyBatch(moved, batch.policy.response_mask, batch.policy.advantages, totals)

    def model_passes() -> None:
        log_probs_and_entropy(model, batch)[0].sum().backward()
        model.zero_grad()

    def objective_passes(name: str) -> None:
        objectives[name](log_probs.clone().requires_grad_(), policy).backward()

    objectives = {name: getattr(recipes, name)() for name in RECIPES}
    model_times: list[float] = []
    shares: dict[str, list[float]] = {name: [] for name in RECIPES}
    diagnostics: dict[str, list[float]] = {name: [] for name in RECIPES}
    for _ in range(arguments.rounds):
        passes = seconds(model_passes)
        model_times.append(passes)
        for name in RECIPES:
            shares[name].append(seconds(lambda name=name: objective_passes(name)) / passes)  # type: ignore[misc]
            weights = lambda name=name: objectives[name].gradient_weights(log_probs, policy)  # noqa: E731
            diagnostics[name].append(seconds(weights) / passes)
    clipped = objectives["gmpo"].gradient_weights(log_probs, policy).clipped
    assert clipped is not None
    print(f"model, forward and backward: {1e3 * statistics.median(model_times):.0f} ms")
    print(f"tokens clipped: {clipped.sum() / policy.response_mask.sum():.1%}")
    for name in RECIPES:
        objective, weights_share = statistics.median(shares[name]), statistics.median(diagnostics[name])
        print(f"{name:<14} objective {objective:.2%}, gradient weights {weights_share:.2%} of the model's passes")


if __name__ == "__main__":
    main()
