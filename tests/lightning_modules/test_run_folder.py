"""The lock of a run folder, between real processes."""

import os
import signal
import subprocess
import sys
import time
from contextlib import suppress

import pytest

from lightning_modules.run_folder import lock_run_folder

HOLDER = """
import multiprocessing, sys, time
from lightning_modules.run_folder import lock_run_folder

lock_run_folder(sys.argv[1])
if sys.argv[2:] == ["fork"]:  # a child that outlives this process
    child = multiprocessing.get_context("fork").Process(target=time.sleep, args=(600,))
    child.start()
    print(child.pid, flush=True)
elif sys.argv[2:] == ["again"]:
    lock_run_folder(sys.argv[1])
    print("again", flush=True)
elif sys.argv[2:] == ["spawn"]:  # rank 0 of a launcher that spawns its processes
    if __name__ == "__main__":
        context = multiprocessing.get_context("spawn")
        child = context.Process(target=lock_run_folder, args=(sys.argv[1],))
        child.start()
        child.join()
        print(child.exitcode, flush=True)
else:
    print("locked", flush=True)
time.sleep(600)
"""


@pytest.fixture
def holder(tmp_path):
    """Start a process that locks the run folder, and return it with its first line."""
    processes = []

    def start(*options):
        command = [sys.executable, "-c", HOLDER, str(tmp_path / "run"), *options]
        processes.append(subprocess.Popen(command, stdout=subprocess.PIPE, text=True))
        return processes[-1], processes[-1].stdout.readline().strip()

    yield start
    for process in processes:
        process.kill()
        process.wait()
        process.stdout.close()


def test_a_second_process_is_refused_by_name_until_the_first_is_killed(tmp_path, holder):
    first, _ = holder()
    with pytest.raises(ValueError, match=rf"run', where another process is running \(process {first.pid} on .*wait"):
        lock_run_folder(tmp_path / "run")
    first.kill()
    first.wait()
    lock_run_folder(tmp_path / "run")
    assert f"process {os.getpid()} on " in (tmp_path / "run" / ".lock").read_text()


def test_another_path_to_the_same_folder_is_the_same_folder(tmp_path, holder):
    holder()
    (tmp_path / "link").symlink_to("run")
    with pytest.raises(ValueError, match="another process is running"):
        lock_run_folder(tmp_path / "link")


def test_one_process_may_lock_a_folder_twice(tmp_path, holder):
    assert holder("again")[1] == "again"
    with pytest.raises(ValueError, match="another process is running"):
        lock_run_folder(tmp_path / "run")


def test_a_forked_child_does_not_keep_the_lock_of_a_killed_process(tmp_path, holder):
    first, child = holder("fork")
    try:
        first.kill()
        first.wait()
        for _ in range(500):  # the child may not have run yet since it was forked
            with suppress(ValueError):
                lock_run_folder(tmp_path / "run")
                break
            time.sleep(0.01)
        else:
            pytest.fail("the child keeps the lock")
    finally:
        os.kill(int(child), signal.SIGKILL)


def test_a_child_of_the_process_that_holds_the_lock_is_of_the_same_run(holder):
    assert holder("spawn")[1] == "0"


def test_a_folder_that_cannot_be_locked_is_a_warning(tmp_path, monkeypatch):
    def unsupported(*arguments):
        raise OSError(95, "Operation not supported")

    monkeypatch.setattr("fcntl.flock", unsupported)
    with pytest.warns(UserWarning, match="cannot be locked .*Operation not supported"):
        lock_run_folder(tmp_path)
