"""Checksums of checkpoints, and which ones are kept: files, and folders of shards."""

import os
import shutil
import subprocess
import time

import pytest
import torch

from lightning_modules.callbacks.checkpoint_files import (
    checksums_of,
    free_path,
    make_newest,
    members,
    publish,
    require_last,
    require_undamaged,
    write_checksums,
)


def saved(folder, step, keep=2, sharded=False, value=None):
    """Save a checkpoint as a run does, a file or a folder of shards."""
    folder.mkdir(exist_ok=True)
    path = free_path(folder, step)
    content = {"weights": torch.full((1000,), float(step if value is None else value)), "step": step}
    if sharded:
        path.mkdir()
        torch.save(content, path / "meta.pt")
        (path / "__0_0.distcp").write_bytes(bytes(range(256)))
        (path / ".metadata").write_bytes(b"\x80\x02N.")
    else:
        torch.save(content, path)
    write_checksums(path, checksums_of(path, members(path)))
    publish(path, keep)
    time.sleep(0.01)  # times of change that differ
    return path


def names(folder):
    return sorted(path.name for path in folder.iterdir() if not path.name.endswith(".sha256"))


@pytest.mark.parametrize("sharded", [False, True])
@pytest.mark.parametrize("keep", [1, 2, 3])
def test_the_newest_are_kept_and_the_last_one_is_linked(tmp_path, keep, sharded):
    for step in (8, 9, 10, 11):
        saved(tmp_path, step, keep, sharded)
    assert names(tmp_path) == sorted(["last.ckpt", *(f"step-{step}.ckpt" for step in range(12 - keep, 12))])
    assert len(list(tmp_path.glob("*.sha256"))) == keep
    assert os.readlink(tmp_path / "last.ckpt") == "step-11.ckpt"
    require_last(tmp_path)


def test_the_lists_are_those_of_the_program_sha256sum(tmp_path):
    saved(tmp_path, 1)
    saved(tmp_path, 2, sharded=True)
    lists = sorted(path.name for path in tmp_path.glob("*.sha256"))
    subprocess.run(["sha256sum", "--check", "--strict", *lists], cwd=tmp_path, check=True)


def test_a_step_that_is_saved_again_has_another_name(tmp_path):
    first = saved(tmp_path, 5, value=1)
    second = saved(tmp_path, 5, value=2)
    assert first != second
    require_undamaged(first)
    assert torch.load(tmp_path / "last.ckpt")["weights"][0] == 2
    saved(tmp_path, 5, value=3)
    assert names(tmp_path) == ["last.ckpt", "step-5.2.ckpt", "step-5.3.ckpt"]
    assert torch.load(tmp_path / "last.ckpt")["weights"][0] == 3


def test_what_an_interrupted_save_left_is_deleted_and_counts_for_nothing(tmp_path):
    saved(tmp_path, 1)
    saved(tmp_path, 2)
    (tmp_path / ".step-3.ckpt.part").write_bytes(b"x" * 100)
    (tmp_path / "step-3.ckpt").mkdir()
    (tmp_path / "step-3.ckpt" / "__0_0.distcp").write_bytes(b"x" * 100)
    saved(tmp_path, 3)
    assert sorted(path.name for path in tmp_path.iterdir()) == [
        "last.ckpt",
        "step-2.ckpt",
        "step-2.ckpt.sha256",
        "step-3.2.ckpt",
        "step-3.2.ckpt.sha256",
    ]


def test_a_checkpoint_that_was_resumed_from_outlasts_a_damaged_one(tmp_path):
    first = saved(tmp_path, 1)
    saved(tmp_path, 2).write_bytes(b"")
    time.sleep(0.01)
    make_newest(first, tmp_path)
    saved(tmp_path, 2)
    assert names(tmp_path) == ["last.ckpt", "step-1.ckpt", "step-2.2.ckpt"]


def test_a_checkpoint_of_another_folder_is_left_as_it_is(tmp_path):
    path = saved(tmp_path / "other", 1)
    before = path.stat().st_mtime_ns
    make_newest(path, tmp_path)
    assert path.stat().st_mtime_ns == before


def flipped(file, position):
    content = bytearray(file.read_bytes())
    content[position] ^= 1
    file.write_bytes(content)


FILES = {
    "a bit of a weight": lambda path: flipped(path, path.read_bytes().find(torch.full((9,), 2.0).numpy().tobytes())),
    "the first bit": lambda path: flipped(path, 0),
    "the last bit": lambda path: flipped(path, -1),
    "a bit of the padding": lambda path: flipped(path, path.read_bytes().find(b"ZZZZZZ")),
    "truncated": lambda path: os.truncate(path, path.stat().st_size - 1),
    "truncated by half": lambda path: os.truncate(path, path.stat().st_size // 2),
    "empty": lambda path: os.truncate(path, 0),
    "longer": lambda path: path.write_bytes(path.read_bytes() + b"\0"),
    "garbage": lambda path: path.write_bytes(b"garbage" * 1000),
    "zeros": lambda path: path.write_bytes(bytes(path.stat().st_size)),
    "a pickle": lambda path: path.write_bytes(b"\x80\x02N."),
    "missing": lambda path: path.unlink(),
    "checksums missing": lambda path: path.with_name(f"{path.name}.sha256").unlink(),
    "checksums empty": lambda path: path.with_name(f"{path.name}.sha256").write_bytes(b""),
    "checksums garbage": lambda path: path.with_name(f"{path.name}.sha256").write_bytes(bytes(range(256))),
    "checksums of another": lambda path: shutil.copy(
        path.with_name("step-1.ckpt.sha256"), path.with_name(f"{path.name}.sha256")
    ),
}
FOLDERS = {
    "a bit of a shard": lambda path: flipped(path / "__0_0.distcp", 100),
    "a bit of a hidden file": lambda path: flipped(path / ".metadata", 1),
    "a shard missing": lambda path: (path / "__0_0.distcp").unlink(),
    "a shard more": lambda path: (path / "__1_0.distcp").write_bytes(b"x"),
    "a shard empty": lambda path: os.truncate(path / "__0_0.distcp", 0),
    "no shards": lambda path: [file.unlink() for file in members(path)],
    "missing": shutil.rmtree,
    "checksums missing": lambda path: path.with_name(f"{path.name}.sha256").unlink(),
}
DAMAGE = [(name, damage, False) for name, damage in FILES.items()]
DAMAGE += [(name, damage, True) for name, damage in FOLDERS.items()]


@pytest.mark.parametrize(("name", "damage", "sharded"), DAMAGE, ids=[f"{n}, {s}" for n, _, s in DAMAGE])
def test_a_damaged_one_is_refused_and_the_one_before_it_offered(tmp_path, name, damage, sharded):
    before = saved(tmp_path, 1, sharded=sharded)
    path = saved(tmp_path, 2, sharded=sharded)
    require_last(tmp_path)  # what was read before counts only while nothing changes
    damage(path)
    for check, argument, named in ((require_last, tmp_path, tmp_path / "last.ckpt"), (require_undamaged, path, path)):
        with pytest.raises(ValueError, match="`ckpt_path`") as refused:
            check(argument)
        message = str(refused.value)
        assert message.startswith(f"`ckpt_path` is '{named}': it")
        assert message.endswith(f"; resume from the checkpoint before it with `--ckpt_path {before}`.")
        assert "damaged" in message or "missing" in message
    require_undamaged(before)


def test_the_link_may_be_missing_too(tmp_path):
    saved(tmp_path, 1)
    (tmp_path / "last.ckpt").unlink()
    with pytest.raises(ValueError, match=r"last.ckpt': it is missing; resume .* `--ckpt_path .*step-1.ckpt`"):
        require_last(tmp_path)


def test_all_may_be_damaged(tmp_path):
    for step in (1, 2):
        saved(tmp_path, step).write_bytes(b"")
    with pytest.raises(ValueError, match="no undamaged checkpoint is next to it, so start a new run"):
        require_last(tmp_path)


def test_a_folder_without_checkpoints_has_none_that_are_damaged(tmp_path):
    require_last(tmp_path)
    require_last(tmp_path / "missing")


def test_a_checkpoint_of_before_has_the_checksums_of_its_archive(tmp_path):
    path = tmp_path / "last.ckpt"
    torch.save({"weights": torch.full((1000,), 2.0)}, path)
    require_last(tmp_path)
    FILES["a bit of a weight"](path)
    with pytest.raises(ValueError, match=r"`ckpt_path` is .*last.ckpt': it is damaged: its part .*data/0 has another"):
        require_last(tmp_path)
    path.write_bytes(b"garbage")
    with pytest.raises(ValueError, match="it is no checkpoint, or is damaged"):
        require_last(tmp_path)
