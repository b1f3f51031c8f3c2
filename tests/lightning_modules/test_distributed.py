"""Loss scale and collectives on one rank and on several."""

from types import SimpleNamespace

import pytest
import torch

from lightning_modules.distributed import gathered_over_ranks, loss_scale, summed_over_ranks
from tests.lightning_modules.training import quiet_trainer


def trainer_of(ranks, shards, rank=0, accumulate=1, **strategy):
    """Return a stand-in for a trainer on several ranks, some of which may have the same data-parallel shard."""
    return SimpleNamespace(
        world_size=ranks,
        global_rank=rank,
        distributed_sampler_kwargs={"num_replicas": shards, "rank": rank * shards // ranks},
        accumulate_grad_batches=accumulate,
        strategy=SimpleNamespace(root_device=torch.device("cpu"), **strategy),
    )


@pytest.mark.parametrize(
    ("ranks", "shards", "accumulate", "scale"), [(1, 1, 1, 1), (1, 1, 3, 3), (4, 4, 1, 4), (4, 4, 3, 12), (4, 2, 3, 6)]
)
def test_the_loss_is_scaled_by_data_parallel_ranks_times_micro_batches(ranks, shards, accumulate, scale):
    assert loss_scale(trainer_of(ranks, shards, accumulate=accumulate)) == scale


def test_the_scale_of_a_real_trainer(tmp_path):
    assert loss_scale(quiet_trainer(tmp_path, accumulate_grad_batches=5)) == 5


def test_one_rank_sums_to_itself(tmp_path):
    values = torch.tensor([1.0, 2.5, -3.0], dtype=torch.double)
    assert torch.equal(summed_over_ranks(values, quiet_trainer(tmp_path)), torch.tensor([1.0, 2.5, -3.0]).double())


def test_several_ranks_are_summed_and_not_averaged():
    def reduce(values, reduce_op="mean"):
        return values * (4 if reduce_op == "sum" else 1)

    values = torch.tensor([1.0, 2.0])
    assert summed_over_ranks(values, trainer_of(4, 4, reduce=reduce)).tolist() == [4.0, 8.0]
    # In a tensor-parallel group only rank 0 counts.
    parts = [summed_over_ranks(values, trainer_of(4, 2, rank, reduce=reduce)).tolist() for rank in range(4)]
    assert parts == [[4.0, 8.0], [0.0, 0.0]] * 2


def test_one_rank_gathers_its_own_rows(tmp_path):
    rows = torch.arange(6.0).reshape(3, 2)
    assert torch.equal(gathered_over_ranks(rows, quiet_trainer(tmp_path)), rows)


@pytest.mark.parametrize("shape", [(3,), (3, 2)])
def test_rows_of_several_ranks_stand_in_the_order_of_ranks(shape):
    rows = torch.arange(6.0)[: 3 * (shape[1:] or (1,))[0]].reshape(shape)
    gathered = torch.stack([rows, rows + 10, rows + 20, rows + 30])
    found = gathered_over_ranks(rows, trainer_of(4, 4, all_gather=lambda values: gathered))
    assert torch.equal(found, torch.cat([rows, rows + 10, rows + 20, rows + 30]))
    found = gathered_over_ranks(rows, trainer_of(4, 2, all_gather=lambda values: gathered))
    assert torch.equal(found, torch.cat([rows, rows + 20]))
