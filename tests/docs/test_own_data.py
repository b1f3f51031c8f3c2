"""The commands of the page on own data run as they stand, with a tiny model and smaller numbers in the file."""

import json
import shlex
import shutil
import sys
from pathlib import Path

import pytest
from transformers import AutoTokenizer

from lightning_modules.__main__ import main
from tests.docs.test_snippets import ROOT, blocks, folder, write_files

__all__ = ["folder"]

PAGE = ROOT / "docs" / "own-data.md"
# What stands in the page's configuration, and what it becomes so that a command takes a few seconds.
SMALLER = {
    "Qwen/Qwen2.5-0.5B-Instruct": "tiny",
    "precision: bf16-mixed": "accelerator: cpu\n  devices: 1",
    "accumulate_grad_batches: 8": "accumulate_grad_batches: 2",
    "max_steps: 200": "max_steps: 2",
    "prompts_per_rollout: 16": "prompts_per_rollout: 4",
    "max_completion_length: 512": "max_completion_length: 8",
}


def commands():
    """Arguments of each command of the page, in order."""
    for _, _, code, _ in blocks(PAGE, "bash"):
        for line in code.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line, comments=True)
            assert program == "aggregate-po"
            yield arguments


@pytest.fixture
def prepared(folder, tiny_model):
    """The working folder of a reader who has followed the page, with a tiny model in it."""
    write_files(PAGE, folder)
    config = folder / "mine.yaml"
    text = config.read_text()
    for said, smaller in SMALLER.items():
        assert text.count(said) == 1
        text = text.replace(said, smaller)
    config.write_text(text)
    shutil.copytree(tiny_model, folder / "tiny")
    tokenizer = AutoTokenizer.from_pretrained(folder / "tiny")
    tokenizer.chat_template = "{% for message in messages %}{{ message.content }} {% endfor %}"
    tokenizer.save_pretrained(folder / "tiny")
    lines = (folder / "train.jsonl").read_text()
    (folder / "questions.jsonl").write_text(lines.replace('"prompt"', '"question"'))
    return folder


def test_the_commands_run_one_after_another(prepared, monkeypatch, capsys):
    ran = []
    # Besides those of the page: the run with several rewards can be measured again, too.
    for arguments in [*commands(), ["evaluate", "runs/brief"]]:
        monkeypatch.setattr(sys, "argv", ["aggregate-po", *arguments])
        main()
        ran.append(arguments[0])
        output = capsys.readouterr().out
        if arguments[0] in ("validate", "evaluate"):
            assert "reward_greedy" in output
        if arguments[0] == "plan":
            assert "peak:" in output
        if arguments[0] == "preflight":
            assert "completions:  64 = 8 prompts x 8" in output
    assert ran == [
        "plan",
        "preflight",
        "validate",
        "fit",
        "fit",
        "fit",
        "evaluate",
        "fit",
        "fit",
        "fit",
        "fit",
        "evaluate",
    ]
    runs = {path.name for path in Path("runs").iterdir()}
    assert runs >= {"trial", "mine", "brief", "renamed", "nested", "mixture"}
    assert (prepared / "runs" / "mine" / "model" / "config.json").is_file()
    assert json.loads((prepared / "runs" / "mine" / "summary.json").read_text())["steps"] == 2
    assert "## Before training" in (prepared / "runs" / "trial" / "samples.md").read_text()
    header = (prepared / "runs" / "brief" / "metrics.csv").read_text().splitlines()[0].split(",")
    assert {"rewards/boxed_answer/mean", "rewards/brief/mean", "frac_reward_zero_std"} <= set(header)
