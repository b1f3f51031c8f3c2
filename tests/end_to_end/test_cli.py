"""The command line: any objective by its import path, and errors that say what to do."""

import csv
import json

import pytest
import yaml
from transformers import AutoModelForCausalLM, AutoTokenizer

from lightning_modules.cli import evaluate_run
from lightning_modules.cli import run as run_command_line
from tests.end_to_end.conftest import CONFIG


def test_an_aggregator_of_the_users_own_trains_by_its_import_path(run, small_fit, tmp_path):
    """One class in one file in the working folder, and nothing else."""
    folder = tmp_path / "run"
    objective = [
        "--model.objective.class_path=aggregate_po.PolicyObjective",
        "--model.objective.init_args.aggregator=my_means.LehmerMean",
        "--model.objective.init_args.aggregator.init_args.order=3",
        "--model.objective.init_args.token_transform=aggregate_po.PessimisticClip.log",
    ]
    status, output = run([*small_fit, *objective, "--trainer.max_steps=4", f"--trainer.default_root_dir={folder}"])
    assert status == 0, output
    config = yaml.safe_load((folder / "config.yaml").read_text())
    assert config["model"]["objective"]["init_args"]["aggregator"]["class_path"] == "my_means.LehmerMean"
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["steps"] == 4
    # Each of the two rollouts is counted once, although two updates use it.
    with (folder / "metrics.csv").open(newline="") as file:
        rows = [row for row in csv.DictReader(file) if row["num_tokens"]]
    tokens = float(rows[0]["num_tokens"]) + float(rows[2]["num_tokens"])
    seconds = sum(float(row["time/step"]) for row in rows)
    assert summary["tokens_per_second"] == pytest.approx(tokens / seconds)


def test_a_run_leaves_its_folder(run, small_fit, tmp_path):
    folder = tmp_path / "run"
    arguments = [*small_fit, "--trainer.max_steps=4", f"--trainer.default_root_dir={folder}"]
    status, output = run(arguments)
    assert status == 0, output
    names = {"metrics.csv", "reward.png", "samples.md", "summary.json", "config.yaml", "model", "checkpoints"}
    assert names <= {path.name for path in folder.iterdir()}
    summary = json.loads((folder / "summary.json").read_text())
    for name, value in summary["after"].items():
        assert f"{name:<22}{summary['before'][name]:>10.3f}{value:>10.3f}" in output
    assert "## Before training" in (folder / "samples.md").read_text()
    assert AutoModelForCausalLM.from_pretrained(folder / "model").num_parameters() > 0
    assert AutoTokenizer.from_pretrained(folder / "model").eos_token == "<eos>"

    trained_with = (folder / "config.yaml").read_text()

    # The exported model measures as the trained one did, and a second run does not write over the first.
    status, output = run(["evaluate", folder])
    assert status == 0, output
    for name, value in summary["after"].items():
        assert f"{name:<22}{value:>10.3f}" in output
    assert (folder / "config.yaml").read_text() == trained_with
    status, output = run(arguments)
    assert status != 0
    assert "already holds a run" in output
    assert "--ckpt_path last" in output


WRONG = {
    "objective": (["--model.objective=aggregate_po.recipes.nope"], ["model.objective", "nope", "import path"]),
    "aggregator": (
        [
            "--model.objective.class_path=aggregate_po.PolicyObjective",
            "--model.objective.init_args.aggregator=not_there.Mean",
        ],
        ["aggregator", "not_there", "import path"],
    ),
    "reward": (["--data.reward=not_there.reward"], ["data.reward", "not_there", "import path"]),
    "dataset": (["--data.dataset=missing.jsonl"], ["`dataset`", "missing.jsonl", "JSON lines"]),
    "no prompts": (["--data.dataset=empty.jsonl"], ["`dataset` is 'empty.jsonl'", "at least one example"]),
    "group_size": (["--data.group_size=1"], ["`group_size` is 1", "pass 2 or more"]),
    "clip": (["--model.objective.log_clip=-1"], ["log_clip", "-1", "0 or more"]),
    "temperature": (["--data.temperature=0"], ["`temperature` is 0", "positive"]),
    "unknown": (["--data.grup_size=4"], ["grup_size"]),
}


@pytest.mark.parametrize(("arguments", "parts"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_named_before_a_model_is_made(arguments, parts, tmp_path, monkeypatch, capfd):
    cache = tmp_path / "cache"
    monkeypatch.setenv("AGGREGATE_PO_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")
    with pytest.raises(SystemExit) as stop:
        run_command_line(["fit", f"--config={CONFIG}", *arguments])
    assert stop.value.code not in (0, None)
    output = f"{stop.value} {capfd.readouterr().err}"
    for part in parts:
        assert part in output
    assert not cache.exists()


def test_evaluate_needs_a_finished_run(tmp_path):
    with pytest.raises(SystemExit, match="pass the folder of a finished run"):
        evaluate_run(str(tmp_path / "nothing"))
