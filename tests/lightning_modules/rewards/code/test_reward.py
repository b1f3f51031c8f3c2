"""Code that passes tests: verdicts, limits, and what the sandbox keeps away."""

import ctypes
import os
import time

import psutil
import pytest

from lightning_modules.rewards import CodeReward, WeightedRewards, last_code_block

TESTS = ["assert square(3) == 9", "assert square(-2) == 4"]
RIGHT = "def square(x):\n    return x * x"


def block(code):
    return f"Here it is:\n```python\n{code}\n```\nDone."


def rewards(*codes, tests=TESTS, **options):
    return CodeReward(**options)([block(code) for code in codes], [{"tests": tests}] * len(codes))


def isolated():
    """Whether this system allows user namespaces."""
    if (pid := os.fork()) == 0:
        os._exit(0 if ctypes.CDLL(None).unshare(0x70000000) == 0 else 1)
    return os.waitpid(pid, 0)[1] == 0


HERE = isolated()
needs_namespaces = pytest.mark.skipif(not HERE, reason="the system allows no user namespaces")
pytestmark = pytest.mark.filterwarnings("ignore:the system allows no user namespaces")


@pytest.mark.parametrize(
    ("completion", "code"),
    [
        ("```python\na\n```", "a\n"),
        ("```\na\n```\n```py\nb\n```", "b\n"),
        ("text ```python\na\n```", None),
        ("```json\n{}\n```", None),
        ("```bash\npip install numpy\n```\nthen\n```python\na\n```", "a\n"),
        ("```python\na\n```\nthen\n```bash\npython a.py\n```", "a\n"),
        ("```Python title=a.py\na\n```", "a\n"),
        ("```python\r\na\r\n```\r\nDone.", "a\r\n"),
        ("```text\n```\nprose\n```\na\n``` \n", "a\n"),
        ("1. So:\n   ```python\n   def f():\n       return 1\n   ```\n", "def f():\n    return 1\n"),
        ('```python\n"""Use:\n    ```\n    f()\n    ```\n"""\n```', '"""Use:\n    ```\n    f()\n    ```\n"""\n'),
        ("```python\na", None),
        ("a", None),
    ],
)
def test_the_last_block_of_code_counts(completion, code):
    assert last_code_block(completion) == code


def test_code_that_passes_all_tests_is_right():
    wrong = "def square(x):\n    return 9"
    assert rewards(RIGHT, wrong, "def square(x:", "", "raise SystemExit(0)", RIGHT) == [1.0, 0, 0, 0, 0, 1.0]
    assert rewards(RIGHT, wrong, tests=TESTS[0]) == [1.0, 1.0]
    assert CodeReward()(["no code"], [{"tests": TESTS}]) == [0.0]


def test_numerical_libraries_have_one_thread():
    """Threads count as processes, which the sandbox forbids to every user but root."""
    code = "import numpy\nstatus = open('/proc/self/status').read()"
    assert rewards(code, tests="assert 'Threads:\\t1\\n' in status") == [1.0]


def test_the_main_part_of_a_program_is_left_out():
    assert rewards(f"{RIGHT}\nif __name__ == '__main__':\n    print(square(int(input())))") == [1.0]


@pytest.mark.parametrize(
    "code",
    [
        "while True: pass",
        "import time; time.sleep(1000)",
        "x = bytearray(1 << 40)",
        "import os; os._exit(0)",
        "import os, signal; os.kill(0, signal.SIGKILL)",
        "import os, signal; os.kill(os.getpid(), signal.SIGTERM)",
        "import os; os.closerange(0, 1 << 16)",
        "open('large', 'wb').write(b'0' * (20 << 20))",
        "import os; os.environ['HOME']",
        "import os; assert os.listdir('.')",
        "import ctypes; ctypes.string_at(0)",
    ],
)
def test_what_does_not_end_well_is_wrong_and_the_others_are_not(code):
    started = time.monotonic()
    assert rewards(f"{code}\n{RIGHT}", RIGHT, limit=1.0) == [0.0, 1.0]
    assert time.monotonic() - started < 30


@needs_namespaces
def test_there_is_no_network():
    """Not even the one of this machine itself."""
    import socket

    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        socket.create_connection(("127.0.0.1", port)).close()
        code = f"import socket; socket.create_connection(('127.0.0.1', {port}), timeout=1)"
        assert rewards(code, tests="print()") == [0.0]


@needs_namespaces
def test_what_the_code_has_started_ends_with_it():
    name = f"sleeper_{os.getpid()}"
    code = f"""
import os
if os.fork() == 0:
    os.setsid()
    os.execv("/bin/sh", ["{name}", "-c", "sleep 1000"])
"""
    rewards(code, tests="print()")
    time.sleep(0.2)
    assert not [process for process in psutil.process_iter(["cmdline"]) if name in (process.info["cmdline"] or [])]


def test_nothing_is_left_behind(tmp_path, monkeypatch):
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    assert rewards(f"open('file', 'w').write('1')\n{RIGHT}") == [1.0]
    assert list(tmp_path.iterdir()) == []


def test_it_is_a_reward_of_a_run():
    scores = WeightedRewards(CodeReward()).scores([block(RIGHT), "x"], [{"tests": TESTS}] * 2)
    assert scores.components.tolist() == [[1.0], [0.0]]
    with pytest.raises(ValueError, match="`tests_field` is 'tests', which the example lacks"):
        CodeReward()([block(RIGHT)], [{}])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"workers": 0}, r"^`workers` is 0; pass 1 or more"),
        ({"limit": -1.0}, r"^`limit` is -1.0; pass a positive number"),
        ({"memory": 5}, r"^`memory` is 5 bytes; pass at least 64 MiB"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        CodeReward(**arguments)


@pytest.mark.parametrize(
    ("tests", "reason"),
    [
        ("", "'', which tests nothing"),
        ([], r"'\[\]', which tests nothing"),
        ('{"inputs": ["2"], "outputs": ["3"]}', "which tests nothing"),
        ({"inputs": ["2"], "outputs": ["3"]}, "of type dict"),
        ([{"input": "2", "output": "3"}], "of type list"),
        (5, "'5', of type int"),
        (["assert square(3) == 9", "assert square(3 == 9"], "which is not Python code"),
    ],
)
def test_tests_that_any_completion_passes_or_none_are_refused(tests, reason):
    with pytest.raises(ValueError, match=rf"^`tests_field` is 'tests', where an example has .*{reason}.*; pass a text"):
        rewards(RIGHT, tests=tests)
