"""Results that a run owes after its last checkpoint: a resume writes what is missing, and nothing else."""

import json
import shutil

import pytest
from safetensors.torch import load_file

from aggregate_po.recipes import gmpo
from lightning_modules import AtomicCheckpointIO, PolicyModule, RunCheckpoint, RunReport
from lightning_modules.addition import AdditionProblems
from lightning_modules.callbacks import plots
from lightning_modules.callbacks.results import RESULTS
from tests.lightning_modules.training import fitted, small_data, text_reward


@pytest.fixture
def fit(tmp_path, model_folder):
    def fit(max_steps=2, ckpt_path="last", reward=text_reward, folder="run"):
        data = small_data(validation=AdditionProblems(3, held_out=True), reward=reward)
        # A reward that fails is another one than that of the resume.
        module = PolicyModule(model_folder, gmpo(), learning_rate=1e-3, warmup_steps=0, resume_with_changes=True)
        folder = tmp_path / folder
        callbacks = [RunReport(0), RunCheckpoint(str(folder / "checkpoints"))]
        options = {"enable_checkpointing": True, "plugins": [AtomicCheckpointIO()], "callbacks": callbacks}
        options["check_val_every_n_epoch"] = 100  # held-out prompts are evaluated before and after training only
        fitted(folder, model_folder, data=data, module=module, max_steps=max_steps, ckpt_path=ckpt_path, **options)
        return folder

    return fit


def results(folder):
    """Everything that is the same in runs of the same steps."""
    summary = json.loads((folder / "summary.json").read_text())
    weights = load_file(folder / "model" / "model.safetensors")
    return {
        "model": {name: weight.tolist() for name, weight in weights.items()},
        "files": sorted(path.name for path in (folder / "model").iterdir()),
        "samples": (folder / "samples.md").read_text(),
        "picture": (folder / "reward.png").read_bytes()[:8],
        "summary": {name: summary[name] for name in ("before", "after", "steps")},
    }


def remove(path):
    shutil.rmtree(path) if path.is_dir() else path.unlink()


def times(folder):
    return {path: path.stat().st_mtime_ns for path in folder.rglob("*") if path.is_file() and path.name != ".lock"}


def test_a_resume_writes_what_is_missing_and_nothing_else(fit, capsys):
    folder = fit()
    expected, before = results(folder), times(folder)
    assert before[folder / "model" / "model.safetensors"] < before[folder / "summary.json"]
    for names in [[], *([name] for name in RESULTS), list(RESULTS)]:
        for name in names:
            remove(folder / name)
        capsys.readouterr()
        fit()
        after = times(folder)
        written = {path.relative_to(folder).parts[0] for path in after if after[path] != before.get(path)}
        assert written - {".results.json"} == set(names)
        complete = f"nothing to do: the run in {folder} is complete at step 2, with all its results"
        assert (complete in capsys.readouterr().out) == (not names)
        assert results(folder) == expected
        before = after


@pytest.mark.parametrize("max_steps", [1, 2])
def test_a_run_that_was_killed_after_its_last_checkpoint(max_steps, fit):
    """Its resume may ask for fewer steps."""
    folder = fit()
    expected = results(folder)
    for name in (*RESULTS, ".results.json"):
        remove(folder / name)
    assert results(fit(max_steps)) == expected


def test_results_of_an_earlier_end_are_replaced(fit):
    """The second run is killed after its last checkpoint, while the results of the first stand there."""
    whole = results(fit(3, folder="whole"))
    folder = fit(2)
    fit(3)
    earlier = {name: (folder / name).read_bytes() for name in ("summary.json", ".results.json")}
    assert results(folder) == whole
    (folder / "summary.json").write_text('{"steps": 2}')
    (folder / ".results.json").write_text(
        '{"step": 2, "written": ["model", "samples.md", "reward.png", "summary.json"]}'
    )
    assert results(fit(3)) == whole
    assert json.loads((folder / ".results.json").read_text()) == json.loads(earlier[".results.json"])


def test_training_forgets_what_was_written(fit, tmp_path):
    """Even if it ends at the same step: it may have begun at an earlier checkpoint, with other arguments."""
    folder = fit()
    shutil.copytree(folder, tmp_path / "copy")
    fit(1, ckpt_path=None, folder="earlier")

    class Killed(BaseException):
        pass

    def killed(completion, example):
        raise Killed

    checkpoint = tmp_path / "earlier" / "checkpoints" / "last.ckpt"
    with pytest.raises(Killed):
        fit(2, ckpt_path=checkpoint, reward=killed)
    assert not (folder / ".results.json").exists()


@pytest.mark.parametrize("record", ["", "{", "[]", '{"step": 2}', '{"step": 2, "written": 3}', "\0"])
def test_a_damaged_record_is_as_none(record, fit):
    folder = fit()
    expected = results(folder)
    (folder / ".results.json").write_text(record)
    remove(folder / "samples.md")
    assert results(fit()) == expected


class FailsAtTheEnd:
    """Reward of a judge that is gone when the trained policy is evaluated."""

    def __init__(self, folder):
        self.folder = folder

    def __call__(self, completion, example):
        if (self.folder / "checkpoints" / "last.ckpt").exists():
            raise TimeoutError("the judge did not answer")
        return text_reward(completion, example)


def test_a_reward_that_fails_at_the_end_costs_only_what_needs_it(fit, tmp_path):
    message = (
        r"training has ended at step 2, but samples.md, summary.json could not be written \(TimeoutError: the judge "
        r"did not answer\); the checkpoint '.*last.ckpt' is complete: remove the cause and repeat the command with"
    )
    with pytest.raises(RuntimeError, match=message):
        fit(reward=FailsAtTheEnd(tmp_path / "run"))
    folder = tmp_path / "run"
    assert (folder / "model").is_dir()
    assert (folder / "reward.png").exists()
    assert not (folder / "summary.json").exists()
    assert results(fit()) == results(fit(folder="whole"))


@pytest.mark.parametrize("name", ["model", "reward.png"])
def test_a_failure_of_one_result_leaves_the_others(name, fit, tmp_path, monkeypatch):
    def full(*arguments):
        if ".trial" not in str(arguments[-1]):  # it is tried before the training, too
            raise OSError(28, "No space left on device")

    with monkeypatch.context() as patched:
        if name == "model":
            patched.setattr("lightning_modules.model.policy.Policy.save_pretrained", full)
        else:
            patched.setattr(plots, "plot_run", full)
        with pytest.raises(RuntimeError, match=rf"but {name} could not be written \(OSError: .*No space left"):
            fit()
    folder = tmp_path / "run"
    assert {path.name for path in folder.iterdir()} & set(RESULTS) == set(RESULTS) - {name}
    assert not any(path.name.startswith(".new") for path in folder.iterdir())
    assert results(fit()) == results(fit(folder="whole"))


def test_a_run_without_a_step_writes_nothing(fit):
    folder = fit(0)
    assert not set(RESULTS) & {path.name for path in folder.glob("*")}
