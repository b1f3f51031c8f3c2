"""The page on Stable Diffusion: its commands train a tiny pipeline, and diffusers loads what they leave."""

import json
import re
import shlex
from pathlib import Path

import pytest
import yaml

from lightning_modules.flow.command import flow_command
from tests.docs.test_snippets import ROOT, blocks, contains
from tests.lightning_modules.flow.pipelines import save_pipeline

PAGE = ROOT / "docs" / "diffusers.md"
CONFIG = ROOT / "experiments" / "configs" / "flow" / "sd3.yaml"
HUB = "stabilityai/stable-diffusion-3.5-medium"
# The sizes of the tiny pipeline, on one processor.
SHORT = {
    "model.model.height": 16,
    "model.model.width": 16,
    "model.model.max_sequence_length": 12,
    "trainer.accelerator": "cpu",
    "trainer.devices": 1,
    "trainer.strategy": "auto",
    "trainer.accumulate_grad_batches": 2,
    "trainer.max_steps": 2,
    "data.group_size": 2,
    "data.prompts_per_rollout": 2,
    "data.steps": 3,
    "data.evaluation_steps": 3,
    "report.evaluate_every_n_steps": 2,
    "checkpoint.every_n_train_steps": 1,
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A folder with the files of the page, the experiments and a tiny pipeline."""
    (tmp_path / "experiments").symlink_to(ROOT / "experiments")
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(tmp_path)
    for _, title, code, _ in blocks(PAGE, "python", "json"):
        if title:
            Path(title).write_text(code)
    save_pipeline("tiny")
    return tmp_path


def commands():
    for _, _, code, _ in blocks(PAGE, "bash"):
        for line in code.splitlines():
            if line.startswith("aggregate-po flow "):
                yield shlex.split(line)[2:]


def test_the_page_has_the_configuration():
    assert [arguments[:3] for arguments in commands()] == [["fit", "--config", "experiments/configs/flow/sd3.yaml"]] * 2
    assert HUB in PAGE.read_text()
    said = yaml.safe_load(CONFIG.read_text())
    assert said["model"]["model"]["init_args"]["path"] == HUB


@pytest.mark.slow
@pytest.mark.parametrize("arguments", commands(), ids=len)
def test_commands_train_a_tiny_pipeline_that_diffusers_reads(folder, arguments):
    options = {**SHORT, "model.model.path": str(folder / "tiny")}
    flow_command([*arguments, *(f"--{name}={value}" for name, value in options.items())])
    run = folder / "runs" / "sd3"
    assert [file.name for file in (run / "model").iterdir()] == ["pytorch_lora_weights.safetensors"]
    summary = json.loads((run / "summary.json").read_text())
    assert summary
    said = yaml.safe_load(CONFIG.read_text())
    resolved = yaml.safe_load((run / "config.yaml").read_text())
    for name in options:
        *parents, last = name.split(".")
        node = said
        for parent in parents:
            node = node[parent] if parent in node else node["init_args"][parent]
        node = node.get("init_args", node)
        node.pop(last, None)
    if "--data.reward" in arguments:
        said["data"].pop("reward")
    assert contains(resolved, said)
    (code,) = (code for _, _, code, _ in blocks(PAGE, "py"))
    code = code.replace(HUB, "tiny").replace("bfloat16", "float32").replace("512", "16")
    found = {}
    exec(re.sub(r"image = pipeline\(", "image = pipeline(num_inference_steps=2, prompt=", code), found)
    assert found["image"].size == (16, 16)
    assert found["pipeline"].transformer.peft_config["default_0"].lora_alpha == 64
