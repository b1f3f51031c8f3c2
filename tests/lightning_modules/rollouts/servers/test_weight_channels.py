"""Weights on their way to a worker in this process: what arrives is what was published."""

import pytest
import torch

from lightning_modules.rollouts import SharedFolder
from lightning_modules.rollouts.protocol import weights_file
from lightning_modules.rollouts.serving.worker import WorkerExtension


def weights_of(seed):
    """Several types, a number alone, a tensor under two names, and one that is no block of memory."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(3, 4, generator=generator)
    return {"a": table, "z": table, "b": table.t(), "half": table.bfloat16(), "one": torch.tensor(2.0 + seed)}


class Worker(WorkerExtension):
    """Takes the place of vLLM's worker, whose method this is."""

    def reload_weights(self, weights_iterator):
        self.weights = {name: tensor.clone() for name, tensor in weights_iterator}


def assert_equal(received, weights):
    assert received.keys() == weights.keys()
    for name, tensor in weights.items():
        assert received[name].dtype == tensor.dtype
        assert torch.equal(received[name], tensor)


def test_a_file_holds_what_was_published(tmp_path):
    folder = SharedFolder(str(tmp_path / "made" / "by it"))
    version = folder.publish(weights_of(1))
    path = weights_file(tmp_path / "made" / "by it", version)
    worker = Worker()
    assert worker.load_policy_file(str(path)) == version.rpartition("-")[2]
    assert_equal(worker.weights, weights_of(1))
    assert path.parent.stat().st_mode & 0o077 == 0  # others on the machine have no business here


def test_a_tied_tensor_is_written_once(tmp_path):
    """Of three tensors of 400 bytes, the second is the first; the third shares its memory and has another shape."""
    table = torch.randn(10, 10)
    weights = {
        "embedding": table,
        "head": table,
        "other": table.view(100),
        "none": torch.ones(0),
        "void": torch.ones(0),
    }
    folder = SharedFolder(str(tmp_path))
    path = weights_file(tmp_path, folder.publish(weights))
    assert 800 < path.stat().st_size < 1200
    worker = Worker()
    worker.load_policy_file(str(path))
    assert_equal(worker.weights, weights)


def test_untied_weights_are_another_version(tmp_path):
    table = torch.randn(10, 10)
    folder = SharedFolder(str(tmp_path))
    tied, untied = (folder.publish({"embedding": table, "head": head}) for head in (table, table.clone()))
    assert tied != untied
    worker = Worker()
    worker.load_policy_file(str(weights_file(tmp_path, untied)))
    assert_equal(worker.weights, {"embedding": table, "head": table})


def test_files_are_no_pickles_and_only_the_last_two_stay(tmp_path):
    folder = SharedFolder(str(tmp_path))
    versions = [folder.publish(weights_of(seed)) for seed in (1, 1, 2, 3)]
    assert versions[0] == versions[1]
    assert len(set(versions)) == 3
    files = sorted(tmp_path.iterdir())
    assert files == [weights_file(tmp_path, version) for version in versions[2:]]
    assert all(int.from_bytes(file.read_bytes()[:8], "little") < 10_000 for file in files)  # length of a JSON header


def test_weights_that_could_not_be_written_are_written_the_next_time(tmp_path):
    folder = tmp_path / "weights"
    channel = SharedFolder(str(folder))
    channel.publish(weights_of(1))
    folder.chmod(0o770)
    with pytest.raises(PermissionError):
        channel.publish(weights_of(2))
    folder.chmod(0o700)
    versions = [channel.publish(weights_of(seed)) for seed in (2, 2, 3)]
    assert versions[0] == versions[1]
    assert sorted(folder.iterdir()) == [weights_file(folder, version) for version in versions[1:]]


def test_what_a_run_before_has_left_makes_room(tmp_path):
    for seed in (1, 2):
        SharedFolder(str(tmp_path)).publish(weights_of(seed))  # runs that were killed
    left = next(tmp_path.iterdir())
    (tmp_path / f".{left.name}.part").write_bytes(b"half")
    (tmp_path / "policy-notes.safetensors").write_bytes(b"a user's")
    version = SharedFolder(str(tmp_path)).publish(weights_of(3))
    assert {path.name for path in tmp_path.iterdir()} == {f"policy-{version}.safetensors", "policy-notes.safetensors"}
