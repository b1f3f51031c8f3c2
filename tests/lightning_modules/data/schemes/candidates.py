"""Orders of candidates and a rollout of one rank, for tests of schemes that choose prompts."""

from types import SimpleNamespace

import torch

from lightning_modules.data.schemes.base import CandidateContext
from lightning_modules.prompts import Candidate

ALONE = SimpleNamespace(gathered=lambda table: table, skipped=0)  # what a history asks of a rollout on one rank


class Endless:
    """Candidates of passes over the data set, in order, without end."""

    def __init__(self, size):
        self.size, self.position = size, 0

    def __call__(self, count):
        start, self.position = self.position, self.position + count
        return [Candidate(position % self.size, position) for position in range(start, self.position)]


def context(size=8, multiple=1, seed=0):
    return CandidateContext(multiple, size, seed)


def known(history, values):
    """Add one number for each prompt, by index."""
    history.add(prompts_alone(values), torch.tensor(list(values.values()), dtype=torch.double), ALONE)


def prompts_alone(indices, scored=True):
    """What a history asks of groups, those of prompts with these indices."""
    prompts = [SimpleNamespace(index=index) for index in indices]
    return SimpleNamespace(prompts=prompts, group_size=1, scored=torch.full((len(prompts),), scored))
