"""A run that stopped in the middle of a rollout resumes there, with the same or another number of ranks."""

import json
import os
import subprocess
import sys
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file

from lightning_modules.callbacks.checkpoint_files import require_undamaged
from tests.distributed.resumed_runs import STEPS, STOP

REPOSITORY = Path(__file__).parents[2]
# Each program start is one list; later ones resume the runs of earlier ones.
PLANS = [
    {
        "alone": {"strategy": "single"},
        "alone, stopped": {"strategy": "single", "accumulate": 2, "stop": True},
        "adapters, alone": {"strategy": "single", "adapters": True},
        "compared, alone": {"strategy": "single", "compared": True},
        "compared, alone, stopped": {"strategy": "single", "accumulate": 3, "compared": True, "stop": True},
    },
    {
        "ddp": {"strategy": "ddp", "accumulate": 2},
        "ddp, stopped": {"strategy": "ddp", "accumulate": 2, "stop": True},
        "ddp, resumed": {"strategy": "ddp", "accumulate": 2, "resume": "ddp, stopped"},
        "ddp, other micro-batches": {"strategy": "ddp", "accumulate": 3, "resume": "ddp, stopped"},
        "from one to two": {"strategy": "ddp", "accumulate": 2, "resume": "alone, stopped"},
        "sharded": {"strategy": "sharded", "accumulate": 2},
        "sharded, stopped": {"strategy": "sharded", "accumulate": 2, "stop": True},
        "sharded, resumed": {"strategy": "sharded", "accumulate": 2, "resume": "sharded, stopped"},
        "one file, stopped": {"strategy": "sharded, one file", "accumulate": 2, "stop": True},
        "from one file, sharded": {"strategy": "sharded", "accumulate": 1, "resume": "one file, stopped"},
        "tensor_parallel, stopped": {"strategy": "tensor_parallel", "accumulate": 2, "stop": True},
        "tensor_parallel, resumed": {
            "strategy": "tensor_parallel",
            "accumulate": 2,
            "resume": "tensor_parallel, stopped",
        },
        "from ddp to sharded": {"strategy": "sharded", "accumulate": 2, "resume": "ddp, stopped"},
        "from ddp to tensor_parallel": {"strategy": "tensor_parallel", "accumulate": 2, "resume": "ddp, stopped"},
        "from tensor_parallel to sharded": {
            "strategy": "sharded",
            "accumulate": 2,
            "resume": "tensor_parallel, stopped",
        },
        "from sharded to tensor_parallel": {
            "strategy": "tensor_parallel",
            "accumulate": 1,
            "resume": "sharded, stopped",
        },
        "tensor_parallel": {"strategy": "tensor_parallel", "accumulate": 2},
        "adapters, ddp, stopped": {"strategy": "ddp", "adapters": True, "stop": True},
        "adapters, sharded": {"strategy": "sharded", "adapters": True, "resume": "adapters, ddp, stopped"},
        "adapters, shards, stopped": {"strategy": "sharded, one file", "adapters": True, "stop": True},
        "adapters, ddp": {"strategy": "ddp", "adapters": True, "resume": "adapters, shards, stopped"},
        "compared, from one to two": {
            "strategy": "ddp",
            "accumulate": 2,
            "compared": True,
            "resume": "compared, alone, stopped",
        },
        "compared, stopped": {"strategy": "sharded", "accumulate": 2, "compared": True, "stop": True},
        "compared, resumed": {
            "strategy": "sharded",
            "accumulate": 3,
            "compared": True,
            "resume": "compared, stopped",
        },
    },
    {
        "from two to one": {"strategy": "single", "accumulate": 2, "resume": "ddp, stopped"},
        "from two to one, other micro-batches": {"strategy": "single", "accumulate": 1, "resume": "ddp, stopped"},
        "from one file, alone": {"strategy": "single", "accumulate": 1, "resume": "one file, stopped"},
    },
    {
        "both, stopped": {"strategy": "both", "stop": True},
        "both, resumed": {"strategy": "both", "resume": "both, stopped"},
        "from ddp to both": {"strategy": "both", "resume": "ddp, stopped"},
    },
    {"from two shards to one": {"strategy": "sharded over one", "accumulate": 2, "resume": "sharded, stopped"}},
]


@pytest.fixture(scope="module")
def runs(tiny_model, tmp_path_factory):
    """Folder of the results of the runs, by name."""
    folder = tmp_path_factory.mktemp("runs")
    for plan in PLANS:
        command = [sys.executable, "-m", "tests.distributed.resumed_runs", tiny_model, folder, json.dumps(plan)]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            list(map(str, command)), cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900
        )
        assert result.returncode == 0, result.stdout + result.stderr
    return folder


def noted(folder: Path, rank: int) -> dict:
    return json.loads((folder / f"{rank}.json").read_text())


def rows_by_step(folder: Path) -> dict[str, list]:
    """Return the sorted rows of each step over all data-parallel shards; several ranks may have the same shard."""
    shares: dict[int, dict[str, list]] = {}
    for ranks in map(json.loads, map(Path.read_text, folder.glob("*.json"))):
        assert shares.setdefault(ranks["shard"], ranks["rows"]) == ranks["rows"]
    return {step: sorted(row for rows in shares.values() for row in rows[step]) for step in shares[0]}


@pytest.mark.parametrize("strategy", ["ddp", "sharded", "tensor_parallel"])
@pytest.mark.parametrize("rank", [0, 1])
def test_as_many_ranks_end_as_an_undisturbed_run_bit_for_bit(strategy, rank, runs):
    undisturbed, resumed = runs / strategy, runs / f"{strategy}, resumed"
    ours, theirs = (load_file(folder / f"{rank}.safetensors") for folder in (resumed, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    expected = noted(undisturbed, rank)
    assert [*map(int, expected["rows"])] == list(range(STEPS))
    assert noted(resumed, rank)["rows"] == {step: expected["rows"][str(step)] for step in map(str, range(STOP, STEPS))}
    numbers = noted(resumed, rank)["random_numbers"]
    assert numbers == {step: expected["random_numbers"][step] for step in numbers}
    assert len(numbers) == STEPS - STOP
    assert expected["random_numbers"] != noted(undisturbed, 1 - rank)["random_numbers"]


@pytest.mark.parametrize(
    "name",
    [
        "ddp, other micro-batches",
        "from one to two",
        "from two to one",
        "from two to one, other micro-batches",
        "from one file, sharded",
        "from one file, alone",
        "from two shards to one",
        "tensor_parallel, resumed",
        "from ddp to sharded",
        "from ddp to tensor_parallel",
        "both, resumed",
        "from ddp to both",
        "from tensor_parallel to sharded",
        "from sharded to tensor_parallel",
    ],
)
def test_other_numbers_train_on_the_same_completions_in_the_same_steps(name, runs):
    expected = rows_by_step(runs / "alone")
    assert rows_by_step(runs / name) == {step: expected[step] for step in map(str, range(STOP, STEPS))}
    alone, resumed = (load_file(runs / folder / "0.safetensors") for folder in ("alone", name))
    assert max((alone[key] - resumed[key]).abs().max().item() for key in alone) < 1e-12


@pytest.mark.parametrize("name", ["compared, from one to two", "compared, resumed"])
def test_groups_that_two_ranks_share_are_compared_whole(name, runs):
    expected = rows_by_step(runs / "compared, alone")
    assert rows_by_step(runs / name) == {step: expected[step] for step in map(str, range(STOP, STEPS))}
    alone, resumed = (load_file(runs / folder / "0.safetensors") for folder in ("compared, alone", name))
    assert max((alone[key] - resumed[key]).abs().max().item() for key in alone) < 1e-12


@pytest.mark.parametrize("name", ["adapters, sharded", "adapters, ddp"])
def test_adapters_resume_under_another_strategy(name, runs):
    alone, resumed = (load_file(runs / folder / "0.safetensors") for folder in ("adapters, alone", name))
    assert max(value.abs().max().item() for key, value in alone.items() if ".lora_B." in key) > 1e-3
    assert max((alone[key] - resumed[key]).abs().max().item() for key in alone) < 1e-12


@pytest.mark.parametrize("strategy", ["ddp", "sharded", "tensor_parallel"])
def test_undisturbed_runs_of_two_ranks_are_that_of_one(strategy, runs):
    assert rows_by_step(runs / strategy) == rows_by_step(runs / "alone")
    alone, shared = (load_file(runs / folder / "0.safetensors") for folder in ("alone", strategy))
    assert max((alone[key] - shared[key]).abs().max().item() for key in alone) < 1e-12


def test_checkpoints_of_shards_are_complete_when_the_last_one_is_replaced(runs):
    folder = runs / "sharded" / "checkpoints"
    assert (folder / "last.ckpt").is_symlink()
    assert sorted(path.name for path in folder.glob("*.ckpt")) == ["last.ckpt", "step-3.ckpt", "step-6.ckpt"]
    assert (folder / "last.ckpt" / "meta.pt").is_file()
    for step, shards in (("3", 2), ("6", 2)):
        assert len(list((folder / f"step-{step}.ckpt").glob("*.distcp"))) == shards
        require_undamaged(folder / f"step-{step}.ckpt")
        assert (folder / f"step-{step}.ckpt.sha256").read_text().count(".distcp") == shards
