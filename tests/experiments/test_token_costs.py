"""The benchmark of costs per token, shortened and with a tiny model."""

import sys

import pytest
import torch
from transformers import AutoModelForCausalLM

from experiments.benchmarks import token_costs
from experiments.tables import read_rows
from lightning_modules.rollouts import SamplingParameters


def run(monkeypatch, capsys, *arguments):
    monkeypatch.setattr(sys, "argv", ["script", *map(str, arguments)])
    token_costs.main()
    return capsys.readouterr().out


def test_a_point_is_measured_once_and_printed(tiny_model, tmp_path, monkeypatch, capsys):
    file = tmp_path / "costs.csv"
    point = ["--model", tiny_model, "--file", file, "--lengths", 12, "--groups", 4]
    run(monkeypatch, capsys, *point, "--tokens", 2304, "--here")
    (row,) = read_rows(file)
    assert (row["length"], row["group_size"], row["micro_batches"]) == ("12", "4", "1")
    assert all(float(row[f"{phase}_seconds"]) > 0 for phase in ("sampling", "training"))
    # Weights, gradients, and two moments of each parameter are there in both phases.
    weights = sum(one.numel() * 4 for one in AutoModelForCausalLM.from_pretrained(tiny_model).parameters())
    assert all(int(row[f"{phase}_planned"]) > 4 * weights for phase in ("rollout", "training"))

    monkeypatch.setattr(token_costs.subprocess, "run", lambda *_, **__: pytest.fail("measured again"))
    last = run(monkeypatch, capsys, *point).splitlines()[-1]
    cost = 1e3 * float(row["sampling_seconds"]) / (4 * 12)
    assert last.startswith(f"| 4 | 12 | {cost:.2f} |")
    assert len(read_rows(file)) == 1


def test_a_micro_batch_has_no_more_than_the_given_tokens(tiny_model, tmp_path, monkeypatch, capsys):
    file = tmp_path / "costs.csv"
    for tokens in (1, 10_000):
        run(monkeypatch, capsys, "--model", tiny_model, "--file", file, "--lengths", 9, "--groups", 3,
            "--tokens", tokens, "--here")  # fmt: skip
    assert [row["micro_batches"] for row in read_rows(file)] == ["3", "1"]
    prompt = int(read_rows(file)[0]["prompt"])
    run(monkeypatch, capsys, "--model", tiny_model, "--file", file, "--lengths", 9, "--groups", 3,
        "--tokens", prompt + 18, "--here")  # fmt: skip
    assert read_rows(file)[-1]["micro_batches"] == "2"


def test_no_token_ends_a_completion(tiny_model):
    engine = token_costs.FullLengths()
    engine.load_policy(AutoModelForCausalLM.from_pretrained(tiny_model))
    sampling = SamplingParameters(20, stop_token_ids=tuple(range(10_000)), samples_per_prompt=2)
    lengths = [engine.generate([[5, 6]], sampling).mask.sum(dim=-1) for _ in range(2)]
    assert torch.equal(torch.stack(lengths), torch.tensor([[token_costs.WARM_UP] * 2, [20] * 2]))


def test_residuals_show_a_step():
    lengths = [64, 128, 256, 512, 1024, 2048]
    line = [3 + 0.001 * length + 50 / length for length in lengths]
    assert token_costs.residuals(lengths, line) == pytest.approx([0] * 6, abs=1e-9)
    stepped = [cost * (1.3 if length >= 512 else 1) for length, cost in zip(lengths, line, strict=True)]
    off = token_costs.residuals(lengths, stepped)
    assert off[2] < -0.05  # the last length before the step
    assert off[3] > 0.05
    assert all(value != value for value in token_costs.residuals(lengths[:3], line[:3]))


def test_a_length_of_no_tokens_is_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        run(monkeypatch, capsys, "--lengths", 0)
    assert "argument --lengths: '0' is not a whole number from 1" in capsys.readouterr().err
