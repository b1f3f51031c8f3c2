"""Weights on their way to workers in this process: what arrives is what was sent, and nobody waits for the dead."""

import threading
import time

import pytest
import torch

from lightning_modules.rollouts import Broadcast, SharedFolder
from lightning_modules.rollouts.servers.client import ServerFailure, ServerRefusal
from lightning_modules.rollouts.servers.weight_channels import weights_file
from lightning_modules.rollouts.serving.worker import WeightsReader
from lightning_modules.rollouts.transfer import open_store


def weights_of(seed):
    """Several types, a number alone, a tensor under two names, and one that is no block of memory."""
    generator = torch.Generator().manual_seed(seed)
    table = torch.randn(3, 4, generator=generator)
    return {"a": table, "z": table, "b": table.t(), "half": table.bfloat16(), "one": torch.tensor(2.0 + seed)}


class Worker(WeightsReader):
    """Takes the place of vLLM's worker, whose attributes these are."""

    def __init__(self, rank):
        self.rank = rank

    def reload_weights(self, weights_iterator):
        self.weights = {name: tensor.clone() for name, tensor in weights_iterator}


class WorkersServer:
    """Takes the place of a server: its requests are calls of its workers, at the same time."""

    url = "http://127.0.0.1:1"

    def __init__(self, workers=1):
        self.workers = [Worker(rank) for rank in range(workers)]
        self.joined, self.versions, self.fail = 0, [], None

    def state(self):
        return type("State", (), {"workers": len(self.workers)})

    def join_transfer(self, address, port, size, backend, timeout):
        self.joined += 1
        self._each("join_policy_transfer", address, port, size, backend, timeout)

    def load_weights(self, version, tensors=None, path=None):
        if self.fail is not None:
            raise self.fail
        self.versions.append(version)
        digests = self._each(*(("receive_policy", tensors) if path is None else ("load_policy_file", path)))
        assert digests == [version.rpartition("-")[2]] * len(self.workers)

    def _each(self, method, *arguments):
        results = [None] * len(self.workers)

        def call(number):
            results[number] = getattr(self.workers[number], method)(*arguments)

        threads = [threading.Thread(target=call, args=(number,)) for number in range(len(self.workers))]
        for thread in threads:
            thread.start()
        for thread in threads:
            thread.join()
        return results


def assert_equal(received, weights):
    assert received.keys() == weights.keys()
    for name, tensor in weights.items():
        assert received[name].dtype == tensor.dtype
        assert torch.equal(received[name], tensor)


def test_a_file_holds_what_was_published(tmp_path):
    folder = SharedFolder(str(tmp_path / "made" / "by it"))
    version = folder.publish(weights_of(1))
    path = weights_file(tmp_path / "made" / "by it", version)
    worker = Worker(0)
    assert worker.load_policy_file(str(path)) == version.rpartition("-")[2]
    assert_equal(worker.weights, weights_of(1))
    assert path.parent.stat().st_mode & 0o077 == 0  # others on the machine have no business here


def test_files_are_no_pickles_and_only_the_last_two_stay(tmp_path):
    folder = SharedFolder(str(tmp_path))
    versions = [folder.publish(weights_of(seed)) for seed in (1, 1, 2, 3)]
    assert versions[0] == versions[1]
    assert len(set(versions)) == 3
    files = sorted(tmp_path.iterdir())
    assert files == [weights_file(tmp_path, version) for version in versions[2:]]
    assert all(int.from_bytes(file.read_bytes()[:8], "little") < 10_000 for file in files)  # length of a JSON header


def test_what_a_run_before_has_left_makes_room(tmp_path):
    for seed in (1, 2):
        SharedFolder(str(tmp_path)).publish(weights_of(seed))  # runs that were killed
    left = next(tmp_path.iterdir())
    (tmp_path / f".{left.name}.part").write_bytes(b"half")
    (tmp_path / "policy-notes.safetensors").write_bytes(b"a user's")
    version = SharedFolder(str(tmp_path)).publish(weights_of(3))
    assert {path.name for path in tmp_path.iterdir()} == {f"policy-{version}.safetensors", "policy-notes.safetensors"}


@pytest.mark.skipif(torch.cuda.is_available(), reason="NCCL has a GPU to send between")
def test_without_a_gpu_nccl_is_refused_before_a_server_is_asked():
    with pytest.raises(ValueError, match=r"`backend` is 'nccl', which sends between GPUs, .* pass 'gloo'"):
        Broadcast().publish(weights_of(1))


@pytest.mark.parametrize("workers", [1, 3])
def test_every_worker_receives_what_was_sent(workers):
    server, channel = WorkersServer(workers), Broadcast(backend="gloo", timeout=20)
    for seed in (1, 2):
        version = channel.publish(weights_of(seed))
        channel.deliver(server, version)
        assert server.versions[-1] == version
        for worker in server.workers:
            assert_equal(worker.weights, weights_of(seed))
    assert server.joined == 1


def test_a_server_that_was_started_again_joins_anew():
    server, channel = WorkersServer(), Broadcast(backend="gloo", timeout=20)
    channel.deliver(server, channel.publish(weights_of(1)))
    server.workers[0].policy_transfer.abort()
    server.workers = [Worker(0)]
    server.fail = ServerFailure("the server is in no group with the trainer")
    version = channel.publish(weights_of(2))
    with pytest.raises(ServerFailure, match="in no group"):
        channel.deliver(server, version)
    server.fail = None
    channel.deliver(server, version)
    assert server.joined == 2
    assert_equal(server.workers[0].weights, weights_of(2))


@pytest.mark.parametrize("failure", [ServerRefusal("refused"), ServerFailure("dead")])
def test_a_request_that_fails_ends_the_wait_at_once(failure):
    server, channel = WorkersServer(), Broadcast(backend="gloo", timeout=60)
    big = {"a": torch.zeros(5_000_000)}  # more than the connection takes before somebody reads it
    channel.deliver(server, channel.publish(weights_of(1)))
    server.fail = failure
    begun = time.monotonic()
    with pytest.raises(type(failure)):
        channel.deliver(server, channel.publish(big))
    assert time.monotonic() - begun < 10


def test_a_server_that_does_not_take_the_weights_is_given_up():
    server, channel = WorkersServer(), Broadcast(backend="gloo", timeout=1.5)
    channel.deliver(server, channel.publish(weights_of(1)))
    server.load_weights = lambda version, tensors: time.sleep(30)
    begun = time.monotonic()
    with pytest.raises(ServerFailure, match="weights could not be sent"):
        channel.deliver(server, channel.publish({"a": torch.zeros(5_000_000)}))
    assert time.monotonic() - begun < 10


def test_a_server_that_does_not_join_is_given_up():
    server, channel = WorkersServer(), Broadcast(backend="gloo", timeout=1.5)
    server.join_transfer = lambda **place: time.sleep(30)
    begun = time.monotonic()
    with pytest.raises(ServerFailure, match="weights could not be sent"):
        channel.deliver(server, channel.publish(weights_of(1)))
    assert time.monotonic() - begun < 10


def test_nothing_listens_on_other_addresses_of_the_machine():
    store = open_store("127.0.0.1", 5.0)
    with open("/proc/net/tcp") as first, open("/proc/net/tcp6") as second:
        addresses = [line.split()[1] for line in [*first, *second] if line.split()[3] == "0A"]
    assert [address for address in addresses if address.endswith(f":{store.port:04X}")] == [
        f"0100007F:{store.port:04X}"
    ]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"backend": "mpi"}, "`backend` is 'mpi'; pass one of nccl, gloo"),
        ({"timeout": 0}, "`timeout` is 0; pass a positive number"),
        ({"timeout": float("inf")}, "`timeout` is inf"),
    ],
)
def test_wrong_arguments_are_named(arguments, message):
    with pytest.raises(ValueError, match=message):
        Broadcast(**arguments)
