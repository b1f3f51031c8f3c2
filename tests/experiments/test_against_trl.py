"""The benchmarks against TRL, shortened and with a tiny model, and their clock."""

import json
import re
import runpy
import sys
from pathlib import Path

import pytest
import torch

from experiments.benchmarks import against_trl
from experiments.benchmarks.against_trl import Job, Stopwatch
from experiments.benchmarks.real_model_vs_trl import main, share_of_digits, write_random_model
from lightning_modules.addition.warm_start import AdditionWarmStart, make_model, make_tokenizer
from tests.peers import require_peers

require_peers("trl")
pytestmark = [pytest.mark.parity, pytest.mark.slow]

SCRIPTS = Path(against_trl.__file__).parent
RESULT = re.compile(
    r"(?P<seconds>[\d.]+) s \(sampling [\d.]+, forward [\d.]+, backward [\d.]+, optimizer [\d.]+\), "
    r"(?P<tokens>[\d.]+) tokens per completion, (?P<equal>\d+)% of the groups without gradient, peak [\d,]+ MiB"
)


@pytest.fixture(scope="module")
def folder(tmp_path_factory):
    """Folder of a small model with room for a word problem, of which the tokenizer makes a token for each character."""
    tokenizer, folder = make_tokenizer(), tmp_path_factory.mktemp("model")
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(0)
        model = make_model(tokenizer, hidden_size=32, layers=2)
    model.config.max_position_embeddings = 512
    model.save_pretrained(folder)
    tokenizer.save_pretrained(folder)
    return folder


def test_each_combination_has_both_sides_and_a_ratio(folder, monkeypatch, capfd):
    sizes = ["--lengths", "3", "5", "--updates", "2", "--rollouts", "2", "--pairs", "1"]
    monkeypatch.setattr(sys, "argv", ["script", "--model", str(folder), *sizes])
    main()
    lines = capfd.readouterr().out.splitlines()
    for length, (title, here, trl, ratio) in zip((3, 5), (lines[:4], lines[4:]), strict=True):
        assert title == f"16 completions of at most {length} tokens, 2 updates"
        seconds = []
        for side, line in (("here", here), ("trl", trl)):
            found = RESULT.fullmatch(line.strip().removeprefix(f"{side}: "))
            assert found, line
            assert 0 < float(found["tokens"]) <= length
            seconds.append(float(found["seconds"]))
        printed = float(re.search(r"median ([\d.]+), from", ratio)[1])
        assert printed == pytest.approx(seconds[1] / seconds[0], rel=0.05)


@pytest.mark.parametrize("side", against_trl.SIDES)
def test_a_side_of_the_addition_model(side, tiny_model, monkeypatch, capsys):
    monkeypatch.setattr(AdditionWarmStart, "prepare", lambda self: str(tiny_model))
    monkeypatch.setattr(sys, "argv", ["script", "--side", side, "--rollouts", "2"])
    runpy.run_path(str(SCRIPTS / "rollout_step_vs_trl.py"), run_name="__main__")
    result = json.loads(capsys.readouterr().out.splitlines()[-1])
    assert 0 < sum(result["phases"].values()) < result["seconds"]
    assert min(result["phases"].values()) > 0
    assert 0 < result["tokens"] <= 40


def test_the_clock(monkeypatch):
    now = 0.0
    monkeypatch.setattr(against_trl, "_now", lambda: now)
    watch = Stopwatch(Job("", [], share_of_digits, 2, 2, updates=2, length=4), skipped=1)
    for rollout, (sampling, backward) in enumerate([(100, 50), (1, 10), (2, 20), (6, 60)]):
        watch.tokens.append(rollout)
        watch.equal.append(rollout / 6)
        with watch.phase("sampling"):
            now += sampling
        for _ in range(2):
            with watch.phase("backward"), watch.phase("forward"):
                now += backward / 2
            now += 0.5  # outside of all phases
            watch.update_ended()
    result = watch.result()
    # The first rollout is left out. Steps take 12, 23 and 67 seconds; a phase within another has no time of its own.
    assert result["seconds"] == 23
    assert result["phases"] == {"sampling": 3, "forward": 0, "backward": 30, "optimizer": 0}
    assert result["tokens"] == 2
    assert result["equal"] == 0.25


def test_groups_of_a_random_model_have_a_gradient_on_both_sides(tmp_path, monkeypatch, capfd):
    sizes = {"hidden_size": 32, "num_hidden_layers": 1, "num_attention_heads": 4, "num_key_value_heads": 2}
    write_random_model(tmp_path, vocab_size=2000, **sizes)
    arguments = ["--lengths", "8", "--updates", "1", "--rollouts", "2", "--pairs", "1"]
    monkeypatch.setattr(sys, "argv", ["script", "--model", str(tmp_path), *arguments])
    main()
    sides = [line.strip() for line in capfd.readouterr().out.splitlines()[1:3]]
    assert [line[:6].split(":")[0] for line in sides] == ["here", "trl"]
    for line in sides:
        assert RESULT.fullmatch(line.partition(": ")[2])["equal"] == "0"


def test_the_reward():
    assert share_of_digits("12 apples", {}) == pytest.approx(2 / 9)
    assert share_of_digits("", {}) == 0
