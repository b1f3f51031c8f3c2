"""Hypothesis profiles (`pytest --hypothesis-profile thorough` for the long run), and a model for runs in processes."""

from pathlib import Path

import pytest
import torch
from hypothesis import settings

settings.register_profile("default", max_examples=25, deadline=None, derandomize=True, database=None)
settings.register_profile("thorough", max_examples=10_000, deadline=None, database=None)
settings.load_profile("default")


@pytest.fixture(scope="session")
def tiny_model(tmp_path_factory) -> Path:
    """Folder of a randomly initialised model, small enough for tests of everything but learning."""
    from lightning_modules.addition.warm_start import make_model, make_tokenizer  # the core is tested without

    folder = tmp_path_factory.mktemp("tiny_model")
    tokenizer = make_tokenizer()
    with torch.random.fork_rng():
        torch.manual_seed(0)
        make_model(tokenizer, hidden_size=32, layers=2).save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder
