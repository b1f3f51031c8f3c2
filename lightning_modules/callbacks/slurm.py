"""Requeueing of the SLURM job that this process belongs to."""

from __future__ import annotations

import os
import subprocess

from lightning.pytorch.utilities import rank_zero_warn


def requeue() -> bool:
    """Queue the SLURM job of this process again, and return whether that was done."""
    job = os.environ.get("SLURM_JOB_ID")
    if job is None:
        return False
    try:
        result = subprocess.run(["scontrol", "requeue", job], capture_output=True, text=True, check=False)
        failure = (result.stderr.strip() or f"exit status {result.returncode}") if result.returncode else None
    except FileNotFoundError as error:
        failure = str(error)
    if failure:
        rank_zero_warn(f"SLURM job {job} could not be requeued: {failure}")
    return failure is None
