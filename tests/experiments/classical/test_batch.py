"""Batch reinforcement learning with a filter of supported actions."""

import pytest
import torch

from experiments.classical.batch import (
    BEHAVIOR,
    DISCOUNT,
    LARGEST,
    PROCESS,
    Data,
    density,
    outcome,
    policy_iteration,
    q_iteration,
)


class Exact(Data):
    """Data without sampling error: the shares, rewards and transitions of the process, where the behavior acts."""

    def __init__(self):
        self.share = density().unsqueeze(0)
        self.seen = self.share > 0
        self.rewards = torch.where(self.seen, PROCESS.rewards, 0)
        self.transitions = PROCESS.transitions.unsqueeze(0)


def test_fitted_iteration_chooses_the_action_that_is_not_in_the_data_and_the_filter_does_not():
    data = Exact()
    fitted, filtered = q_iteration(data, 0.0)[0], q_iteration(data, 1e-6)[0]
    assert fitted.argmax(dim=-1).tolist() == [3, 3]
    assert fitted[0, 3] == LARGEST
    assert filtered.argmax(dim=-1).tolist() == [1, 1]
    torch.testing.assert_close(filtered[:, 1], PROCESS.optimal_values(), atol=1e-5, rtol=0)
    true, claimed = outcome(fitted.unsqueeze(0))
    assert true.item() == 0
    assert claimed.item() == pytest.approx(LARGEST)


@pytest.mark.parametrize("iteration", [q_iteration, policy_iteration])
@pytest.mark.parametrize("threshold", [1e-6, 0.05, 0.2, 0.5])
def test_claims_are_pessimistic_and_those_of_the_best_supported_policy(iteration, threshold):
    """Without sampling error. A filtered action is worth 0, so the filter acts like an end of the episode."""
    data = Exact()
    true, claimed = outcome(iteration(data, threshold))
    assert claimed.item() <= true.item() + 1e-5
    passed, values = (density() >= threshold).double(), torch.zeros(2, 4, dtype=torch.float64)
    for _ in range(500):
        values = PROCESS.one_step((passed * values).amax(dim=-1))
    assert claimed.item() == pytest.approx((passed * values).amax(dim=-1)[0].item(), abs=1e-4)


def test_a_threshold_that_is_too_high_filters_the_best_action():
    true = [outcome(q_iteration(Exact(), threshold))[0].item() for threshold in (0.02, 0.2)]
    assert true == pytest.approx([PROCESS.optimal_values()[0].item(), 3.0])


def test_data_have_the_density_rewards_and_transitions_of_the_behavior_policy():
    data = Data(100_000, 1)
    torch.testing.assert_close(data.share[0], density(), atol=0.005, rtol=0)
    torch.testing.assert_close(density().sum().item(), 1.0)
    often = data.share[0] > 0.05
    torch.testing.assert_close(data.rewards[0][often], PROCESS.rewards[often], atol=0.02, rtol=0)
    torch.testing.assert_close(data.transitions[0][often], PROCESS.transitions[often], atol=0.02, rtol=0)
    assert not data.seen[0, :, 3].any()
    one = DISCOUNT * data.transitions[0, 0, 1, 1].item() + data.rewards[0, 0, 1].item()
    assert data.backup(torch.tensor([[0.0, 1.0]]).double())[0, 0, 1].item() == pytest.approx(one)


def test_the_behavior_policy_is_a_policy():
    torch.testing.assert_close(BEHAVIOR.sum(dim=-1), torch.ones(2, dtype=torch.float64))
