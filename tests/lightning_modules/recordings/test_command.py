"""`aggregate-po record`: from a configuration, from a checkpoint and from a run, without a trace in the run folder."""

import sys

import pytest
import torch
import yaml

pytest.importorskip("pyarrow")

from lightning_modules import __main__
from lightning_modules.recordings import Recording
from lightning_modules.recordings.command import record_command, with_run
from tests.lightning_modules.command_line import arguments, fit


def record(model_folder, folder, *options):
    """Run the command with the arguments of the tests' `fit`, and return the recording."""
    output = folder / "recording"
    record_command([*arguments(model_folder, folder / "run")[1:], f"--output={output}", *options])
    return Recording(output)


def contents(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file()}


@pytest.fixture(scope="module")
def finished(tmp_path_factory, model_folder):
    """The folder of a finished run of four steps."""
    folder = tmp_path_factory.mktemp("finished") / "run"
    fit(model_folder, folder)
    return folder


def test_a_configuration_is_recorded(tmp_path, model_folder, capsys):
    recording = record(model_folder, tmp_path, "--rollouts=2")
    assert [entry.step for entry in recording.manifest.steps] == [1, 2, 3, 4]
    assert f"recorded 2 rollouts, 4 optimizer steps: {recording.folder}" in capsys.readouterr().out
    assert sorted(path.name for path in tmp_path.iterdir()) == ["recording"]  # no run folder


def test_the_recorded_configuration_is_one_of_fit(tmp_path, model_folder):
    recording = record(model_folder, tmp_path, "--every_completion=true")
    config = yaml.safe_load((recording.folder / "config.yaml").read_text())
    assert config["trainer"]["default_root_dir"] == str(tmp_path / "run")
    assert not {"run", "rollouts", "output", "reference", "every_completion"} & config.keys()
    again = tmp_path / "again"
    record_command([f"--config={recording.folder / 'config.yaml'}", f"--output={again}", "--every_completion=true"])
    first, second = recording.step(2).batches[1], Recording(again).step(2).batches[1]
    assert torch.equal(first.log_probs, second.log_probs)


def test_a_run_is_recorded_from_its_checkpoint_and_left_as_it_was(tmp_path, finished, capsys, recwarn):
    before = contents(finished)
    record_command([f"--run={finished}", f"--output={tmp_path / 'recording'}"])
    assert "recorded 1 rollout, 2 optimizer steps" in capsys.readouterr().out
    assert not [str(warning.message) for warning in recwarn if "callbacks used to create" in str(warning.message)]
    assert [entry.step for entry in Recording(tmp_path / "recording").manifest.steps] == [5, 6]
    assert contents(finished) == before


def test_the_last_checkpoint_is_that_of_the_run(tmp_path, model_folder, finished):
    options = [f"--trainer.default_root_dir={finished}", "--ckpt_path=last", f"--output={tmp_path / 'recording'}"]
    record_command([*arguments(model_folder, tmp_path)[1:], *options])
    assert [entry.step for entry in Recording(tmp_path / "recording").manifest.steps] == [5, 6]


@pytest.mark.parametrize("limit", ["--trainer.max_epochs=1", "--trainer.max_time=00:00:00:00"])
def test_a_recording_ends_by_its_rollouts_alone(tmp_path, model_folder, limit, capsys):
    recording = record(model_folder, tmp_path, "--trainer.max_steps=-1", limit, "--rollouts=2")
    assert recording.manifest.rollouts == 2
    assert recording.manifest.model_step == recording.manifest.steps[-1].step


def test_a_run_that_ended_by_its_epochs_can_be_recorded(tmp_path, model_folder):
    fit(model_folder, tmp_path / "run", "--trainer.max_steps=-1", "--trainer.max_epochs=1")
    record_command(["--run", str(tmp_path / "run"), f"--output={tmp_path / 'recording'}"])
    assert Recording(tmp_path / "recording").manifest.rollouts == 1


def test_a_resumed_recording_is_what_the_run_would_have_trained_on(tmp_path, model_folder):
    fit(model_folder, tmp_path / "run", "--trainer.max_steps=6", "--checkpoint.every_n_train_steps=2")
    record_command(
        [
            *arguments(model_folder, tmp_path / "run", "--trainer.max_steps=6")[1:],
            f"--ckpt_path={tmp_path / 'run' / 'checkpoints' / 'step-4.ckpt'}",
            f"--output={tmp_path / 'resumed'}",
        ]
    )
    whole = record(model_folder, tmp_path, "--trainer.max_steps=6", "--rollouts=3")
    first, second = Recording(tmp_path / "resumed").step(6), whole.step(6)
    for one, other in zip(first.batches, second.batches, strict=True):
        assert torch.equal(one.batch.completion_ids, other.batch.completion_ids)
        torch.testing.assert_close(one.log_probs, other.log_probs)


def test_what_objectives_may_need_is_recorded_on_request(tmp_path, model_folder):
    recording = record(model_folder, tmp_path, "--reference", "--every_completion")
    assert recording.manifest.every_completion
    policies = [part.batch.policy for step in recording for part in step.batches]
    assert all(policy.ref_log_probs is not None for policy in policies)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--rollouts=0"], "`rollouts` is 0"),
        (["--ckpt_path=last"], "last.ckpt': it is missing"),
        (["--rollouts=two"], "rollouts"),
        (["--trainer.devices=2"], "the trainer has 2; pass `--trainer.devices 1`"),
    ],
)
def test_wrong_arguments_end_with_their_message(tmp_path, model_folder, options, message, capsys):
    with pytest.raises(SystemExit) as ended:
        record(model_folder, tmp_path, *options)
    assert message in f"{ended.value}{capsys.readouterr().err}"
    assert not (tmp_path / "recording").exists()


def test_an_existing_folder_is_refused_before_anything_is_loaded(tmp_path, model_folder):
    (tmp_path / "recording").mkdir()
    with pytest.raises(SystemExit, match="which exists; choose another folder"):
        record(model_folder, tmp_path)


def test_the_folder_is_required(model_folder, tmp_path, capsys):
    with pytest.raises(SystemExit):
        record_command(arguments(model_folder, tmp_path)[1:])
    assert "output" in capsys.readouterr().err


def test_a_run_without_a_checkpoint_is_refused(tmp_path):
    (tmp_path / "config.yaml").write_text("")
    with pytest.raises(SystemExit, match=r"has no checkpoints/last\.ckpt"):
        record_command([f"--run={tmp_path}", "--output=recording"])
    with pytest.raises(SystemExit, match=r"has no config\.yaml"):
        record_command([f"--run={tmp_path / 'nowhere'}", "--output=recording"])


def test_other_arguments_follow_those_of_the_run(finished):
    expanded = with_run(["--rollouts", "2", "--run", str(finished), "--output=there"])
    config, checkpoint = finished / "config.yaml", finished / "checkpoints" / "last.ckpt"
    assert expanded == [f"--config={config}", f"--ckpt_path={checkpoint}", "--rollouts", "2", "--output=there"]
    assert with_run(["--rollouts", "2"]) == ["--rollouts", "2"]


@pytest.mark.parametrize("words", [["--run", "b"], ["--run=b"], ["--run=a"]])
def test_a_second_run_is_refused(words):
    with pytest.raises(SystemExit, match=r"^error: `run` is given 2 times; pass --run once, and record each run"):
        record_command(["--run=a", *words, "--output=recording"])


def test_a_run_in_a_configuration_file_is_refused(tmp_path, capsys):
    file = tmp_path / "record.yaml"
    file.write_text("run: some_run\noutput: recording\n")
    with pytest.raises(SystemExit):
        record_command([f"--config={file}"])
    assert "`run` is 'some_run' in a configuration file; pass --run on the command" in capsys.readouterr().err


def test_the_command_is_one_of_the_library(monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["aggregate-po", "record", "--help"])
    with pytest.raises(SystemExit):
        __main__.main()
    assert "--every_completion" in capsys.readouterr().out
