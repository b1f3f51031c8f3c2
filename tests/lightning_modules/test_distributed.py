"""What a loss is multiplied with, on one rank and on several."""

from types import SimpleNamespace

import pytest
import torch

from lightning_modules.distributed import gathered_over_ranks, loss_scale, summed_over_ranks
from tests.lightning_modules.training import quiet_trainer


@pytest.mark.parametrize(("ranks", "accumulate", "scale"), [(1, 1, 1), (1, 3, 3), (4, 1, 4), (4, 3, 12)])
def test_the_loss_is_scaled_by_ranks_times_micro_batches(ranks, accumulate, scale):
    assert loss_scale(SimpleNamespace(world_size=ranks, accumulate_grad_batches=accumulate)) == scale


def test_the_scale_of_a_real_trainer(tmp_path):
    assert loss_scale(quiet_trainer(tmp_path, accumulate_grad_batches=5)) == 5


def test_one_rank_sums_to_itself(tmp_path):
    values = torch.tensor([1.0, 2.5, -3.0], dtype=torch.double)
    assert torch.equal(summed_over_ranks(values, quiet_trainer(tmp_path)), torch.tensor([1.0, 2.5, -3.0]).double())


def test_several_ranks_are_summed_and_not_averaged():
    def reduce(values, reduce_op="mean"):
        return values * (4 if reduce_op == "sum" else 1)

    strategy = SimpleNamespace(reduce=reduce, root_device=torch.device("cpu"))
    trainer = SimpleNamespace(world_size=4, strategy=strategy)
    assert summed_over_ranks(torch.tensor([1.0, 2.0]), trainer).tolist() == [4.0, 8.0]


def test_one_rank_gathers_its_own_rows(tmp_path):
    rows = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(gathered_over_ranks(rows, quiet_trainer(tmp_path)), rows)


@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_rows_of_several_ranks_stand_in_the_order_of_ranks(shape):
    rows = torch.arange(6.0)[: 3 * (shape[1:] or (1,))[0]].reshape(shape)
    strategy = SimpleNamespace(
        all_gather=lambda values: torch.stack([values, values + 10]), root_device=torch.device("cpu")
    )
    trainer = SimpleNamespace(world_size=2, strategy=strategy)
    assert torch.equal(gathered_over_ranks(rows, trainer), torch.cat([rows, rows + 10]))
