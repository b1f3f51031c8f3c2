"""`aggregate-po plan`: every configuration is planned, from a model's configuration alone."""

import json
import sys

import pytest

from lightning_modules.__main__ import main
from tests.end_to_end.test_configs import CONFIGS
from tests.lightning_modules.test_planning import SMALL


@pytest.fixture
def plan(tmp_path, monkeypatch, capsys):
    """What the command line prints, run in a folder with data and a model that has no weights."""
    (tmp_path / "described").mkdir()
    described = {"model_type": "qwen2", "architectures": ["Qwen2ForCausalLM"], **SMALL, "tie_word_embeddings": True}
    (tmp_path / "described" / "config.json").write_text(json.dumps(described))
    for name in ("train.jsonl", "test.jsonl"):
        (tmp_path / name).write_text(json.dumps({"prompt": "1 + 1?", "answer": "2"}) + "\n")
    (tmp_path / "before").mkdir()
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv("AGGREGATE_PO_CACHE", str(tmp_path / "cache"))

    def planned(*arguments):
        monkeypatch.setattr(sys, "argv", ["aggregate-po", "plan", *map(str, arguments)])
        main()
        assert {path.name for path in tmp_path.iterdir()} == {"described", "train.jsonl", "test.jsonl", "before"}
        return capsys.readouterr().out

    return planned


def configs(*names):
    return [f"--config={CONFIGS / name}.yaml" for name in names]


@pytest.mark.parametrize(
    ("arguments", "said"),
    [
        (
            configs("addition"),
            [
                "889,088 parameters, all trained",
                "rollout:        128 completions",
                "64 completions of at most 40 tokens",
            ],
        ),
        (configs("addition", "vllm"), ["VLLM: ", "a fixed cache on the CPU", "sequences of 256 tokens"]),
        (
            [*configs("one-gpu"), "--model.model_name=./described"],
            ["1 node of 1 x GPU; one device", "4 completions of at most 1,024 tokens, 1 prompt of 1,024", "assumed"],
        ),
        (
            [*configs("eight-gpus"), "--model.model_name=./described"],
            ["1 node of 8 x GPU; DDP", "gradient buckets", "4 completions of at most 1,024 tokens", "0.3 of a device"],
        ),
        (
            [*configs("eight-gpus", "fsdp"), "--model.model_name=./described"],
            ["1 node of 8 x GPU; ModelParallelStrategy, divided by 8", "gathered weights", "gathered gradients"],
        ),
        (
            [*configs("eight-gpus", "node-of-servers"), "--model.model_name=./described"],
            ["VLLMServers: on devices of its own", "prompt of 512 (assumed", "log-probabilities of the rollout"],
        ),
    ],
    ids=lambda value: "",
)
def test_every_configuration_is_planned(arguments, said, plan):
    if "--model.model_name=./described" in arguments:
        arguments = [*arguments, "--data.chat_template=false"]
    output = plan(*arguments)
    for part in [*said, "on each device", "rollout   ", "training     update", "\ntotal  ", "peak: ", "largest: "]:
        assert part in output
    assert "not counted" not in output


def test_overrides_are_those_of_fit_and_what_a_plan_cannot_know_is_told(plan):
    arguments = [*configs("one-gpu"), "--model.model_name=./described", "--data.chat_template=false"]
    output = plan(
        *arguments,
        "--trainer.accumulate_grad_batches=128",
        "--prompt_length=77",
        "--device_memory=20",
        "--ckpt_path=last",
    )
    assert "1 completion of at most 1,024 tokens, 1 prompt of 77 (as given)" in output
    assert "a device has 20.00 GiB (as given)" in output
    assert "VLLM: 6.00 GiB (0.3 of a device)" in output


def test_a_folder_that_holds_a_run_can_be_planned_again(plan, tmp_path):
    (tmp_path / "before" / "metrics.csv").write_text("step\n")
    assert "peak: " in plan(*configs("addition"), f"--trainer.default_root_dir={tmp_path / 'before'}")


@pytest.mark.parametrize(
    ("arguments", "parts"),
    [
        (["--model.model_name=./nowhere"], ["`model_name` is './nowhere'", "not a folder", "hub id"]),
        (["--model.model_name=./before"], ["`model_name` is './before'", "config.json", "pass a folder"]),
        (["--model.model_name=nobody/nothing"], ["`model_name` is 'nobody/nothing'", "hub id that can be reached"]),
        (["--trainer.devices=3"], ["`prompts_per_rollout` is 16", "pass a multiple of 6"]),
        (["--trainer.strategy=deepspeed"], ["`trainer.strategy` is 'deepspeed'", "ModelParallelStrategy"]),
        (["--prompt_length=0"], ["`prompt_length` is 0", "pass 1 or more tokens"]),
        (["--device_memory=0"], ["`device_memory` is 0.0", "pass a positive number"]),
        (["--data.group_size=1"], ["`group_size` is 1", "pass 2 or more"]),
    ],
)
def test_wrong_arguments_are_named(arguments, parts, plan, monkeypatch):
    monkeypatch.setattr("huggingface_hub.constants.HF_HUB_OFFLINE", True)
    with pytest.raises(SystemExit) as stop:
        plan(*configs("addition"), *arguments)
    for part in parts:
        assert part in str(stop.value)
