"""Protocol of server and client: digests of weights, and files named by versions."""

from pathlib import Path

import pytest
import torch

from lightning_modules.rollouts.protocol import WeightsDigest, weights_file
from tests.test_architecture import imported_modules, python_files, relative


def digest_of(**weights):
    digest = WeightsDigest()
    for name, tensor in weights.items():
        digest.add(name, tensor)
    return str(digest)


def test_a_digest_is_the_checksum_of_names_types_shapes_and_numbers():
    # zlib.crc32(b"a torch.uint8 (2,)") continued with the bytes 1 and 2
    assert digest_of(a=torch.tensor([1, 2], dtype=torch.uint8)) == "9ffbb6c3"
    table = torch.arange(6.0).reshape(2, 3)
    other = {"b": table}, {"a": table.reshape(3, 2)}, {"a": table.double()}, {"a": table + 1}, {"a": table, "b": table}
    assert len({digest_of(a=table), *(digest_of(**weights) for weights in other)}) == 6
    assert digest_of(a=table.t()) == digest_of(a=table.t().contiguous())


def test_tensors_that_pass_a_digest_are_the_same_and_counted():
    weights = [("a", torch.ones(2)), ("b", torch.tensor(3.0).bfloat16())]
    digest = WeightsDigest()
    passed = list(digest.tee(weights))
    assert all(one[1] is other[1] for one, other in zip(passed, weights, strict=True))
    assert str(digest) == digest_of(**dict(weights))


@pytest.mark.parametrize("version", ["1-00000000", "../000001-00000000", "000001-0000000G", "000001-00000000\n", ""])
def test_a_file_is_named_by_a_version_and_nothing_else(version):
    assert weights_file(Path("/w"), "000001-0000000a") == Path("/w/policy-000001-0000000a.safetensors")
    with pytest.raises(ValueError, match=r"pass one that `SharedFolder\.publish` returned"):
        weights_file(Path("/w"), version)


@pytest.mark.parametrize(("side", "other"), [("servers", "serving"), ("serving", "servers")])
def test_client_and_server_do_not_import_each_other(side, other):
    files = python_files(f"lightning_modules/rollouts/{side}")
    assert len(files) > 2
    forbidden = f"lightning_modules.rollouts.{other}"
    assert not [relative(path) for path in files if any(m.startswith(forbidden) for m in imported_modules(path))]
