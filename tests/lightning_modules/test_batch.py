"""Micro-batches: padding, selection, moving, saving."""

import io
from dataclasses import dataclass, replace

import pytest
import torch

from aggregate_po import PolicyBatch, StepTotals
from aggregate_po.recipes import gmpo
from lightning_modules import PolicyModule
from lightning_modules.batch import Evaluation, RolloutBatch, evaluation_metrics, left_padded
from lightning_modules.tally import Tally

PROMPTS = [[5, 6, 7, 8], [9], [10, 11]]
COMPLETIONS = [[20, 21], [22], [23, 24, 25], [26], [27, 28, 29, 30], [31, 32, 33]]


def example_batch(ref=True):
    """Three prompts of two completions each; every number differs from every other."""
    prompt_ids, prompt_mask = left_padded(PROMPTS)
    lengths = torch.tensor([len(row) for row in COMPLETIONS])
    mask = torch.arange(4) < lengths.unsqueeze(-1)
    completion_ids = torch.zeros(6, 4, dtype=torch.long)
    completion_ids[mask] = torch.tensor([token for row in COMPLETIONS for token in row])
    numbers = torch.arange(24.0).reshape(6, 4)
    policy = PolicyBatch(
        old_log_probs=-numbers,
        response_mask=mask,
        advantages=torch.arange(6.0) - 2.5,
        totals=StepTotals(completions=12.0, tokens=30.0, progress=0.25, reward_mean=0.5, reward_std=0.125),
        ref_log_probs=-numbers - 100 if ref else None,
        divergence=numbers / 3 if ref else None,
        scale=numbers + 0.5 if ref else None,
        ref_divergence=numbers / 5 if ref else None,
    )
    return RolloutBatch(
        prompt_ids=prompt_ids,
        prompt_mask=prompt_mask,
        prompt_of=torch.tensor([0, 0, 1, 1, 2, 2]),
        completion_ids=completion_ids,
        completion_mask=mask,
        policy=policy,
        temperature=0.7,
        closes_update=False,
    )


def tensors_of(batch):
    fields = {name: value for name, value in vars(batch).items() if isinstance(value, torch.Tensor)}
    return fields | {f"policy.{k}": v for k, v in vars(batch.policy).items() if isinstance(v, torch.Tensor)}


def assert_equal(first, second):
    left, right = tensors_of(first), tensors_of(second)
    assert left.keys() == right.keys()
    for name, tensor in left.items():
        assert torch.equal(tensor, right[name]), name
        assert tensor.dtype == right[name].dtype, name
    assert first.policy.totals == second.policy.totals
    for name in ("temperature", "closes_update"):
        assert getattr(first, name) == getattr(second, name)


def test_left_padding():
    token_ids, mask = left_padded(PROMPTS)
    assert token_ids.tolist() == [[5, 6, 7, 8], [0, 0, 0, 9], [0, 0, 10, 11]]
    assert mask.tolist() == [[True] * 4, [False] * 3 + [True], [False] * 2 + [True] * 2]
    assert token_ids.dtype == torch.long
    assert mask.dtype == torch.bool


def test_left_padding_keeps_tokens_that_are_zero():
    token_ids, mask = left_padded([[0, 0, 3], [0]])
    assert token_ids.tolist() == [[0, 0, 3], [0, 0, 0]]
    assert mask.tolist() == [[True, True, True], [False, False, True]]


def test_selection_takes_rows_with_their_prompts_and_trims_padding():
    part = example_batch().select(torch.tensor([5, 3, 2]))
    assert part.prompt_ids.tolist() == [[0, 9], [10, 11]]
    assert part.prompt_mask.tolist() == [[False, True], [True, True]]
    assert part.prompt_of.tolist() == [1, 0, 0]
    assert part.completion_ids.tolist() == [[31, 32, 33], [26, 0, 0], [23, 24, 25]]
    assert part.completion_mask.tolist() == [[True] * 3, [True, False, False], [True] * 3]
    assert part.policy.advantages.tolist() == [2.5, 0.5, -0.5]
    assert part.policy.old_log_probs.tolist() == [[-20.0, -21.0, -22.0], [-12.0, 0, 0], [-8.0, -9.0, -10.0]]
    assert part.policy.ref_log_probs.tolist() == [[-120.0, -121.0, -122.0], [-112.0, 0, 0], [-108.0, -109.0, -110.0]]
    assert torch.equal(part.policy.response_mask, part.completion_mask)
    assert part.policy.totals == example_batch().policy.totals
    assert (part.temperature, part.closes_update) == (0.7, False)


def test_selection_keeps_tokens_of_completions_that_are_not_trained():
    """A completion whose response mask is empty is still read in full."""
    batch = example_batch(ref=False)
    untrained = PolicyBatch(batch.policy.old_log_probs, torch.zeros(6, 4), batch.policy.advantages)
    part = RolloutBatch(**{**vars(batch), "policy": untrained}).select(torch.tensor([4]))
    assert part.completion_ids.tolist() == [[27, 28, 29, 30]]
    assert not part.policy.response_mask.any()
    assert part.policy.ref_log_probs is None


def test_selection_changes_no_log_probability(model_folder):
    module = PolicyModule(model_folder, gmpo())
    module.configure_model()
    batch = example_batch()
    with torch.no_grad():
        expected = module.policy.log_probs(batch)
        for rows in ([0], [3], [5, 0, 2], [4, 4, 1]):
            part = batch.select(torch.tensor(rows))
            time = part.completion_mask.shape[1]
            difference = module.policy.log_probs(part) - expected[rows, :time]
            assert difference[part.completion_mask].abs().max() < 1e-5


@pytest.mark.parametrize("ref", [True, False])
def test_state_survives_a_file_of_plain_values(ref):
    batch = example_batch(ref)
    assert_equal(RolloutBatch.from_state_dict(batch.state_dict()), batch)
    file = io.BytesIO()
    torch.save(batch.state_dict(), file)
    file.seek(0)
    assert_equal(RolloutBatch.from_state_dict(torch.load(file, weights_only=True)), batch)


def test_state_of_a_part_does_not_hold_the_whole():
    """Otherwise every micro-batch in a checkpoint would bring the full rollout along."""
    prompt_ids, prompt_mask = left_padded([[1, 2, 3]] * 400)
    mask = torch.ones(400, 50, dtype=torch.bool)
    policy = PolicyBatch(torch.zeros(400, 50), mask, torch.zeros(400))
    batch = RolloutBatch(prompt_ids, prompt_mask, torch.arange(400), torch.zeros(400, 50).long(), mask, policy)
    file = io.BytesIO()
    torch.save(batch.select(torch.arange(4)).state_dict(), file)
    assert file.tell() < 20_000


def test_moving_moves_every_tensor_and_nothing_else():
    batch = example_batch()
    moved = batch.to("meta")
    assert {tensor.device.type for tensor in tensors_of(moved).values()} == {"meta"}
    assert tensors_of(moved).keys() == tensors_of(batch).keys()
    assert moved.policy.totals == batch.policy.totals
    assert (moved.temperature, moved.closes_update) == (0.7, False)
    assert {tensor.device.type for tensor in tensors_of(batch).values()} == {"cpu"}


def test_advantages_of_tokens_are_selected_with_their_tokens():
    batch = example_batch()
    advantages = torch.where(batch.completion_mask, torch.arange(24.0).reshape(6, 4) - 11.5, 0)
    batch = batch.replace(policy=replace(batch.policy, advantages=advantages))
    rows = torch.tensor([2, 0])
    chosen = batch.select(rows)
    assert torch.equal(chosen.policy.advantages, advantages[rows, :3])
    assert torch.equal(batch.select(torch.arange(6)).policy.advantages, advantages)
    assert_equal(RolloutBatch.from_state_dict(chosen.state_dict()), chosen)


@dataclass(frozen=True)
class Steps:
    """A record within a record, as a later batch may have one."""

    scale: torch.Tensor
    inner: StepTotals


@dataclass(frozen=True)
class WiderBatch(PolicyBatch):
    """A batch with a third nested field."""

    steps: Steps | None = None


def test_any_nested_field_is_saved_as_plain_values():
    batch = example_batch()
    wider = WiderBatch(**vars(batch.policy), steps=Steps(torch.arange(3.0), StepTotals(1.0, 2.0)))
    file = io.BytesIO()
    torch.save(batch.replace(policy=wider).state_dict(), file)
    file.seek(0)
    state = torch.load(file, weights_only=True)["policy"]["steps"]
    assert state["scale"].tolist() == [0, 1, 2]
    assert state["inner"] == vars(StepTotals(1.0, 2.0))


def test_what_a_checkpoint_could_only_pickle_is_refused_by_name():
    batch = example_batch()
    wider = WiderBatch(**vars(batch.policy), steps=Steps(torch.arange(3.0), inner={1, 2}))
    with pytest.raises(TypeError, match=r"`policy\.steps\.inner` is \{1, 2\}, which a checkpoint cannot hold"):
        batch.replace(policy=wider).state_dict()


@pytest.mark.parametrize(
    ("rewards", "passed"), [([1.0, 0.0, 0.0, 1.0], True), ([0.0] * 4, True), ([1.0, 0.5, 0.0, 0.5], False)], ids=str
)
def test_a_mean_reward_is_a_pass_rate_where_all_rewards_are_verdicts(rewards, passed):
    """Over all batches of an evaluation, and for each way of generating by itself."""
    halves = [
        Evaluation(name, [{}] * 2, ["", ""], torch.tensor(part).double(), torch.tensor([3, 5]))
        for name, values in (("sampled", rewards), ("greedy", [1.0, 1.0, 0.0, 0.0]))
        for part in (values[:2], values[2:])
    ]
    metrics = evaluation_metrics(sum((half.tally for half in halves), Tally()))
    mean = sum(rewards) / 4
    expected = {"reward_sampled": mean, "mean_length_sampled": 4, "reward_greedy": 0.5, "mean_length_greedy": 4}
    expected |= {"pass@1_greedy": 0.5} | ({"pass@1_sampled": mean} if passed else {})
    assert metrics == expected
