"""Rewards for tests of evaluations, importable by worker processes, which load nothing else."""

import os
import time
import zlib


def parity(completion, example):
    """Right or wrong by the characters of the completion."""
    return float(zlib.crc32((example["prompt"] + completion).encode()) % 2)


def slow_parity(completion, example):
    time.sleep(0.02)
    return parity(completion, example)


def hostile(completion, example):
    """Fails on one problem in two ways, and is right otherwise."""
    if example["answer"] == "2":
        if len(completion) % 2:
            os._exit(3)
        raise ValueError("no verdict")
    return 1.0


def excessive(completion, example):
    return 2.0
