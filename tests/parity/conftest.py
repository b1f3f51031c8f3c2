"""The batches of a comparison."""

import os

import pytest

from tests.parity.cases import CASES

os.environ.setdefault("TRL_EXPERIMENTAL_SILENCE", "1")  # GMPO is among what may change in TRL; its version is pinned


@pytest.fixture(params=CASES, ids=str)
def case(request):
    """Log-probabilities and a batch."""
    return CASES[request.param]
