"""Resharding of the rest of a rollout; stopped and resumed runs are tested in `tests/distributed`."""

import random

import numpy as np
import pytest
import torch

from aggregate_po import CorrectionWeights, PolicyBatch, StepTotals
from lightning_modules.batch import RolloutBatch, left_padded
from lightning_modules.data.resume import resharded_batches
from lightning_modules.seeding import random_state, restore_random_state

TOTALS = StepTotals(completions=4, tokens=torch.tensor(9), progress=0.5)


def micro_batch(number, closes=True, trained=True):
    """Two completions of a prompt; widths, and every value, depend on the number."""
    time = 2 + number % 3
    mask = torch.arange(time) < torch.tensor([[time], [1]])
    values = number + torch.arange(2 * time).reshape(2, time) / 10
    prompt_ids, prompt_mask = left_padded([[number] * (1 + number % 4)])
    return RolloutBatch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        prompt_of=torch.tensor([0, 0]),
        completion_ids=100 * number + torch.arange(2 * time).reshape(2, time),
        completion_mask=mask,
        policy=PolicyBatch(
            old_log_probs=-values,
            response_mask=mask & trained,
            advantages=values[:, 0],
            totals=TOTALS,
            ref_log_probs=-2 * values,
            divergence=values / 3,
            scale=values + 0.5,
            ref_divergence=values / 5,
            correction=CorrectionWeights(log_token=values / 7, log_sequence=values[:, -1]),
        ),
        temperature=0.7,
        closes_update=closes,
    )


def completions(batches):
    """Everything that belongs to each trained completion, without padding, by its first token."""
    found = {}
    for batch in batches:
        policy, correction = batch.policy, batch.policy.correction
        for row in policy.response_mask.any(dim=-1).nonzero().flatten().tolist():
            mask, prompt = batch.completion_mask[row], batch.prompt_of[row]
            per_token = (batch.completion_ids, policy.old_log_probs, policy.ref_log_probs, correction.log_token)
            per_token += (policy.divergence, policy.scale, policy.ref_divergence)
            key = int(batch.completion_ids[row, 0])
            assert key not in found
            found[key] = (
                batch.prompt_ids[prompt][batch.prompt_mask[prompt]].tolist(),
                *(values[row][mask].tolist() for values in per_token),
                policy.advantages[row].item(),
                correction.log_sequence[row].item(),
            )
    return found


@pytest.fixture
def remaining():
    """Two steps on two ranks, two micro-batches each; one rank trains nothing in the second step."""
    return [
        [micro_batch(4 * rank + index, closes=index % 2 == 1, trained=rank + index < 3) for index in range(4)]
        for rank in (0, 1)
    ]


def states(remaining):
    return [[batch.state_dict() for batch in batches] for batches in remaining]


@pytest.mark.parametrize(
    ("ranks", "per_update"), [(1, 1), (1, 2), (2, 1), (3, 1), (1, 7), (4, 3), (2, None), (1, None)]
)
def test_each_completion_stays_in_its_step_as_it_was(ranks, per_update, remaining):
    shards = [resharded_batches(states(remaining), rank, ranks, per_update) for rank in range(ranks)]
    count = per_update or 2
    for shard in shards:
        assert [batch.closes_update for batch in shard] == [*[False] * (count - 1), True] * 2
        assert all(batch.policy.totals == TOTALS for batch in shard)
        assert all(batch.temperature == 0.7 for batch in shard)
    for step in (0, 1):
        before = [batch for batches in remaining for batch in batches[2 * step : 2 * step + 2]]
        after = [batch for shard in shards for batch in shard[count * step : count * (step + 1)]]
        assert completions(after) == completions(before)
        assert max(len(batch.prompt_ids) for batch in after) <= 4


def test_as_many_get_back_their_own(remaining):
    for rank in (0, 1):
        shard = resharded_batches(states(remaining), rank, 2, 2)
        assert [completions([batch]) for batch in shard] == [completions([batch]) for batch in remaining[rank]]
        assert [batch.completion_ids.shape for batch in shard] == [
            batch.completion_ids.shape for batch in remaining[rank]
        ]


def test_all_ranks_run_a_step_without_trained_completions(remaining):
    nothing = [[micro_batch(rank, trained=False)] for rank in (0, 1)]
    shards = [resharded_batches(states(nothing), rank, 3, 2) for rank in range(3)]
    assert [len(shard) for shard in shards] == [2, 2, 2]
    assert not any(batch.policy.response_mask.any() for shard in shards for batch in shard)


def test_nothing_remains_between_rollouts():
    assert resharded_batches([[], []], 0, 3, 2) == []


def test_random_state(tmp_path):
    def generated():
        return torch.rand(3).tolist(), random.random(), random.gauss(), np.random.rand(), np.random.randn()  # noqa: NPY002

    torch.save(random_state(), tmp_path / "state.pt")
    first = generated()
    assert generated() != first
    restore_random_state(torch.load(tmp_path / "state.pt", weights_only=True))
    assert generated() == first
