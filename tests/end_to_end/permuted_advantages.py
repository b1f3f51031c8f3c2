"""Control experiment: the same run with advantages that are independent of the completions."""

import torch
from lightning import Callback


class PermutedAdvantages(Callback):
    """Permutes the advantages at random within each group, just before they are used."""

    def __init__(self, seed: int = 0) -> None:
        self._generator = torch.Generator().manual_seed(seed)

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx) -> None:
        """See the class."""
        for prompt in batch.prompt_of.unique():
            rows = (batch.prompt_of == prompt).nonzero().squeeze(-1)
            order = torch.randperm(len(rows), generator=self._generator)
            batch.policy.advantages[rows] = batch.policy.advantages[rows[order]]
