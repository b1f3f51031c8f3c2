"""Peak memory and time of the loss head, forward and backward: this project, plain torch, and Liger.

The head takes hidden states to GRPO's loss and its gradients. Here it is `linear_log_probs` and the objective; plain
torch holds all logits in between; Liger is `LigerFusedLinearGRPOLoss`, which computes gradients in its forward pass.
Each run is a separate process. The peak is relative to the memory before the forward pass, without the gradient of the
weight; on a CPU it is that of the process, on a GPU that of the allocator. It needs Liger, which the tests install:

    .venv/bin/python experiments/benchmarks/loss_head.py --rounds 5
"""

from __future__ import annotations

import argparse
import json
import statistics
import subprocess
import sys
import time
from collections.abc import Callable

import torch
from process_memory import peak_resident_bytes, reset_peak, resident_bytes
from torch import Tensor

from aggregate_po import PolicyBatch, linear_log_probs
from aggregate_po.recipes import grpo

COMPLETIONS = 8
SIDES = ("here", "plain", "liger")


def loss_here(hidden: Tensor, weight: Tensor, ids: Tensor, batch: PolicyBatch) -> Tensor:
    """Compute log-probabilities from hidden states, and the objective."""
    return -grpo()(linear_log_probs(hidden, weight, ids), batch)


def loss_plain(hidden: Tensor, weight: Tensor, ids: Tensor, batch: PolicyBatch) -> Tensor:
    """Compute all logits at once, and the same objective."""
    log_p = torch.log_softmax((hidden @ weight.T).float(), dim=-1)
    return -grpo()(log_p.gather(-1, ids.unsqueeze(-1)).squeeze(-1), batch)


def loss_liger(hidden: Tensor, weight: Tensor, ids: Tensor, batch: PolicyBatch) -> Tensor:
    """Compute the fused loss of Liger."""
    from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

    head = LigerFusedLinearGRPOLoss(beta=0.0, compiled=hidden.is_cuda, use_ref_model=False, loss_type="grpo")
    mask = batch.response_mask.long()
    return head(hidden, weight, ids, mask, batch.advantages, old_per_token_logps=batch.old_log_probs)[0]


def peak_bytes(device: str, work: Callable[[], None]) -> int:
    """Return the peak memory of a function, relative to the memory before it."""
    if device == "cuda":
        torch.cuda.reset_peak_memory_stats()
        before = torch.cuda.memory_allocated()
        work()
        return torch.cuda.max_memory_allocated() - before
    reset_peak()
    before = resident_bytes()
    work()
    return peak_resident_bytes() - before


def measured(side: str, vocabulary: int, width: int, tokens: int, device: str) -> dict[str, float]:
    """Return peak bytes, seconds and loss of the second run in a process; the loss is the same for all sides."""
    generator = torch.Generator().manual_seed(0)
    shape = (COMPLETIONS, tokens // COMPLETIONS)
    dtype = torch.bfloat16 if device == "cuda" else torch.float32
    hidden = torch.randn(*shape, width, generator=generator).to(device, dtype).requires_grad_()
    weight = (torch.randn(vocabulary, width, generator=generator) / width**0.5).to(device, dtype).requires_grad_()
    ids = torch.randint(vocabulary, shape, generator=generator).to(device)
    with torch.no_grad():
        old = linear_log_probs(hidden, weight, ids) + 0.1 * torch.randn(shape, generator=generator).to(device)
    advantages = torch.randn(COMPLETIONS, generator=generator).to(device)
    batch = PolicyBatch(old, torch.ones(shape, dtype=torch.bool, device=device), advantages)
    losses: list[float] = []

    def work() -> None:
        hidden.grad = weight.grad = None
        loss = globals()[f"loss_{side}"](hidden, weight, ids, batch)
        loss.backward()
        losses.append(loss.item())
        if device == "cuda":
            torch.cuda.synchronize()

    work()
    hidden.grad = weight.grad = None
    peak = peak_bytes(device, work)
    start = time.perf_counter()
    work()
    seconds = time.perf_counter() - start
    assert weight.grad is not None
    return {
        "bytes": peak - weight.numel() * weight.element_size(),
        "seconds": seconds,
        "loss": losses[-1],
        "gradient": weight.grad.float().norm().item(),
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--rounds", type=int, default=5, help="number of runs of each side and vocabulary")
    parser.add_argument("--vocabularies", type=int, nargs="+", default=[32768, 131072])
    parser.add_argument("--width", type=int, default=1024)
    parser.add_argument("--tokens", type=int, default=4096)
    parser.add_argument("--device", choices=["cpu", "cuda"], default="cuda" if torch.cuda.is_available() else "cpu")
    parser.add_argument(
        "--side", choices=SIDES, help="run one side on the first vocabulary only, and print its metrics"
    )
    arguments = parser.parse_args()
    sizes = (arguments.width, arguments.tokens, arguments.device)
    if arguments.side:
        print(json.dumps(measured(arguments.side, arguments.vocabularies[0], *sizes)))
        return
    for vocabulary in arguments.vocabularies:
        runs: dict[str, list[dict[str, float]]] = {side: [] for side in SIDES}
        for _ in range(arguments.rounds):
            for side in SIDES:
                command = [sys.executable, __file__, "--side", side, "--vocabularies", str(vocabulary)]
                command += ["--width", str(arguments.width), "--tokens", str(arguments.tokens)]
                output = subprocess.run(
                    [*command, "--device", arguments.device], check=True, capture_output=True, text=True
                ).stdout
                runs[side].append(json.loads(output.strip().splitlines()[-1]))
        print(f"vocabulary {vocabulary}, width {arguments.width}, {arguments.tokens} tokens, {arguments.device}")
        plain = runs["plain"]
        for side, metrics in runs.items():
            memory = statistics.median(one["bytes"] / other["bytes"] for one, other in zip(metrics, plain, strict=True))
            ratios = [one["seconds"] / other["seconds"] for one, other in zip(metrics, plain, strict=True)]
            seconds, first = statistics.median(one["seconds"] for one in metrics), metrics[0]
            print(
                f"  {side:6} {first['bytes'] / 2**20:8.0f} MiB, {memory:.3f} of plain; {seconds:6.2f} s, "
                f"{statistics.median(ratios):.2f} of plain ({min(ratios):.2f} to {max(ratios):.2f}); "
                f"loss {first['loss']:.6f}, gradient {first['gradient']:.6f}"
            )


if __name__ == "__main__":
    main()
