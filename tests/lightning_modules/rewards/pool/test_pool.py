"""Rewards in processes that can be killed."""

import multiprocessing
import os
import pickle
import signal
import subprocess
import sys
import threading
import time
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from lightning_modules.rewards.pool import RewardPool
from tests.lightning_modules.rewards.pool import hostile

HOSTILE = {
    "loop": "time",
    "sleep": "time",
    "backtrack": "time",
    "exit": "exit",
    "system exit": "exit",
    "segmentation fault": "exit",
    "signal": "exit",
    "close": "exit",
    "memory": "memory",
    "growth": "memory",
    "exception": "exception",
    "nan": "value",
    "infinity": "value",
    "text": "value",
    "nothing": "value",
}


def scored(pool, completions):
    return pool(completions, [{}] * len(completions))


def workers(pool):
    """The workers of a pool that are alive."""
    return [psutil.Process(process._process.pid) for process in pool._processes if process._process.poll() is None]


@pytest.fixture(scope="module")
def pool():
    with RewardPool(hostile.reward, workers=2, limit=0.5, memory=1 << 28) as pool:
        yield pool


def test_verdicts_are_in_the_order_of_the_completions(pool):
    completions = ["x" * (number % 7) for number in range(200)]
    assert [verdict.value for verdict in scored(pool, completions)] == [number % 7 for number in range(200)]
    assert scored(pool, []) == []


@pytest.mark.parametrize("completion", HOSTILE)
def test_a_hostile_completion_costs_its_own_verdict(pool, completion):
    verdicts = scored(pool, ["honest", completion, "verdict"])
    assert [verdict.value for verdict in verdicts] == [6, None, 7]
    assert verdicts[1].cause == HOSTILE[completion]
    assert verdicts[1].detail


def test_a_thousand_completions_lose_the_hostile_ones_alone(pool):
    completions = ["honest"] * 1000
    for place, completion in enumerate(HOSTILE):
        completions[place * 61 + 7] = completion
    verdicts = scored(pool, completions)
    causes = [verdict.cause for verdict in verdicts if verdict.cause is not None]
    assert causes == list(HOSTILE.values())
    assert [verdict.value for verdict in verdicts].count(6) == 1000 - len(HOSTILE)


@pytest.mark.parametrize("completion", ["\ud800", "\0", "", "x" * 3_000_000, "\n", '{"value": 1}\n'])
def test_any_text_arrives(pool, completion):
    assert scored(pool, [completion])[0].value == len(completion)


def test_output_of_a_reward_is_no_verdict(pool):
    assert [verdict.value for verdict in scored(pool, ["print", "abc"])] == [5, 3]


def test_time_in_which_a_worker_waits_for_a_processor_is_not_counted():
    burners = [subprocess.Popen([sys.executable, "-c", "while True: pass"]) for _ in range(8)]
    try:
        with RewardPool(hostile.busy, workers=4, limit=1.0) as pool:
            started = time.monotonic()
            verdicts = scored(pool, ["honest"] * 12)
            seconds = time.monotonic() - started
    finally:
        for burner in burners:
            burner.kill()
    assert {verdict.value for verdict in verdicts} == {1}
    assert seconds > 12 * 0.2 / 4  # on fewer processors than processes some have waited


def test_what_a_reward_has_started_is_killed_with_it(tmp_path):
    with RewardPool(hostile.child, workers=1, limit=0.5) as pool:
        (verdict,) = scored(pool, [str(tmp_path / "pid")])
    assert verdict.cause == "time"
    _, alive = psutil.wait_procs([*children_named(tmp_path / "pid")], timeout=5)
    assert alive == []


def children_named(path):
    with suppress(psutil.NoSuchProcess):
        yield psutil.Process(int(path.read_text(encoding="ascii")))


def test_nothing_is_left_of_a_pool():
    with RewardPool(hostile.reward) as pool:
        scored(pool, ["a", "b"])
        alive = workers(pool)
        assert len(alive) == 2
    assert not any(process.is_running() for process in alive)
    assert scored(pool, ["abc"])[0].value == 3  # it starts again
    pool.close()


SCRIPT = """
import os, signal, time
from lightning_modules.rewards.pool import RewardPool
from tests.lightning_modules.rewards.pool import hostile
pool = RewardPool(hostile.reward, workers=2, limit={limit})
pool(["a", "b"], [{{}}] * 2)
print(*[process._process.pid for process in pool._processes], flush=True)
if {fork} and os.fork() == 0:  # it has a copy of the pipes
    print(os.getpid(), flush=True)
    time.sleep(60)
    os._exit(0)
pool({last!r}, [{{}}] * 2)
"""


@pytest.mark.parametrize(("last", "limit", "fork"), [(["sleep"] * 2, 1000, True), (["loop"] * 2, 3, False)])
def test_no_worker_outlives_a_killed_parent(last, limit, fork):
    root = Path(__file__).resolve().parents[4]
    script = SCRIPT.format(last=last, limit=limit, fork=fork)
    parent = subprocess.Popen([sys.executable, "-c", script], stdout=subprocess.PIPE, text=True, cwd=root)
    assert parent.stdout is not None
    workers = [psutil.Process(int(pid)) for pid in parent.stdout.readline().split()]
    assert len(workers) == 2
    forked = [psutil.Process(int(parent.stdout.readline()))] if fork else []
    time.sleep(0.5)
    parent.kill()
    parent.wait()
    _, alive = psutil.wait_procs(workers, timeout=20)
    assert alive == []
    for process in forked:
        assert process.is_running()
        process.kill()


def test_a_fork_has_workers_of_its_own(pool):
    scored(pool, ["a", "b"])
    before = workers(pool)

    def child(answers):
        answers.put([verdict.value for verdict in scored(pool, ["abc", "exit"])])

    context = multiprocessing.get_context("fork")
    answers = context.SimpleQueue()
    process = context.Process(target=child, args=(answers,))
    process.start()
    assert answers.get() == [3, None]
    process.join()
    assert all(process.is_running() for process in before)
    assert [verdict.value for verdict in scored(pool, ["abc", "ab"])] == [3, 2]


def test_a_fork_while_another_thread_waits_for_verdicts_can_score():
    """The lock of that thread is held for ever in the child, which has no such thread."""
    with RewardPool(hostile.reward, workers=1, limit=5.0) as own:
        scored(own, ["a"])
        waiting = threading.Thread(target=scored, args=(own, ["sleep"]))
        waiting.start()
        while not own._lock.locked():
            time.sleep(0.01)
        if (pid := os.fork()) == 0:
            signal.alarm(60)
            try:
                os._exit(scored(own, ["abc"])[0].value == 3)
            finally:  # an error, after which this process must not go on with the tests
                os._exit(2)
        assert os.waitstatus_to_exitcode(os.waitpid(pid, 0)[1]) == 1
        waiting.join()


def test_a_reward_whose_module_never_finishes_loading_is_an_error(tmp_path, monkeypatch):
    (tmp_path / "endless.py").write_text(
        "import sys, time\nif 'pytest' not in sys.modules: time.sleep(1000)\ndef reward(text, example): return 1.0\n"
    )
    monkeypatch.syspath_prepend(tmp_path)
    monkeypatch.setattr("lightning_modules.rewards.pool.pool._START_LIMIT", 2.0)
    from endless import reward

    with RewardPool(reward) as own:
        with pytest.raises(RuntimeError, match=r"has not loaded the reward .* within 2 s; its module must not wait"):
            scored(own, ["a"])
        assert own._processes == []


def test_a_copy_has_the_settings_and_workers_of_its_own(pool):
    copy = pickle.loads(pickle.dumps(pool))
    with copy:
        assert (copy.workers, copy.limit, copy.memory) == (pool.workers, pool.limit, pool.memory)
        assert scored(copy, ["abc"])[0].value == 3


def test_a_worker_that_was_killed_between_two_calls_is_replaced(pool):
    scored(pool, ["a"] * 4)
    for process in workers(pool):
        os.kill(process.pid, signal.SIGKILL)
    assert [verdict.value for verdict in scored(pool, ["abc"] * 50)] == [3] * 50


def test_threads_take_turns(pool):
    results = {}

    def call(number):
        results[number] = [verdict.value for verdict in scored(pool, ["x" * number] * 20)]

    threads = [threading.Thread(target=call, args=(number,)) for number in range(1, 6)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert results == {number: [number] * 20 for number in range(1, 6)}


def test_an_interrupted_call_leaves_nothing_to_the_next():
    with RewardPool(hostile.reward, limit=60) as pool:
        scored(pool, ["a", "b"])
        timer = threading.Timer(0.5, os.kill, [os.getpid(), signal.SIGINT])
        timer.start()
        with pytest.raises(KeyboardInterrupt):
            scored(pool, ["sleep", "a", "sleep"])
        assert [verdict.value for verdict in scored(pool, ["abc", "ab"])] == [3, 2]


def broken_to_load():
    raise ImportError("not here")


class Unloadable:
    def __call__(self, completion, example):
        return 0

    def __reduce__(self):
        return broken_to_load, ()


def test_a_reward_that_no_worker_can_load_is_an_error():
    with RewardPool(Unloadable(), workers=1) as pool, pytest.raises(RuntimeError, match="before it had loaded"):
        scored(pool, ["x"])


@pytest.mark.parametrize(
    ("arguments", "error", "message"),
    [
        ({"reward": 3}, TypeError, "`reward` is 3"),
        ({"reward": lambda completion, example: 1}, TypeError, "cannot be sent to another process"),
        ({"workers": 0}, ValueError, "`workers` is 0"),
        ({"limit": 0}, ValueError, "`limit` is 0"),
        ({"limit": float("nan")}, ValueError, "`limit` is nan"),
        ({"limit": float("inf")}, ValueError, "`limit` is inf"),
        ({"memory": 5}, ValueError, "`memory` is 5 bytes"),
    ],
)
def test_bad_arguments_are_refused(arguments, error, message):
    with pytest.raises(error, match=message):
        RewardPool(**{"reward": hostile.reward, **arguments})


def test_a_reward_may_say_itself_that_it_failed():
    with RewardPool(hostile.own_verdict, workers=1) as pool:
        first, second = scored(pool, ["none", "ab"])
    assert (first.value, first.cause, first.detail) == (None, "connection", "no judge")
    assert second.value == 2
