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

    # An engine that is gone need not be there to measure.
    config = trained_with.replace("overlap: false", "overlap: true")
    assert config != trained_with
    (folder / "config.yaml").write_text(config)
    status, output = run(["evaluate", folder, "--data.rollouts=TransformersEngine", "--data.max_completion_length=1"])
    assert status == 0, output
    assert f"{'mean_length_greedy':<22}{1:>10.3f}" in output
    (folder / "config.yaml").write_text(trained_with)
    status, output = run(arguments)
    assert status != 0
    assert "already holds a run" in output
    assert "--ckpt_path last" in output


def rows(file):
    with file.open(newline="") as lines:
        return list(csv.DictReader(lines))


@pytest.mark.parametrize(
    ("export", "weights"), [("merged", "model.safetensors"), ("adapter", "adapter_model.safetensors")]
)
def test_an_adapted_model_is_measured_as_it_was_trained(run, small_fit, tmp_path, export, weights):
    folder = tmp_path / "run"
    lora = ["--model.lora.rank=4", f"--model.lora.export={export}", "--model.learning_rate=1e-2"]
    logger = [
        "--trainer.logger=lightning.pytorch.loggers.CSVLogger",
        f"--trainer.logger.save_dir={tmp_path / 'logged'}",
    ]
    # As in a job that the scheduler may start again: there is no checkpoint yet.
    options = ["--trainer.max_steps=4", f"--trainer.default_root_dir={folder}", "--ckpt_path=last"]
    status, output = run([*small_fit, *lora, *logger, *options])
    assert status == 0, output
    # Another logger gets what the run's own file has, held-out metrics too.
    (logged,) = (tmp_path / "logged").rglob("metrics.csv")
    elsewhere = {int(row["step"]): row for row in rows(logged) if row["val/reward_greedy"]}
    summary = json.loads((folder / "summary.json").read_text())
    for step, name in ((0, "before"), (4, "after")):
        assert float(elsewhere[step]["val/reward_greedy"]) == pytest.approx(summary[name]["reward_greedy"])
    assert sum(bool(row["entropy"]) for row in rows(logged)) == 4
    assert [path.name for path in (folder / "model").glob("*.safetensors")] == [weights]
    summary = json.loads((folder / "summary.json").read_text())
    assert summary["after"] != summary["before"]
    status, output = run(["evaluate", folder])
    assert status == 0, output
    for name, value in summary["after"].items():
        assert f"{name:<22}{value:>10.3f}" in output


@pytest.mark.parametrize(
    ("name", "sentence"), [("leaving", "leaving raised SystemExit"), ("interrupted", "interrupted was interrupted")]
)
def test_a_reward_that_ends_the_process_is_no_successful_run(run, small_fit, tmp_path, name, sentence):
    folder = tmp_path / "run"
    options = [f"--data.reward=my_reward.{name}", "--data.validation=null", f"--trainer.default_root_dir={folder}"]
    status, output = run([*small_fit, *options])
    assert status not in (0, None), output
    assert sentence in output
    assert not (folder / "model").exists()


def test_a_run_with_several_rewards_is_reproduced_by_its_own_configuration(run, small_fit, tmp_path):
    """It is evaluated, and trained once more, from the `config.yaml` that it wrote."""
    folder, again = tmp_path / "run", tmp_path / "again"
    rewards = ["--data.reward+=my_reward.length_reward", "--data.reward+=my_reward.brief"]
    arguments = [argument for argument in small_fit if "data.reward" not in str(argument)]
    config = yaml.safe_load(CONFIG.read_text())
    del config["data"]["reward"]
    (tmp_path / "without.yaml").write_text(yaml.safe_dump(config))
    arguments = [argument if "--config" not in str(argument) else "--config=without.yaml" for argument in arguments]
    options = ["--data.reward_weights=[1.0, 0.5]", "--trainer.max_steps=2", f"--trainer.default_root_dir={folder}"]
    status, output = run([*arguments, *rewards, *options])
    assert status == 0, output
    assert "Unable to serialize" not in (folder / "config.yaml").read_text()
    summary = json.loads((folder / "summary.json").read_text())
    assert {"rewards/length_reward_greedy", "rewards/brief_greedy"} <= summary["after"].keys()
    status, output = run(["evaluate", folder])
    assert status == 0, output
    for name, value in summary["after"].items():
        assert f"{name:<22}" in output
        assert f"{value:>10.3f}" in output
    status, output = run(["fit", f"--config={folder / 'config.yaml'}", f"--trainer.default_root_dir={again}"])
    assert status == 0, output
    assert json.loads((again / "summary.json").read_text())["after"] == summary["after"]


WRONG = {
    "objective": (["--model.objective=aggregate_po.recipes.nope"], ["model.objective", "nope", "import path"]),
    "aggregator": (
        [
            "--model.objective.class_path=aggregate_po.PolicyObjective",
            "--model.objective.init_args.aggregator=not_there.Mean",
        ],
        ["aggregator", "not_there", "import path"],
    ),
    "no path": (["--model.objective=gmpo"], ["model.objective", "import path", "gmpo"]),
    "penalty in a recipe": (["--model.objective.penalties+=K3Penaly"], ["penalties", "K3Penaly", "import path"]),
    "option of a recipe": (
        ["--model.objective.clip_low=0.2"],
        ["'clip_low' is not accepted; pass one of log_clip, log_clip_high, penalties"],
    ),
    "option of a part": (
        [
            "--model.objective.class_path=aggregate_po.PolicyObjective",
            "--model.objective.init_args.aggregator=aggregate_po.PowerMean",
            "--model.objective.init_args.aggregator.oder=2",
        ],
        ["aggregator", "'oder' is not accepted; pass one of exponent"],
    ),
    "option of nothing": (
        ["--data.advantages=aggregate_po.advantages.GroupCentered", "--data.advantages.delta=1"],
        ["'delta' is not accepted; there are no options"],
    ),
    "required": (["--model.objective=aggregate_po.recipes.dr_grpo"], ["dr_grpo", "required: max_completion_length"]),
    "kind": (["--model.objective=aggregate_po.PowerMean"], ["PowerMean does not correspond to a subclass"]),
    "number": (["--model.objective.log_clip=x"], ["log_clip", "Expected a <class 'float'>"]),
    "reward": (["--data.reward=not_there.reward"], ["data.reward", "not_there", "import path"]),
    "dataset": (["--data.dataset=missing.jsonl"], ["`dataset`", "missing.jsonl", "JSON Lines"]),
    "no prompts": (["--data.dataset=empty.jsonl"], ["`dataset` is 'empty.jsonl'", "at least one example"]),
    "group_size": (["--data.group_size=1"], ["`group_size` is 1", "pass 2 or more"]),
    "clip": (["--model.objective.log_clip=-1"], ["log_clip", "-1", "0 or more"]),
    "rank": (["--model.lora.rank=0"], ["`rank` is 0", "pass 1 or more"]),
    "option of adapters": (
        ["--model.lora.rnk=2"],
        ["'rnk' is not accepted; pass one of rank, alpha, target_modules, seed, export"],
    ),
    "temperature": (["--data.temperature=0"], ["`temperature` is 0", "positive"]),
    "infinite temperature": (["--data.temperature=.inf"], ["`temperature` is inf", "positive"]),
    "learning rate": (["--model.learning_rate=.nan"], ["`learning_rate` is nan", "positive"]),
    "random seed": (["--seed_everything=true"], ["`seed_everything` is true", "from 0 to 4294967295"]),
    "negative seed": (["--seed_everything=-1"], ["`seed_everything` is -1", "from 0 to 4294967295"]),
    "seed": (["--seed_everything=4294967296"], ["`seed_everything` is 4294967296", "from 0 to 4294967295"]),
    "unknown": (["--data.grup_size=4"], ["grup_size"]),
}


@pytest.fixture
def refusal(tmp_path, monkeypatch, capfd):
    """Return the error message for arguments that are refused before a model is made."""
    cache = tmp_path / "cache"
    monkeypatch.setenv("AGGREGATE_PO_CACHE", str(cache))
    monkeypatch.chdir(tmp_path)
    (tmp_path / "empty.jsonl").write_text("\n")

    def refused(arguments):
        with pytest.raises(SystemExit) as stop:
            run_command_line(["fit", f"--config={CONFIG}", *arguments])
        assert stop.value.code not in (0, None)
        assert not cache.exists()
        return f"{stop.value} {capfd.readouterr().err}"

    return refused


@pytest.mark.parametrize(("arguments", "parts"), WRONG.values(), ids=WRONG.keys())
def test_wrong_arguments_are_named_before_a_model_is_made(arguments, parts, refusal):
    output = refusal(arguments)
    for part in parts:
        assert part in output


def test_what_is_not_installed_is_named(refusal, monkeypatch):
    monkeypatch.setattr("lightning_modules.model.lora.find_spec", lambda name: None)
    assert "LoRA needs `peft`, which is not installed; run pip install" in refusal(["--model.lora.rank=4"])


@pytest.mark.parametrize("name", ["objective", "aggregator", "reward", "no path", "penalty in a recipe"])
def test_the_remedy_for_an_import_path_is_given_once(name, refusal):
    assert refusal(WRONG[name][0]).count("Pass the import path") == 1


@pytest.mark.parametrize("name", ["option of a recipe", "option of a part", "required", "kind", "number", "group_size"])
def test_the_remedy_for_an_import_path_is_given_for_nothing_else(name, refusal):
    assert "Pass the import path" not in refusal(WRONG[name][0])


def test_a_prompt_that_cannot_be_used_ends_the_run_by_its_message_before_any_step(run, small_fit, tmp_path):
    rows = [{"prompt": "1 + 1?"}, {"prompt": "What is <eos>"}, {"prompt": "2<eos>"}]
    (tmp_path / "mine.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    status, output = run([*small_fit, "--data.dataset=mine.jsonl", f"--trainer.default_root_dir={tmp_path / 'run'}"])
    assert status == 1
    assert "error: `dataset`, mine.jsonl, line 2: the prompt ends with '<eos>'" in output
    assert "2 of 3 prompts are refused." in output
    assert "Traceback" not in output
    assert not (tmp_path / "run" / "metrics.csv").exists()


def test_evaluate_needs_a_finished_run(tmp_path):
    with pytest.raises(SystemExit, match="pass the folder of a finished run"):
        evaluate_run(str(tmp_path / "nothing"))
