"""Dynamic sampling and evaluation in two processes: kept groups, synchronous rounds, exact resume, sharding."""

import json
import os
import subprocess
import sys
from itertools import accumulate
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from transformers import AutoTokenizer

from lightning_modules import read_completions, read_token_rows
from lightning_modules.prompts import PromptOrder
from tests.distributed.dynamic_rollouts import PER_RANK, PROMPTS, SEED, STEPS, is_live

REPOSITORY = Path(__file__).parents[2]
STOP_AT = (6, 14)  # calls of the engine, each after the first checkpoint and between two rounds


@pytest.fixture(scope="module")
def runs(tiny_model, tmp_path_factory):
    """Folder of the runs, by number of processes."""
    folders = {}
    for devices in (1, 2):
        folders[devices] = tmp_path_factory.mktemp(f"devices_{devices}")
        command = [sys.executable, "-m", "tests.distributed.dynamic_rollouts", tiny_model, folders[devices]]
        command += [f"--devices={devices}", "--stop_at", *STOP_AT]
        environment = {**os.environ, "OMP_NUM_THREADS": "1"}
        result = subprocess.run(
            list(map(str, command)), cwd=REPOSITORY, env=environment, capture_output=True, text=True, timeout=900
        )
        assert result.returncode == 0, result.stdout + result.stderr
    return folders


def notes(folder, devices):
    return [json.loads((folder / f"{rank}.json").read_text()) for rank in range(devices)]


@pytest.mark.parametrize("devices", [1, 2])
def test_each_rank_keeps_its_first_groups_with_signal_and_all_make_as_many_rounds(runs, devices, tiny_model):
    ranks = notes(runs[devices] / "undisturbed", devices)
    order = PromptOrder(PROMPTS, SEED)
    tokenizer, start = AutoTokenizer.from_pretrained(tiny_model), 0
    metrics = [rank["metrics"] for rank in ranks]
    assert all(rows == metrics[0] for rows in metrics)
    sampled = [[tokenizer.decode(ids) for prompts in rank["sampled"] for ids in prompts] for rank in ranks]
    for step, counted in enumerate(metrics[0]):
        prompts = [f"{number} + {number}" for number in order.slice(start, start + int(counted["groups/sampled"]))]
        live = 0
        for rank, note in enumerate(ranks):
            mine = prompts[rank::devices]
            assert note["trained"][step] == [prompt for prompt in mine if is_live(prompt)][:PER_RANK]
            first = start // devices
            assert sampled[rank][first : first + len(mine)] == mine
            live += sum(map(is_live, mine))
        assert counted["groups/kept"] == PER_RANK * devices
        assert counted["groups/without_signal"] == len(prompts) - live
        assert counted["groups/surplus"] == live - PER_RANK * devices
        start += len(prompts)
    assert len(metrics[0]) == STEPS
    assert max(counted["groups/rounds"] for counted in metrics[0]) > 1


@pytest.mark.parametrize("call", STOP_AT)
@pytest.mark.parametrize("devices", [1, 2])
def test_a_stop_between_two_rounds_changes_nothing(runs, devices, call):
    undisturbed, resumed = (runs[devices] / name for name in ("undisturbed", f"stopped_{call}"))
    rounds = accumulate(int(counted["groups/rounds"]) for counted in notes(undisturbed, devices)[0]["metrics"])
    assert call not in list(rounds)
    ours, theirs = (load_file(folder / "parameters.safetensors") for folder in (resumed, undisturbed))
    assert all(torch.equal(ours[name], theirs[name]) for name in theirs)
    for mine, other in zip(notes(resumed, devices), notes(undisturbed, devices), strict=True):
        assert 0 < len(mine["trained"]) < STEPS
        assert mine["trained"] == other["trained"][-len(mine["trained"]) :]
        assert mine["held_out"] == other["held_out"]


@pytest.mark.parametrize("devices", [1, 2])
def test_files_of_completions_have_those_of_all_ranks_after_a_stop_too(runs, devices):
    undisturbed = runs[devices] / "undisturbed"
    for step in range(STEPS):
        rows = read_completions(undisturbed, step=step + 1)
        assert [(row["group"], row["sample"]) for row in rows] == [divmod(n, 3) for n in range(3 * PER_RANK * devices)]
        for rank, note in enumerate(notes(undisturbed, devices)):
            assert [row["prompt"] for row in rows[3 * rank :: 3 * devices]] == note["trained"][step]
    for call in STOP_AT:
        assert read_completions(runs[devices] / f"stopped_{call}") == read_completions(undisturbed)


@pytest.mark.parametrize("devices", [1, 2])
def test_files_of_tokens_have_the_completions_of_all_ranks_after_a_stop_too(runs, devices):
    undisturbed = runs[devices] / "undisturbed"
    for step in range(1, STEPS + 1):
        completions = [row for row in read_completions(undisturbed, step=step) if row["advantage"]]
        found = read_token_rows(undisturbed, step)
        for name in ("group", "sample", "reward"):
            assert [row[name] for row in found] == [row[name] for row in completions]
        assert [len(row["weights"]) for row in found] == [row["length"] for row in completions]
        assert [row["advantage"] for row in found] == pytest.approx([row["advantage"] for row in completions])
    for call in STOP_AT:
        assert read_token_rows(runs[devices] / f"stopped_{call}") == read_token_rows(undisturbed)


def test_held_out_metrics_are_those_of_all_prompts_on_every_rank(runs):
    (alone,), (first, second) = (notes(runs[devices] / "undisturbed", devices) for devices in (1, 2))
    assert first["held_out"] == second["held_out"] == alone["held_out"]
    assert alone["held_out"]["reward_sampled"] > 0
    # Five prompts: three on rank 0, two on rank 1, at each of the two temperatures.
    assert [len(prompts) for prompts in first["sampled"][-2:]] == [3, 3]
    assert [len(prompts) for prompts in second["sampled"][-2:]] == [2, 2]
    assert [len(prompts) for prompts in alone["sampled"][-2:]] == [5, 5]
