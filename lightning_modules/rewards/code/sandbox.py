"""Program of a process that runs code and its tests within limits, and writes a token if all of them pass.

It is started as a script by `python -I` in an empty folder, with an empty environment. The settings arrive on standard
input, and the answers leave on another file descriptor: first "+" or "-", whether the process has namespaces of its
own, then the token.
"""

import ctypes
import json
import os
import resource
import signal
import sys
from typing import Any

_PR_SET_PDEATHSIG = 1
_NEW_USER, _NEW_PROCESSES, _NEW_NETWORK = 0x10000000, 0x20000000, 0x40000000


def main() -> None:
    """Isolate the process, run the code and its tests, and write the token."""
    answers = int(sys.argv[1])
    settings = json.loads(sys.stdin.buffer.read())
    os.dup2(os.open(os.devnull, os.O_RDONLY), 0)
    isolated = _isolate()
    os.write(answers, b"+" if isolated else b"-")
    if isolated:
        _go_on_in_child()  # the first process of the namespace: if it ends, all end
        _go_on_in_child()  # to which signals from within the namespace do nothing, so that another runs the code
    _limit(settings)
    names: dict[str, Any] = {"__name__": "solution"}
    for number, text in enumerate([settings["code"], *settings["tests"]]):
        exec(compile(text, "solution" if number == 0 else f"test {number}", "exec"), names)
    os.write(answers, settings["token"].encode())


def _isolate() -> bool:
    """Move to namespaces without network and without the processes of the machine; False if the system refuses."""
    _end_with_parent()
    try:
        return bool(ctypes.CDLL(None).unshare(_NEW_USER | _NEW_PROCESSES | _NEW_NETWORK) == 0)
    except (AttributeError, OSError):  # not on Linux
        return False


def _go_on_in_child() -> None:
    """Return in a child of this process, which ends with it."""
    if child := os.fork():
        os.waitpid(child, 0)
        os._exit(0)
    _end_with_parent()


def _end_with_parent() -> None:
    try:
        ctypes.CDLL(None).prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    except (AttributeError, OSError):  # not on Linux
        return


def _limit(settings: dict[str, Any]) -> None:
    """Limit processor time, memory, the size of files, and the number of further processes."""
    limits = {
        resource.RLIMIT_CPU: settings["seconds"],
        resource.RLIMIT_AS: settings["memory"],
        resource.RLIMIT_FSIZE: settings["file_size"],
        resource.RLIMIT_CORE: 0,
        resource.RLIMIT_NPROC: 0,
    }
    for kind, limit in limits.items():
        hard = resource.getrlimit(kind)[1]
        limit = limit if hard == resource.RLIM_INFINITY else min(limit, hard)
        resource.setrlimit(kind, (limit, limit))


if __name__ == "__main__":
    main()
