"""Named sums, minima and maxima add up in any order and grouping."""

from types import SimpleNamespace

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch._subclasses.fake_tensor import FakeTensorMode

from lightning_modules.tally import Tally

NUMBERS = st.dictionaries(st.sampled_from("abc"), st.integers(-1000, 1000).map(float))
TALLIES = st.builds(Tally, NUMBERS, NUMBERS, NUMBERS)


@given(st.lists(TALLIES, min_size=1, max_size=6), st.randoms())
def test_addition_is_that_of_the_numbers_in_any_order(tallies, random):
    shuffled = random.sample(tallies, len(tallies))
    total = sum(shuffled, Tally())
    for kind, reduce in (("sums", sum), ("minima", min), ("maxima", max)):
        columns = [getattr(tally, kind) for tally in tallies]
        names = {name for column in columns for name in column}
        expected = {name: reduce([column[name] for column in columns if name in column]) for name in names}
        assert getattr(total, kind) == expected


def test_tensors_become_numbers():
    tally = Tally.of(tokens=torch.tensor(3), loss=torch.tensor(0.5, requires_grad=True), share=torch.tensor(True))
    assert tally == Tally({"tokens": 3.0, "loss": 0.5, "share": 1.0})


def test_no_tensors_are_an_empty_tally():
    assert Tally.of() == Tally()


def test_numbers_of_two_devices_are_read_from_one(monkeypatch):
    """As of a callback that logs from the CPU in a run on a GPU; only tensors of one device can be stacked."""
    devices = []

    def stack(tensors):
        devices.extend(str(tensor.device) for tensor in tensors)
        return SimpleNamespace(tolist=lambda: [1.0, 2.0])

    monkeypatch.setattr(torch, "stack", stack)
    with FakeTensorMode():  # tensors without data, on any device
        numbers = {"of_cpu": torch.zeros(()), "of_gpu": torch.zeros((), device="cuda")}
        assert Tally.of(**numbers) == Tally({"of_cpu": 1.0, "of_gpu": 2.0})
    assert devices == ["cuda:0", "cuda:0"]
