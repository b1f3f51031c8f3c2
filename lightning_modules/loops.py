"""Counters of Lightning's loops, set to a position in the rollouts."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any, Protocol, runtime_checkable

from lightning import Trainer
from lightning.pytorch.utilities import rank_zero_warn


@runtime_checkable
class HasPosition(Protocol):
    """A data module that knows the position of a run in its rollouts."""

    def position(self, checkpoint: Mapping[str, Any] | None = None) -> tuple[int, int]:
        """Return the number of rollouts that are used up, and of micro-batches of the next one that are.

        Args:
            checkpoint: checkpoint whose position is returned; that of this run when None.
        """


def align_checkpoint(checkpoint: dict[str, Any], trainer: Trainer) -> None:
    """Set the counters of Lightning's loops in a checkpoint to its position in the rollouts, to train further."""
    data = trainer.datamodule  # type: ignore[attr-defined]
    if trainer.training and isinstance(data, HasPosition):
        sizes = checkpoint["global_step"], trainer.accumulate_grad_batches
        loops = checkpoint["loops"]
        loops["fit_loop"] = aligned_loops(loops["fit_loop"], *data.position(checkpoint), *sizes)


def continue_run(trainer: Trainer, rollouts: int, batches: int) -> None:
    """Set the counters of the loops of a trainer that continues its own run, for which Lightning begins a new epoch.

    Lightning makes a new optimizer in each `fit`, which a warning says.

    Args:
        trainer: trainer at the beginning of another `fit`.
        rollouts: number of rollouts that are used up.
        batches: number of micro-batches of the next rollout that are used up.
    """
    step = trainer.global_step
    loops = aligned_loops(trainer.fit_loop.state_dict(), rollouts, batches, step, trainer.accumulate_grad_batches)
    trainer.fit_loop.load_state_dict(loops)
    if trainer.ckpt_path is None:
        rank_zero_warn(
            f"`fit` goes on at step {step} with a new optimizer, as Lightning makes one in each `fit`; pass "
            "`ckpt_path` to go on with the state of the old one."
        )


def aligned_loops(
    loops: dict[str, Any], rollouts: int, batches: int, optimizer_steps: int, batches_per_update: int
) -> dict[str, Any]:
    """Return the state of Lightning's `fit_loop` at a position in the rollouts, whatever its counters were.

    Lightning counts on within a hook: the counters that it saves, and what it does with them after a resume, depend on
    the hook that saves. The state returned is that of a checkpoint which is saved at the end of a micro-batch, before
    that counts as completed. Between two rollouts it is that of a checkpoint at the start of an epoch.

    Args:
        loops: state of the `fit_loop`.
        rollouts: number of rollouts that are used up, each an epoch.
        batches: number of micro-batches of the next rollout that are used up.
        optimizer_steps: number of optimizer steps so far.
        batches_per_update: number of micro-batches of an optimizer step.
    """
    total = optimizer_steps * batches_per_update
    epoch = {"ready": rollouts + 1, "started": rollouts + (batches > 0), "processed": rollouts, "completed": rollouts}
    nothing = {"ready": 0, "started": 0, "processed": 0, "completed": 0}
    own = {**loops["epoch_loop.state_dict"], "_batches_that_stepped": optimizer_steps - 1}  # Lightning adds 1
    return {
        **loops,
        "epoch_progress": {"total": epoch, "current": epoch},
        "epoch_loop.state_dict": own,
        "epoch_loop.batch_progress": {
            "total": _within_hook(total),
            "current": _within_hook(batches),
            "is_last_batch": False,
        },
        "epoch_loop.val_loop.batch_progress": {"total": nothing, "current": nothing, "is_last_batch": False},
    }


def _within_hook(count: int) -> dict[str, int]:
    return {"ready": count, "started": count, "processed": count, "completed": count - 1}
