"""Reward of code that passes the tests of its example."""

from __future__ import annotations

import json
import math
import os
import re
import secrets
import signal
import subprocess
import sys
import tempfile
import warnings
from collections.abc import Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from pathlib import Path

from typing_extensions import override

from lightning_modules.prompts import Example
from lightning_modules.rewards.batch import BatchReward
from lightning_modules.rewards.code import sandbox
from lightning_modules.rewards.code.tests import tests_of
from lightning_modules.validation import require_at_least

# A block of any language, so that its last line is not taken for the first one of the next.
_BLOCK = re.compile(r"^([ \t]*)```[ \t]*([^\s`]*)[^\n`]*\n(.*?)^\1```[ \t\r]*$", re.DOTALL | re.MULTILINE)
_PYTHON = ("", "python", "python3", "py")
# OpenBLAS and others start a thread for each core when they are imported, and threads count as processes.
_ONE_THREAD = {"OMP_NUM_THREADS": "1", "OPENBLAS_NUM_THREADS": "1", "MKL_NUM_THREADS": "1"}
_FILE_SIZE = 10 << 20  # bytes of a file that the code writes


class CodeReward(BatchReward):
    """Reward of 1 for a completion whose last code block passes all tests of its example, and 0 otherwise.

    The tests are Python code that follows the completion's, such as `assert solve(2) == 4`; an exception or an exit is
    a failure. Each completion runs in a process of its own: `python -I` in an empty folder, without the environment
    variables of the training, with limits on processor time, memory and size of files, without further processes or
    threads unless the user is root, and killed at its time limit. Numerical libraries have one thread. Where the system
    allows user namespaces, as most Linux systems do, the process has no network and sees no other one; otherwise a
    warning says so. This keeps mistakes away, not attacks: the code can read what the user can read, and code that
    searches its own process can forge a success. Train on untrusted tasks in a container or a virtual machine.

    Args:
        tests_field: Name of the example's field with the tests: a text, or a list of texts that run one after another.
        workers: Number of processes at the same time.
        limit: Time limit of a completion in seconds of processor time, rounded up; three times as long on the clock.
        memory: Memory of a process in bytes.

    Raises:
        ValueError: a number is out of its range; or, when called, an example has no such field, or no tests in it:
            neither a text nor a list of texts, a text that is not Python code, or code without a call or an assertion.
        RuntimeError: when called, if the process cannot be started.
    """

    def __init__(self, tests_field: str = "tests", workers: int = 2, limit: float = 5.0, memory: int = 1 << 30) -> None:
        require_at_least(1, workers=workers)
        if not 0 < limit < math.inf:
            raise ValueError(f"`limit` is {limit}; pass a positive number of seconds.")
        if memory < 1 << 26:
            raise ValueError(f"`memory` is {memory} bytes; pass at least 64 MiB, 1 << 26.")
        self.tests_field = tests_field
        self.workers = workers
        self.limit = limit
        self.memory = memory
        self._warned = False

    @override
    def __call__(self, completions: Sequence[str], examples: Sequence[Example]) -> list[float]:
        with ThreadPoolExecutor(self.workers) as threads:
            return list(threads.map(self._reward, completions, examples))

    def _reward(self, completion: str, example: Example) -> float:
        tests = tests_of(example, self.tests_field)
        code = last_code_block(completion)
        if code is None:
            return 0.0
        token = secrets.token_hex(16)
        content = {
            "code": code,
            "tests": tests,
            "token": token,
            "seconds": math.ceil(self.limit),
            "memory": self.memory,
            "file_size": _FILE_SIZE,
        }
        answer = self._run(json.dumps(content))
        if not answer:
            raise RuntimeError("the sandbox did not start; see its traceback above.")
        if answer.startswith("-") and not self._warned:
            self._warned = True
            warnings.warn(
                "the system allows no user namespaces, so code runs with the network of this machine; train in a "
                "container without one.",
                stacklevel=2,
            )
        return float(answer[1:] == token)

    def _run(self, content: str) -> str:
        """Run the sandbox, and return what it has answered until it ended or was killed."""
        reading, writing = os.pipe()
        with tempfile.TemporaryDirectory(prefix="aggregate_po_code_") as folder, os.fdopen(reading) as answers:
            process = subprocess.Popen(
                [sys.executable, "-I", str(Path(sandbox.__file__)), str(writing)],
                stdin=subprocess.PIPE,
                stdout=subprocess.DEVNULL,
                stderr=subprocess.DEVNULL,
                cwd=folder,
                env=_ONE_THREAD,
                pass_fds=(writing,),
                start_new_session=True,
                text=True,
            )
            os.close(writing)
            with suppress(subprocess.TimeoutExpired, BrokenPipeError):
                process.communicate(content, timeout=3 * self.limit)
            with suppress(ProcessLookupError):
                os.killpg(process.pid, signal.SIGKILL)  # also what the code has started
            process.wait()
            os.set_blocking(answers.fileno(), False)  # a process that has left the group may hold the other end
            return answers.read() or ""


def last_code_block(completion: str) -> str | None:
    """Return the last block between lines of three backticks, in Python or without a language, or None."""
    blocks = [(indent, code) for indent, language, code in _BLOCK.findall(completion) if language.lower() in _PYTHON]
    if not blocks:
        return None
    indent, code = blocks[-1]
    return re.sub(rf"^{indent}", "", code, flags=re.MULTILINE)  # a block in a list has the blanks of its item
