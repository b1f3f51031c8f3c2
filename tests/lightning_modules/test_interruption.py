"""Signals from the start of a process, sent to real processes."""

import os
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest

from lightning_modules import interruption
from lightning_modules.__main__ import main

COMMANDS = {
    "fit": ["fit", "--model.model_name=none"],
    "evaluate": ["evaluate", "none"],
    "plan": ["plan", "--model.model_name=none"],
}
PROGRAM = """
import os, signal, sys, time
from lightning_modules import interruption

with interruption.listening():
    if "later" in sys.argv:
        interruption.interrupt_from_here()
    if "fork" in sys.argv:
        child = os.fork()
        if child:
            sys.exit(os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]))
        os.kill(os.getpid(), signal.SIGTERM)
        time.sleep(60)
    try:
        print("ready", flush=True)
        time.sleep(60)
    finally:
        print("cleaned up", flush=True)
"""


def start(command, **variables):
    environment = {**os.environ, **variables}
    return subprocess.Popen(
        command, env=environment, stdin=subprocess.DEVNULL, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True
    )


def listens(process):
    """Whether the process has a handler of SIGTERM."""
    lines = Path(f"/proc/{process.pid}/status").read_text().splitlines()
    (caught,) = [line.split()[1] for line in lines if line.startswith("SigCgt:")]
    return bool(int(caught, 16) >> (signal.SIGTERM - 1) & 1)


@pytest.mark.parametrize("command", COMMANDS.values(), ids=COMMANDS.keys())
@pytest.mark.parametrize("name", ["SIGTERM", "SIGUSR1", "SIGINT", "SIGUSR2"])
def test_a_signal_during_the_imports_ends_with_a_status_and_a_sentence(command, name):
    process = start([sys.executable, "-m", "lightning_modules", *command])
    while not listens(process):
        time.sleep(0.001)
    process.send_signal(signal.Signals[name])
    output, errors = process.communicate(timeout=300)
    assert process.returncode == 128 + signal.Signals[name]
    assert errors.strip() == f"{name}: ended before there was anything to save; repeat the command."
    assert output == ""


@pytest.mark.parametrize(("options", "cleans_up"), [([], False), (["later"], True)])
def test_a_process_cleans_up_once_there_is_something(options, cleans_up):
    process = start([sys.executable, "-c", PROGRAM, *options])
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    output, errors = process.communicate(timeout=300)
    assert process.returncode != 0
    assert ("cleaned up" in output) == cleans_up
    assert "SIGTERM" in errors


def test_a_forked_child_has_no_handler():
    process = start([sys.executable, "-c", PROGRAM, "fork"])
    _, errors = process.communicate(timeout=300)
    assert process.returncode == 256 - signal.SIGTERM
    assert errors == ""


def test_a_signal_that_is_ignored_stays_ignored():
    """As by `nohup`, or for the background processes of a script."""
    ignoring = "import signal; signal.signal(signal.SIGINT, signal.SIG_IGN)\n" + PROGRAM
    process = start([sys.executable, "-c", ignoring])
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGINT)
    time.sleep(0.2)
    assert process.poll() is None
    process.send_signal(signal.SIGTERM)
    assert process.wait(timeout=60) == 128 + signal.SIGTERM
    process.communicate()


@pytest.mark.parametrize(("variables", "ended"), [({}, False), ({"RANK": "1"}, True)])
def test_a_process_of_the_launcher_is_left_to_rank_zero(variables, ended):
    """Rank 0 may wait for it where it cannot hear of its end; other launchers send every process a signal."""
    process = start([sys.executable, "-c", PROGRAM], LOCAL_RANK="1", **variables)
    assert process.stdout.readline() == "ready\n"
    process.send_signal(signal.SIGTERM)
    time.sleep(0.2)
    assert (process.poll() is not None) == ended
    process.kill()
    process.communicate()


def test_a_command_run_from_python_leaves_the_handlers_of_its_process(monkeypatch, capsys):
    """A Ctrl-C after a command in a notebook would otherwise end the kernel."""
    before = {number: signal.getsignal(number) for number in signal.valid_signals()}
    monkeypatch.setattr(sys, "argv", ["aggregate-po", "fit", "--help"])
    with pytest.raises(SystemExit):
        main()
    assert "--trainer" in capsys.readouterr().out
    assert {number: signal.getsignal(number) for number in before} == before


def test_the_handlers_are_restored_after_a_command_that_cleans_up():
    before = signal.getsignal(signal.SIGTERM)
    with interruption.listening():
        interruption.interrupt_from_here()
        with pytest.raises(interruption.Interruption, match="SIGTERM"):
            signal.raise_signal(signal.SIGTERM)
        assert interruption.interruption() == signal.SIGTERM
    assert signal.getsignal(signal.SIGTERM) == before
