"""The batch: what it checks, what it fills in."""

import pytest
import torch

from aggregate_po import AdaptiveClip, PolicyBatch, PolicyObjective, RewardExponent, StepTotals, TokenRatios
from aggregate_po.aggregators import GeometricMean
from aggregate_po.penalties import K2Penalty
from aggregate_po.shapes import bind_shapes


def fields(**changes):
    return {
        "old_log_probs": torch.zeros(8, 5),
        "response_mask": torch.ones(8, 5),
        "advantages": torch.zeros(8),
        **changes,
    }


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"advantages": torch.zeros(7)},
            "`advantages` has batch=7, but `response_mask` has batch=8; pass one advantage per completion "
            "(see aggregate_po.advantages) or per token.",
        ),
        (
            {"advantages": torch.zeros(8, 6)},
            "`advantages` has time=6, but `response_mask` has time=5; pass one advantage per completion "
            "(see aggregate_po.advantages) or per token.",
        ),
        (
            {"advantages": torch.zeros(8, 5, 1)},
            "`advantages` has shape (8, 5, 1), but `batch` was expected; pass one advantage per completion "
            "(see aggregate_po.advantages) or per token.",
        ),
        (
            {"old_log_probs": torch.zeros(8, 6)},
            "`old_log_probs` has time=6, but `response_mask` has time=5; pass shape `batch time`.",
        ),
        (
            {"old_log_probs": torch.zeros(9, 5)},
            "`old_log_probs` has batch=9, but `response_mask` has batch=8; pass shape `batch time`.",
        ),
        (
            {"ref_log_probs": torch.zeros(8, 4)},
            "`ref_log_probs` has time=4, but `response_mask` has time=5; pass shape `batch time`.",
        ),
        (
            {"response_mask": torch.ones(8)},
            "`response_mask` has shape (8,), but `batch time` was expected; pass one mask entry per token, True on the "
            "tokens that are trained.",
        ),
    ],
    ids=["batch size", "per token", "per logit", "time", "batch size of a policy", "time of the reference", "axes"],
)
def test_errors_name_the_argument_the_sizes_and_the_remedy(changes, message):
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        PolicyBatch(**fields(**changes))
    assert str(error.value) == message


def test_values_that_are_not_tensors():
    with pytest.raises(TypeError) as error:
        PolicyBatch(**fields(advantages=[0.0] * 8))
    assert str(error.value) == (
        "`advantages` is list, not a tensor; pass one advantage per completion (see aggregate_po.advantages) or per "
        "token."
    )


def test_log_probs_are_checked_against_the_batch():
    objective, batch = PolicyObjective(GeometricMean()), PolicyBatch(**fields())
    for method in (objective, objective.gradient_weights):
        with pytest.raises(ValueError, match=r"^`log_probs` has time=6, but `response_mask` has time=5; pass shape"):
            method(torch.zeros(8, 6), batch)


def test_bind_shapes_returns_the_sizes():
    assert bind_shapes(a=(torch.zeros(2, 3), "batch time"), b=(torch.zeros(3), "time")) == {"batch": 2, "time": 3}


def test_totals_are_filled_in_without_empty_rows():
    mask = torch.tensor([[True, False, True], [False] * 3, [True, True, True]])
    totals = PolicyBatch(torch.zeros(3, 3), mask, torch.zeros(3)).totals
    assert (int(totals.completions), int(totals.tokens), totals.progress) == (2, 5, None)


@pytest.mark.parametrize("weighted", [False, True])
def test_totals_over_micro_batches_and_ranks_are_those_of_the_whole_step(weighted):
    generator = torch.Generator().manual_seed(0)
    mask = torch.rand((7, 5), generator=generator) < 0.4
    weights = torch.rand((7, 5), generator=generator).double() if weighted else None
    whole = StepTotals.of(mask, weights)
    split = [slice(0, 3), slice(3, 4), slice(4, 7)]
    own = None if weights is None else [weights[rows] for rows in split]
    reduced = []

    def on_two_equal_ranks(counts):
        reduced.append(counts)
        return 2 * counts

    one = StepTotals.over([mask[rows] for rows in split], own)
    both = StepTotals.over([mask[rows] for rows in split], own, on_two_equal_ranks, progress=0.25)
    assert (one.completions, one.tokens) == (whole.completions, pytest.approx(float(whole.tokens), rel=1e-12))
    assert (both.completions, both.tokens, both.progress) == (2 * one.completions, 2 * one.tokens, 0.25)
    assert len(reduced) == 1
    assert (reduced[0].dtype, reduced[0].shape) == (torch.float64, (2,))


def test_totals_need_a_micro_batch_and_weights_for_each():
    with pytest.raises(ValueError, match=r"^`response_masks` is empty; pass the mask of each micro-batch"):
        StepTotals.over([])
    with pytest.raises(ValueError, match=r"^`mean_weights` has 1 entries, but `response_masks` has 2; pass one, or"):
        StepTotals.over([torch.ones(1, 2)] * 2, [None])


def test_totals_that_are_given_stay():
    totals = StepTotals(100, 1000, progress=0.5)
    assert PolicyBatch(**fields(totals=totals)).totals is totals


def test_padding_is_replaced_by_zero():
    nan = float("nan")
    batch = PolicyBatch(
        old_log_probs=torch.tensor([[-1.0, nan], [nan, nan]]),
        response_mask=torch.tensor([[1, 0], [0, 0]]),
        advantages=torch.tensor([2.0, nan]),
        ref_log_probs=torch.tensor([[-2.0, nan], [nan, nan]]),
    )
    assert batch.response_mask.tolist() == [[True, False], [False, False]]
    assert batch.old_log_probs.tolist() == [[-1.0, 0.0], [0.0, 0.0]]
    assert batch.ref_log_probs.tolist() == [[-2.0, 0.0], [0.0, 0.0]]
    assert batch.advantages.tolist() == [2.0, 0.0]


def test_what_a_batch_holds_is_constant():
    """On policy without `.detach()`, the ratio would be 1 for every parameter and the gradient 0."""
    log_probs = torch.tensor([[-1.0, -2.0], [-0.5, -1.5]], requires_grad=True)
    advantages = torch.tensor([1.0, -1.0], requires_grad=True)
    batch = PolicyBatch(log_probs, torch.ones(2, 2), advantages, ref_log_probs=log_probs)
    objective = PolicyObjective(GeometricMean(), penalties=[K2Penalty(0.1)])
    objective(log_probs, batch).backward()
    assert torch.equal(log_probs.grad, objective.gradient_weights(log_probs, batch).total)
    assert log_probs.grad.abs().min() > 0.1
    assert advantages.grad is None


def test_batch_cannot_be_changed():
    with pytest.raises(AttributeError):
        PolicyBatch(**fields()).advantages = torch.ones(8)


def test_to_moves_every_tensor_and_keeps_the_totals():
    totals = StepTotals(100, 1000)
    moved = PolicyBatch(**fields(totals=totals, ref_log_probs=torch.zeros(8, 5))).to(torch.float64)
    assert {moved.old_log_probs.dtype, moved.ref_log_probs.dtype, moved.advantages.dtype} == {torch.float64}
    assert moved.response_mask.dtype == torch.bool
    assert moved.totals == totals


def test_totals_move_with_the_batch_and_are_never_cast():
    """A tensor on the device that a batch has left would stop the objective; 65,537 is no number of float16."""
    batch = PolicyBatch(**fields(totals=StepTotals(torch.tensor(65_537), torch.tensor(2.0**40), reward_mean=0.5)))
    moved = batch.to("meta", torch.float16)
    assert moved.totals.completions.device.type == moved.totals.tokens.device.type == "meta"
    assert batch.to(torch.float16).totals == batch.totals
    assert batch.to(torch.float16).totals.tokens.dtype == torch.float32


def test_context_after_the_mean_has_one_entry_per_completion():
    mask = torch.tensor([[True, True, False], [False] * 3])
    tokens = TokenRatios.of(torch.ones(2, 3), mask, advantages=torch.tensor([2.0, 3.0]))
    assert tokens.advantages.tolist() == [[2.0], [3.0]]
    assert tokens.lengths.tolist() == [2, 0]
    after = tokens.after_mean(torch.tensor([0.5, 0.0]))
    assert after.advantages.tolist() == [2.0, 3.0]
    assert after.response_mask.tolist() == [True, False]
    assert after.log_ratio.tolist() == [0.5, 0.0]


def test_a_part_that_misses_a_field_of_the_totals_says_which():
    tokens = TokenRatios.of(torch.zeros(1, 2))
    for rule in (RewardExponent(), AdaptiveClip()):
        message = rf"^`totals.reward_mean` is None, but {type(rule).__name__} follows it; pass it to StepTotals"
        with pytest.raises(ValueError, match=message):
            rule(tokens)
