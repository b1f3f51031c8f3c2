"""Files and folders that are replaced atomically, under errors and real kills."""

import os
import signal
import subprocess
import sys
from pathlib import Path

import pytest

from lightning_modules.atomic import replacing


def content(path):
    return {file.name: file.read_text() for file in path.iterdir()} if path.is_dir() else path.read_text()


def write(path, kind, text):
    if kind == "folder":
        path.mkdir()
        (path / text).write_text(text)
    else:
        path.write_text(text)


EXPECTED = {"file": lambda text: text, "folder": lambda text: {text: text}}


@pytest.fixture(params=["file", "folder"])
def kind(request):
    return request.param


def test_what_is_written_takes_the_place_of_the_old(tmp_path, kind):
    path = tmp_path / "result.png"
    for text in ("first", "second"):
        with replacing(path) as scratch:
            assert scratch.suffix == ".png"
            write(scratch, kind, text)
        assert content(path) == EXPECTED[kind](text)
        assert list(tmp_path.iterdir()) == [path]


def test_an_error_leaves_the_old_alone(tmp_path, kind):
    path = tmp_path / "result"
    write(path, kind, "first")

    def failed():
        with replacing(path) as scratch:
            write(scratch, kind, "second")
            raise OSError("disk full")

    with pytest.raises(OSError, match="disk full"):
        failed()
    assert content(path) == EXPECTED[kind]("first")
    assert list(tmp_path.iterdir()) == [path]


def test_nothing_written_is_an_error(tmp_path):
    with pytest.raises(FileNotFoundError), replacing(tmp_path / "result"):
        pass


KILLED = """
import os, signal, sys
from pathlib import Path
from lightning_modules.atomic import replacing
from tests.lightning_modules.test_atomic import write

path, kind, place = Path(sys.argv[1]), sys.argv[2], int(sys.argv[3])
calls = 0

def killed(function):
    def wrapped(*arguments, **options):
        global calls
        calls += 1
        if calls == place:
            os.kill(os.getpid(), signal.SIGKILL)
        return function(*arguments, **options)
    return wrapped

for owner, name in ((Path, "rename"), (Path, "replace"), (os, "fsync"), (os, "rmdir")):
    setattr(owner, name, killed(getattr(owner, name)))
with replacing(path) as scratch:
    write(scratch, kind, "second")
"""


@pytest.mark.parametrize("place", range(1, 6))
def test_a_kill_leaves_the_old_or_the_new_and_the_next_write_heals(tmp_path, kind, place):
    path = tmp_path / "result"
    write(path, kind, "first")
    command = [sys.executable, "-c", KILLED, str(path), kind, str(place)]
    status = subprocess.run(command, cwd=Path(__file__).parents[2], env=os.environ, check=False).returncode
    assert status in (0, -signal.SIGKILL)
    if path.exists():
        assert content(path) in (EXPECTED[kind]("first"), EXPECTED[kind]("second"))
    else:
        assert kind == "folder"
        assert content(tmp_path / ".old-result") == EXPECTED[kind]("first")
    with replacing(path) as scratch:
        write(scratch, kind, "third")
    assert content(path) == EXPECTED[kind]("third")
    assert list(tmp_path.iterdir()) == [path]
