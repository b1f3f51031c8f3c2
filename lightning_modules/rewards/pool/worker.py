"""Program of a worker process: it scores one completion after another, each within limits of time and memory.

It is started as a script and imports little but the standard library and the reward's own module, so that it starts in
a fraction of the time that the training process needs. Tasks arrive on standard input, verdicts leave on another
file descriptor; what a reward prints goes to standard error.
"""

import json
import os
import pickle
import queue
import resource
import signal
import struct
import sys
import threading
import time
from typing import IO, Any

HEADER = struct.Struct("!Q")
_LOOK_AT_PARENT = 1.0  # seconds between two looks


def main() -> None:
    """Load the reward, then score tasks until standard input ends."""
    answers = os.fdopen(int(sys.argv[1]), "w", encoding="utf-8", buffering=1)
    stream = os.fdopen(os.dup(0), "rb")
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)  # a reward that reads its input finds the end of the file
    os.dup2(2, 1)
    tasks: queue.SimpleQueue[bytes] = queue.SimpleQueue()
    settings = pickle.loads(_message(stream) or b"")
    sys.path[:] = settings["path"]
    reward = pickle.loads(settings["reward"])
    _limit_memory(settings["memory"])
    threading.Thread(target=_receive, args=(stream, tasks), daemon=True).start()
    threading.Thread(target=_end_with, args=(settings["parent"],), daemon=True).start()
    _say(answers, {"ready": True})
    while True:
        completion, example = pickle.loads(tasks.get())
        _say(answers, {"begun": True})
        # The signal of this timer ends the process, also within a call that never returns to Python. It stays armed
        # between verdicts, for threads that a reward has left behind.
        signal.signal(signal.SIGPROF, signal.SIG_DFL)
        signal.setitimer(signal.ITIMER_PROF, settings["limit"])
        _say(answers, _verdict(reward, completion, example))


def _verdict(reward: Any, completion: str, example: dict[str, Any]) -> dict[str, Any]:
    from lightning_modules.rewards.values import finite_number  # found on the module search path of the parent
    from lightning_modules.rewards.verdict import Verdict

    try:
        value = reward(completion, example)
    except MemoryError as error:
        return {"cause": "memory", "detail": repr(error)[:500]}
    except SystemExit as error:
        return {"cause": "exit", "detail": repr(error)[:500]}
    except BaseException as error:
        return {"cause": "exception", "detail": repr(error)[:500]}
    if isinstance(value, Verdict) and value.value is None and value.cause is not None:
        return {"cause": value.cause, "detail": value.detail[:500]}
    try:
        return {"value": finite_number(value.value if isinstance(value, Verdict) else value)}
    except ValueError as error:
        return {"cause": "value", "detail": str(error)}


def _say(answers: IO[str], message: dict[str, Any]) -> None:
    answers.write(json.dumps(message) + "\n")


def _receive(stream: IO[bytes], tasks: "queue.SimpleQueue[bytes]") -> None:
    """Put tasks into the queue; the end of the stream is the end of the parent, and of this process's group."""
    while (message := _message(stream)) is not None:
        tasks.put(message)
    os.killpg(0, signal.SIGKILL)


def _end_with(parent: int) -> None:
    """End this process's group when its parent has ended, also if a process that the parent forked lives on."""
    while os.getppid() == parent:
        time.sleep(_LOOK_AT_PARENT)
    os.killpg(0, signal.SIGKILL)


def _message(stream: IO[bytes]) -> bytes | None:
    header = stream.read(HEADER.size)
    return stream.read(HEADER.unpack(header)[0]) if len(header) == HEADER.size else None


def _limit_memory(more: int) -> None:
    """Limit the address space to `more` bytes above its present size."""
    try:
        with open("/proc/self/statm", encoding="ascii") as file:
            present = int(file.read().split()[0]) * resource.getpagesize()
    except OSError:  # not on Linux, where such a limit may not exist either
        return
    resource.setrlimit(resource.RLIMIT_AS, (present + more, present + more))


if __name__ == "__main__":
    main()
