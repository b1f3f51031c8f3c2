"""Folders that others can write are refused by trainer and server, with the remedy."""

import os
import stat
from pathlib import Path

import pytest
import torch

from lightning_modules.rollouts import SharedFolder, private_folder
from lightning_modules.rollouts.private_folder import made_private, opened_private, require_private
from lightning_modules.rollouts.protocol import weights_file
from lightning_modules.rollouts.serving.command import server_command
from lightning_modules.rollouts.serving.worker import WorkerExtension

WEIGHTS = {"a": torch.ones(2)}


class Worker(WorkerExtension):
    """Takes the place of vLLM's worker, whose method this is."""

    def reload_weights(self, weights_iterator):
        self.weights = {name: tensor.clone() for name, tensor in weights_iterator}


@pytest.fixture
def umask():
    """A umask that lets the group write, as on many clusters."""
    before = os.umask(0o002)
    yield
    os.umask(before)


def refusals(folder, version):
    """What the trainer at its start and later, the server at its start, and its workers say of a folder."""
    said = []
    for attempt in (
        lambda: SharedFolder(str(folder)),
        lambda: channel_of(folder).publish({"a": torch.zeros(2)}),
        lambda: Worker().load_policy_file(str(weights_file(folder, version))),
    ):
        with pytest.raises(PermissionError) as error:
            attempt()
        said.append(str(error.value))
    return said


def channel_of(folder):
    """A channel that was made before the folder was what it is."""
    channel = SharedFolder(f"{folder}-not-yet")
    channel.path = str(folder)
    return channel


@pytest.fixture
def published(tmp_path):
    folder = tmp_path / "above" / "weights"
    return folder, SharedFolder(str(folder)).publish(WEIGHTS)


@pytest.mark.parametrize("mode", [0o770, 0o707, 0o777, 0o720, 0o1777, 0o2770])
def test_a_folder_that_others_can_write_is_refused_on_both_sides(published, mode, capsys):
    folder, version = published
    folder.chmod(mode)
    for message in refusals(folder, version):
        assert f"{folder} can be written by others (mode {mode:o}), who could replace the weights" in message
        assert f"chmod go-w {folder}" in message
    environment = {"AGGREGATE_PO_TOKEN": "0123456789abcdef"}
    with pytest.raises(SystemExit):
        server_command(["model", "--weights_folder", str(folder)], environment)
    assert f"chmod go-w {folder}" in capsys.readouterr().err
    folder.chmod(0o750)
    assert Worker().load_policy_file(str(weights_file(folder, version))) == version.rpartition("-")[2]


@pytest.mark.parametrize("mode", [0o775, 0o757])
def test_a_folder_that_others_can_replace_is_refused(published, mode):
    folder, version = published
    folder.parent.chmod(mode)
    for message in refusals(folder, version):
        assert f"can be replaced by others, who can write {folder.parent}" in message
        assert f"chmod go-w {folder.parent}" in message
    folder.parent.chmod(0o1777)  # as /tmp and /dev/shm: others cannot rename what is not theirs
    require_private(folder)


def test_a_symbolic_link_is_refused(published):
    folder, version = published
    link = folder.parent / "link"
    link.symlink_to(folder)
    for message in refusals(link, version):
        assert f"{link} is a symbolic link; pass the folder itself, {folder}" in message


@pytest.mark.skipif(os.geteuid() != 0, reason="gives files away")
def test_a_folder_of_another_user_is_refused(published):
    folder, version = published
    os.chown(folder, 12345, -1)
    for message in refusals(folder, version):
        assert f"{folder} belongs to user 12345" in message
        assert "run trainer and servers as one user" in message


def test_the_folder_of_the_administrator_may_be_read(published, monkeypatch):
    folder, _ = published
    if folder.stat().st_uid == 0:
        monkeypatch.setattr(private_folder.os, "geteuid", lambda: 1000)
        require_private(folder)


def change_mode(file, folder):
    file.chmod(0o664)


def link(file, folder):
    file.rename(folder.parent / "elsewhere")
    file.symlink_to(folder.parent / "elsewhere")


def pipe(file, folder):
    file.unlink()
    os.mkfifo(file)


@pytest.mark.parametrize("change", [change_mode, link, pipe])
def test_a_file_that_others_could_have_written_is_not_loaded(published, change):
    folder, version = published
    worker = Worker()
    change(weights_file(folder, version), folder)
    with pytest.raises(OSError, match=r"can be written by others|symbolic links|no regular file"):
        worker.load_policy_file(str(weights_file(folder, version)))
    assert not hasattr(worker, "weights")


def test_what_was_checked_is_what_is_read(published):
    """Another file takes the name after the check."""
    folder, version = published
    file = weights_file(folder, version)
    content = file.read_bytes()
    with opened_private(file) as opened:
        other = folder / "other"
        other.write_bytes(b"another")
        other.replace(file)
        with open(opened, "rb") as read:
            assert read.read() == content


def test_what_the_trainer_makes_is_private_whatever_the_umask(tmp_path, umask):
    folder = tmp_path / "runs" / "mine" / "weights"
    version = SharedFolder(str(folder)).publish(WEIGHTS)
    assert [stat.S_IMODE(path.stat().st_mode) for path in (folder.parent, folder)] == [0o755, 0o700]
    assert weights_file(folder, version).stat().st_mode & 0o022 == 0
    assert Worker().load_policy_file(str(weights_file(folder, version))) == version.rpartition("-")[2]


def test_a_folder_is_made_once_and_may_be_relative(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for _ in range(2):
        made_private(Path("a/b"))
    assert require_private(Path("a/../a/b")) == tmp_path / "a" / "b"
