"""Objectives in TRL's trainer in two processes: differences from TRL's losses, from the whole step, and between ranks.

Run by `torchrun`; the arguments are the folders of the model and of the results.
"""

import json
import sys
from pathlib import Path

import torch
import torch.distributed as dist

from aggregate_po import PolicyBatch
from aggregate_po.recipes import gmpo
from tests.parity.test_trl_trainer import PAIRS, Compared, Perturbed, arguments, config


class WholeStep(Perturbed):
    """Compares the mean gradient of the ranks with that of one batch of all their completions."""

    def __init__(self, *positional, **options):
        super().__init__(*positional, **options)
        self.errors, self.accumulated = [], 0

    def compute_loss(self, model, inputs, *positional, **options):
        loss = super().compute_loss(model, inputs)
        self.accumulated = self.accumulated + self.gradient(loss)
        if self.accelerator.sync_gradients:
            dist.all_reduce(self.accumulated)
            ranks = [None] * dist.get_world_size()
            dist.all_gather_object(ranks, [self._buffered_inputs[number] for number in self._micro_batches])
            parts = [part for rank in ranks for part in rank]
            one = {name: torch.cat([part[name] for part in parts]) for name in inputs if parts[0][name].ndim}
            log_probs = self._evaluated_tokens(model, one)[0]
            batch = PolicyBatch(one["old_per_token_logps"], one["completion_mask"], one["advantages"])
            whole = self.gradient(-self.policy_objective(log_probs, batch))
            mean = self.accumulated / dist.get_world_size()
            self.errors.append(float((mean - whole).abs().max() / whole.abs().max()))
            self.accumulated = 0
        return loss


def main(model, folder):
    """Train two steps twice; each rank writes what it found."""
    pairs = {name: PAIRS[name] for name in ("grpo", "dapo", "gspo")}
    compared = Compared(**arguments(model, config(folder / "compared")), pairs=pairs)
    compared.train()
    whole = WholeStep(**arguments(model, config(folder / "whole")), objective=gmpo())
    whole.train()
    parameters = torch.cat([parameter.detach().double().flatten() for parameter in whole.model.parameters()])
    found = {
        "differences": compared.differences,
        "errors": whole.errors,
        "weights": float(parameters.square().sum()),
        "losses": [row["policy_loss"] for row in whole.state.log_history if "policy_loss" in row],
    }
    (folder / f"rank_{dist.get_rank()}.json").write_text(json.dumps(found))


if __name__ == "__main__":
    main(sys.argv[1], Path(sys.argv[2]))
    dist.destroy_process_group()
