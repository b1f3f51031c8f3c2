"""The command `aggregate-po flow`, as a user runs it: a killed run, two processes, its folder, its errors."""

import csv
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
import yaml
from safetensors.torch import load_file

from lightning_modules.cli import evaluate_run
from lightning_modules.flow import FlowDataModule, FlowModule
from lightning_modules.flow.command import FlowCLI, flow_command
from lightning_modules.flow.mixture import MixtureWarmStart
from lightning_modules.viewer.run_facts import facts_of
from tests.end_to_end.test_configs import class_paths

pytestmark = pytest.mark.slow
CONFIG = Path(__file__).parents[2] / "experiments" / "configs" / "flow" / "mixture.yaml"
SHORT = [
    "--model.model.steps=20",
    "--data.group_size=8",
    "--data.validation.size=16",
    "--data.evaluation_steps=5",
    "--trainer.max_steps=12",
    "--checkpoint.every_n_train_steps=1",
    "--report.evaluate_every_n_steps=6",
]


def short(folder, *options):
    return ["flow", "fit", f"--config={CONFIG}", *SHORT, f"--trainer.default_root_dir={folder}", *options]


def weights(folder):
    return load_file(folder / "model" / "velocity.safetensors")


def rows(folder):
    with (folder / "metrics.csv").open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.fixture(scope="module")
def whole(environment, tmp_path_factory):
    """The folder of a run that nothing has interrupted."""
    folder = tmp_path_factory.mktemp("whole")
    program = str(Path(sys.executable).with_name("aggregate-po"))
    subprocess.run([program, *short(folder)], env=environment, cwd=folder, check=True, capture_output=True)
    return folder


def test_a_run_leaves_its_folder_and_both_rewards(whole):
    names = {path.name for path in whole.iterdir()}
    assert names >= {"checkpoints", "config.yaml", "metrics.csv", "model", "reward.png", "samples.md", "summary.json"}
    table = rows(whole)
    assert [int(row["step"]) for row in table] == list(range(13))
    measured = [row for row in table if row["val/reward_ode"]]
    assert [int(row["step"]) for row in measured] == [0, 6, 12]
    assert all(row["val/reward_ode"] == row["val/rewards/NearMode_ode"] for row in measured)
    assert all(float(row["val/rewards/GoldLikelihood_ode"]) < 0 for row in measured)
    assert all(float(row["steps/10/divergence"]) >= 0 for row in table[1:])
    model = MixtureWarmStart(steps=20).load()
    model.load_state_dict(weights(whole))


def test_the_trained_model_is_measured_from_its_checkpoint(whole, capfd):
    with pytest.raises(SystemExit, match="trains no language model; measure a flow-matching model with `aggregate-po"):
        evaluate_run(str(whole))
    config, checkpoint = whole / "config.yaml", whole / "checkpoints" / "last.ckpt"
    cli = flow_command(["validate", f"--config={config}", f"--ckpt_path={checkpoint}"])
    assert cli.model.held_out_metrics["reward_ode"] == pytest.approx(float(rows(whole)[-1]["val/reward_ode"]))


def test_the_page_of_a_run_names_its_model(whole):
    facts = facts_of(yaml.safe_load((whole / "config.yaml").read_text()))
    assert facts["flow-matching model"].startswith("MixtureWarmStart(steps=20")


def test_a_killed_run_goes_on_bit_for_bit(whole, start, run, tmp_path):
    process = start(short("parts", "--trainer.max_steps=100000"))
    deadline = time.monotonic() + 300
    while not (tmp_path / "parts" / "metrics.csv").exists() or len(rows(tmp_path / "parts")) < 6:
        assert process.poll() is None, process.communicate()[0]
        assert time.monotonic() < deadline
        time.sleep(0.02)
    process.kill()
    process.communicate()
    assert process.returncode == -signal.SIGKILL
    reached = int(rows(tmp_path / "parts")[-1]["step"])
    assert reached < 12, "the machine was too slow to kill it in time"
    status, output = run(short("parts", "--ckpt_path=last"))
    assert status == 0, output
    for name, value in weights(whole).items():
        assert torch.equal(weights(tmp_path / "parts")[name], value)


def test_two_processes_are_one(whole, run, tmp_path):
    options = ["--trainer.devices=2", "--trainer.strategy=ddp"]
    status, output = run(short("two", *options))
    assert status == 0, output
    one, two = rows(whole), rows(tmp_path / "two")
    for name in ("reward", "reward_std", "rewards/GoldLikelihood/mean", "kl_old", "grad_norm", "steps/03/log_ratio"):
        for first, second in zip(one[1:], two[1:], strict=True):
            assert float(second[name]) == pytest.approx(float(first[name]), rel=2e-3, abs=1e-6), name
    for first, second in zip(one[::6], two[::6], strict=True):  # the evaluated steps
        for name in ("val/reward_ode", "val/rewards/GoldLikelihood_ode"):
            assert float(second[name]) == pytest.approx(float(first[name]), rel=2e-3), name
    for name, value in weights(whole).items():
        torch.testing.assert_close(weights(tmp_path / "two")[name], value, rtol=1e-3, atol=1e-5)


@pytest.mark.parametrize("path", sorted(CONFIG.parent.glob("*.yaml")), ids=lambda path: path.stem)
def test_configurations_make_their_objects(path, tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    for name in ("train.jsonl", "test.jsonl"):
        Path(name).write_text('{"prompt": "a red cat"}\n')
    seen = {}

    class Resolving(FlowCLI):
        def before_instantiate_classes(self):
            """Lock no folder."""

        def instantiate_trainer(self, **kwargs):
            return self.trainer_class

        def fit(self, **_):
            seen.update(module=self.model, data=self.datamodule, configuration=self.model.configuration)

        def before_fit(self):
            """Look for no other run."""

    monkeypatch.setattr("lightning_modules.flow.command.FlowCLI", Resolving)
    flow_command(["fit", "--config", str(path)])
    assert isinstance(seen["module"], FlowModule)
    assert isinstance(seen["data"], FlowDataModule)
    said = yaml.safe_load(path.read_text(encoding="utf-8"))
    assert set(class_paths(said["model"])) <= set(class_paths(seen["configuration"])) | {"skipped"}


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--data.window=lightning_modules.flow.StepWindow", "--data.window.size=11"], "`size` is 11; pass at most"),
        (["--data.group_size=1"], "`group_size` is 1"),
        (["--trainer.strategy=fsdp2"], "strategy"),
        (["--model.model.steps=0"], "`steps` is 0"),
        (["--data.temperature=2"], "temperature"),
    ],
)
def test_wrong_arguments_are_named(tmp_path, capfd, options, message):
    with pytest.raises(SystemExit) as ended:
        flow_command(short(tmp_path, *options)[1:])
    assert ended.value.code not in (None, 0)
    assert message in f"{ended.value.code}{capfd.readouterr().err}"
