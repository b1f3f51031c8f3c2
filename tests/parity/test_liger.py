"""Liger: the losses that it shares with TRL, in chunks too, and fused with the last layer of a model."""

import pytest
import torch

from tests.peers import require_peers

require_peers("liger_kernel", "trl")

from liger_kernel.chunked_loss import LigerFusedLinearGRPOLoss

from aggregate_po import PolicyBatch
from aggregate_po.normalizers import LengthWeighted
from aggregate_po.recipes import dapo, grpo, luspo, sapo
from tests.parity.cases import CASES, assert_close, assert_parity, by_hand, gradient_of, loss_of, replaced, value_of
from tests.parity.liger_losses import liger_loss
from tests.parity.pairs import SHARED_PAIRS
from tests.parity.trl_losses import trl_loss

STEP = CASES["across the clip"]


def liger(loss_type="grpo", **settings):
    return lambda log_probs, batch: liger_loss(log_probs, batch, loss_type=loss_type, **settings)


@pytest.mark.parametrize("pair", SHARED_PAIRS.values(), ids=SHARED_PAIRS.keys())
def test_loss_and_gradient(pair, case):
    assert_parity(liger(**pair.settings), pair.objective, case, values=pair.values)


@pytest.mark.parametrize("size", [1, 4])
@pytest.mark.parametrize("pair", SHARED_PAIRS.values(), ids=SHARED_PAIRS.keys())
def test_chunks_add_up_to_the_step(pair, size):
    chunked = liger(step_mask=STEP.batch.response_mask, **pair.settings)
    gradients = [gradient_of(chunked, part) for part in STEP.micro_batches(size)]
    assert_close(torch.cat(gradients), gradient_of(loss_of(pair.objective), STEP), 1e-10)


@pytest.mark.parametrize(
    ("loss_type", "objective"),
    [("grpo", grpo()), ("dapo", dapo(0.2, 0.2)), ("sapo", sapo())],
    ids=["grpo", "dapo", "sapo"],
)
def test_fused_with_the_last_layer(loss_type, objective):
    """From hidden states and the matrix of the vocabulary, which is what a trainer calls."""
    generator = torch.Generator().manual_seed(0)
    batch, time, width, vocabulary = 4, 7, 8, 11
    hidden = torch.randn(batch, time, width, generator=generator)
    matrix = torch.randn(vocabulary, width, generator=generator)
    chosen = torch.randint(vocabulary, (batch, time), generator=generator)
    mask = torch.arange(time) < torch.tensor([[7], [3], [5], [1]])
    advantages = torch.tensor([1.0, -1.0, -0.5, 2.0])

    def log_probs(hidden, matrix):
        return (hidden @ matrix.T).log_softmax(dim=-1).gather(-1, chosen.unsqueeze(-1)).squeeze(-1)

    old = log_probs(hidden, matrix) + 0.2 * torch.randn(batch, time, generator=generator)
    fused = LigerFusedLinearGRPOLoss(beta=0.0, compiled=False, use_ref_model=False, loss_type=loss_type)

    def gradients(loss):
        inputs = hidden.clone().requires_grad_(), matrix.clone().requires_grad_()
        return torch.autograd.grad(loss(*inputs), inputs)

    theirs = gradients(lambda x, w: fused(x, w, chosen, mask, advantages, old_per_token_logps=old)[0])
    ours = gradients(lambda x, w: -objective(log_probs(x, w), PolicyBatch(old, mask, advantages)))
    for actual, expected in zip(ours, theirs, strict=True):
        torch.testing.assert_close(actual, expected, rtol=1e-4, atol=1e-6)


# --- where Liger departs ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize("loss_type", ["cispo", "sapo", "vespo"])
def test_some_losses_have_no_sequence_level(loss_type):
    with pytest.raises(ValueError, match="Sequence-level"):
        value_of(liger(loss_type, importance_sampling_level="sequence"), STEP)


def test_luspo_of_token_ratios_trains_padding():
    """Liger averages over the padded width: three padding tokens get gradients, the response token a quarter."""
    short = by_hand([[0.1, 0.0, 0.0, 0.0]], [1.0], mask=[[1, 0, 0, 0]])
    ours = gradient_of(loss_of(replaced(grpo(), normalizer=LengthWeighted())), short)
    theirs = gradient_of(liger("luspo"), short)
    assert_close(gradient_of(lambda *inputs: trl_loss(*inputs, loss_type="luspo"), short), ours, 1e-10)
    assert_close(theirs[:, :1], ours[:, :1] / 4, 1e-10)
    assert (theirs[:, 1:] != 0).all()


@pytest.mark.parametrize(
    ("peer", "objective"),
    [(liger("grpo"), grpo()), (liger("luspo", importance_sampling_level="sequence"), luspo(0.2, 0.2))],
    ids=["grpo", "luspo"],
)
def test_a_completion_without_tokens_counts_in_the_mean(peer, objective):
    masked = STEP.without(row=3)
    assert_close(gradient_of(peer, masked), gradient_of(loss_of(objective), masked) * 5 / 6, 1e-10)


def test_an_extreme_ratio_is_infinite():
    extreme = by_hand([[100.0], [0.1]], [-1.0, 1.0], dtype=torch.float32)
    assert not torch.isfinite(value_of(liger("grpo"), extreme))
    assert torch.isfinite(value_of(loss_of(grpo()), extreme))
