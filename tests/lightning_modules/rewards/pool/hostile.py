"""Rewards that do what a reward must not do."""

import ctypes
import os
import re
import signal
import sys
import time
import zlib


def reward(completion, example):
    """Do what the completion says, or return the number of its characters."""
    actions = {
        "loop": loop,
        "sleep": lambda: time.sleep(1000),
        "backtrack": lambda: re.match(r"(a+)+$", "a" * 60 + "b"),
        "exit": lambda: os._exit(0),
        "system exit": lambda: sys.exit(0),
        "segmentation fault": lambda: ctypes.string_at(0),
        "signal": lambda: os.kill(os.getpid(), signal.SIGTERM),
        "close": lambda: os.closerange(0, 256),
        "memory": lambda: bytearray(1 << 40),
        "growth": grow,
        "exception": lambda: [][0],
    }
    values = {"nan": float("nan"), "infinity": float("inf"), "text": "1", "nothing": None}
    if completion in values:
        return values[completion]
    if completion in actions:
        actions[completion]()
    if completion == "print":
        print('{"value": 7}\n' * 10_000)
    return len(completion)


def busy(completion, example):
    """Compute for about a fifth of a second of processor time."""
    started = time.thread_time()
    while time.thread_time() - started < 0.2:
        pass
    return 1


def child(completion, example):
    """Start a process that would outlive the verdict, and write its number to the file that the completion names."""
    if (pid := os.fork()) == 0:
        time.sleep(1000)
    with open(completion, "w", encoding="ascii") as file:
        file.write(str(pid))
    time.sleep(1000)


def loop():
    """Compute for ever."""
    while True:
        pass


def grow():
    """Use more and more memory."""
    blocks = []
    while True:
        blocks.append(bytearray(1 << 24))


def own_verdict(completion, example):
    """Return a verdict, without a value for one text."""
    from lightning_modules.rewards.verdict import Verdict

    return Verdict(None, "connection", "no judge") if completion == "none" else Verdict(float(len(completion)))


def moody(completion, example):
    """Return a number that depends on the text, or fail by it; a prompt may say to write its process and sleep."""
    if "file" in example:
        with open(example["file"], "a", encoding="ascii") as file:
            file.write(f"{os.getpid()}\n")
        time.sleep(1000)
    value = zlib.crc32((example["prompt"] + completion).encode()) % 5
    if value == 1:
        raise ArithmeticError
    if value == 2:
        os._exit(3)
    return value / 4
