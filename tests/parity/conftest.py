"""The batches of a comparison."""

import os

import pytest

from tests.parity.cases import CASES

# They import peers and have no tests, but --doctest-modules would import them.
collect_ignore = ["liger_losses.py", "trl_losses.py", "trl_processes.py", "verl_advantages.py", "verl_losses.py"]

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # GMPO is among what may change in TRL; its version is pinned


@pytest.fixture(params=CASES, ids=str)
def case(request):
    """Log-probabilities and a batch."""
    return CASES[request.param]
