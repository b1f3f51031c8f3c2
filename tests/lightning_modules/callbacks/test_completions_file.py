"""Files of completions: what they hold, resume, size bound, samples in the log, tables, and reading them back."""

import importlib.util
import json

import pytest
import torch
from lightning.pytorch.loggers.logger import DummyLogger

from aggregate_po.advantages import GroupNormalized
from aggregate_po.recipes import grpo
from lightning_modules import CompletionsFile, RolloutObserver, read_completions
from lightning_modules.callbacks.completion_rows import completion_files
from lightning_modules.data.schemes import Replay
from lightning_modules.rewards import Verdict
from tests.lightning_modules.command_line import fit, rows
from tests.lightning_modules.training import NotedAdvantages, fitted, small_data, text_reward

pytest.importorskip("pyarrow")


def two_rewards():
    def brief(completion, example):
        return float(len(completion) < 4)

    return [text_reward, brief]


class Rollouts(RolloutObserver):
    def __init__(self):
        self.seen = []

    def on_rollout(self, trainer, rollout):
        self.seen.append((trainer.global_step, rollout))


def steps_of(folder):
    return [*completion_files(folder)]


def test_a_file_has_every_completion_of_its_rollout(tmp_path, model_folder):
    observer = Rollouts()
    data = small_data(reward=two_rewards(), reward_weights=[1.0, 0.5], updates_per_rollout=2)
    fitted(tmp_path, model_folder, data=data, callbacks=[CompletionsFile(), observer], max_steps=4)
    assert [step for step, _ in observer.seen] == [0, 2]
    assert [path.name for path in completion_files(tmp_path).values()] == ["step-000001.parquet", "step-000003.parquet"]
    for (step, rollout), start in zip(observer.seen, (1, 3), strict=True):
        found, groups = read_completions(tmp_path, step=start), rollout.groups
        assert [row["completion"] for row in found] == groups.texts
        assert [row["prompt"] for row in found[::4]] == [prompt.example["prompt"] for prompt in groups.prompts]
        assert [(row["group"], row["sample"]) for row in found[3:5]] == [(0, 3), (1, 0)]
        assert torch.tensor([row["reward"] for row in found]).equal(groups.rewards.float())
        single = [[row["rewards/text_reward"], row["rewards/brief"]] for row in found]
        assert torch.tensor(single).equal(groups.components.float())
        assert torch.tensor([row["advantage"] for row in found]).equal(rollout.advantages.float())
        assert [row["length"] for row in found] == groups.completions.mask.sum(dim=-1).tolist()
        assert [row["truncated"] for row in found] == (~groups.completions.finished).tolist()
        assert {(row["step"], row["policy_step"]) for row in found} == {(start, step)}
        first = groups.prompts[0]
        assert (found[0]["prompt_length"], json.loads(found[0]["example"])["answer"]) == (
            len(first.token_ids),
            first.example["answer"],
        )


def some_signal(completion, example):
    """Signal in the first rollout alone, in its first two groups."""
    some_signal.calls += 1
    return float(some_signal.calls in (1, 5))


def test_a_replayed_completion_has_the_step_of_its_own_policy(tmp_path, model_folder):
    some_signal.calls = 0
    data = small_data(reward=some_signal, schemes=[Replay()])
    fitted(tmp_path, model_folder, grpo(), data=data, callbacks=[CompletionsFile()], max_steps=2)
    assert [row["policy_step"] for row in read_completions(tmp_path, step=2)] == [0] * 8 + [1] * 8


class TokenAdvantages(NotedAdvantages):
    """Advantages by token, which rise along a completion."""

    def __call__(self, step):
        return super().__call__(step).unsqueeze(-1) * torch.arange(1, int(step.lengths.max()) + 1)


def test_advantages_of_tokens_are_a_list(tmp_path, model_folder):
    data = small_data(advantages=TokenAdvantages(GroupNormalized()))
    fitted(tmp_path, model_folder, grpo(), data=data, callbacks=[CompletionsFile()])
    for row in read_completions(tmp_path):
        assert len(row["advantage"]) == row["length"]
        assert row["advantage"][-1] == pytest.approx(row["advantage"][0] * row["length"])


def failing_reward(completion, example):
    """Fails on some completions, decided by their text."""
    value = text_reward(completion, example)
    return Verdict(None, "exit", "exit status 3") if value == 0.25 else value


@pytest.mark.filterwarnings("ignore:.reward. failing_reward failed")
def test_failed_verdicts_have_a_cause_and_no_reward(tmp_path, model_folder, capsys):
    fitted(tmp_path, model_folder, data=small_data(reward=failing_reward), callbacks=[CompletionsFile()])
    found = read_completions(tmp_path)
    failed = [text_reward(row["completion"], row) == 0.25 for row in found]
    assert 0 < sum(failed) < len(failed)
    assert [row["rewards/failing_reward/cause"] for row in found] == ["exit" if one else None for one in failed]
    for name in ("reward", "rewards/failing_reward"):
        assert [row[name] is None for row in found] == failed
    assert read_completions(tmp_path, reward=(0.0, 1.0)) == [row for row in found if row["reward"] is not None]
    assert ("  no reward, " in capsys.readouterr().out) == any(failed[:4])


@pytest.fixture(scope="module")
def trained(tmp_path_factory, model_folder):
    folder = tmp_path_factory.mktemp("trained")
    fitted(folder, model_folder, data=small_data(updates_per_rollout=2), callbacks=[CompletionsFile()], max_steps=6)
    return folder


def test_completions_are_read_by_step_prompt_and_reward(trained):
    everything = read_completions(trained)
    assert steps_of(trained) == [1, 3, 5]
    assert len(everything) == 3 * 16
    for step, start in ((1, 1), (2, 1), (3, 3), (6, 5)):
        assert read_completions(trained, step=step) == [row for row in everything if row["step"] == start]
    assert read_completions(trained, step=(2, 4)) == [row for row in everything if row["step"] < 5]
    right = read_completions(trained, reward=1.0)
    assert right == [row for row in everything if row["reward"] == 1.0] != []
    between = read_completions(trained, reward=(0.25, 0.5))
    assert between == [row for row in everything if 0.25 <= row["reward"] <= 0.5] != []
    text = everything[0]["prompt"]
    assert read_completions(trained, step=1, prompt=text) == everything[:4]
    assert read_completions(str(trained), prompt="no such prompt") == []


def test_a_run_without_completions_is_an_error_with_the_remedy(tmp_path):
    with pytest.raises(
        FileNotFoundError, match=r"has no files completions/step-\*.*callbacks\+=lightning_modules\.Compl"
    ):
        read_completions(tmp_path)


def test_a_resumed_run_has_each_step_once(tmp_path, model_folder):
    options = "--trainer.callbacks+=lightning_modules.CompletionsFile", "--checkpoint.every_n_train_steps=1"
    folder = tmp_path / "whole"
    fit(model_folder, folder, *options, "--trainer.max_steps=6", "--checkpoint.keep_last=9")
    whole = read_completions(folder)
    assert steps_of(folder) == [1, 3, 5]
    assert "completions/removed_files" in rows(folder)[-1]
    # As if the run had been killed in its fifth step, and had been longer under other settings.
    for step in (3, 4):
        (folder / "completions" / "step-000007.parquet").write_bytes(b"left over")
        checkpoint = f"--ckpt_path={folder}/checkpoints/step-{step}.ckpt"
        fit(model_folder, folder, *options, "--trainer.max_steps=6", "--checkpoint.keep_last=9", checkpoint)
        assert steps_of(folder) == [1, 3, 5]
        assert read_completions(folder) == whole


def test_the_oldest_files_are_removed_beyond_the_bound(tmp_path, model_folder, trained):
    size = max(path.stat().st_size for path in completion_files(trained).values()) / 1e9
    callback = CompletionsFile(max_gigabytes=2.5 * size)
    run = fitted(tmp_path, model_folder, callbacks=[callback], max_steps=4)
    assert steps_of(tmp_path) == [3, 4]
    assert run.metrics["completions/removed_files"] == 2
    fitted(tmp_path / "tiny", model_folder, callbacks=[CompletionsFile(max_gigabytes=0)], max_steps=2)
    assert steps_of(tmp_path / "tiny") == [2]  # the newest stays


def test_the_log_shows_another_prompt_each_time(tmp_path, model_folder, capsys):
    fitted(tmp_path, model_folder, callbacks=[CompletionsFile(show_every_n_rollouts=2)], max_steps=4)
    lines = capsys.readouterr().out.splitlines()
    shown = [line for line in lines if line.startswith("step ")]
    first, third = (read_completions(tmp_path, step=step) for step in (1, 3))
    assert shown == [f"step 1: {first[0]['prompt']}", f"step 3: {third[8]['prompt']}"]
    assert sum(line.startswith("  reward ") for line in lines) == 8


class TableLogger(DummyLogger):
    """A logger with the method that the logger of Weights & Biases has."""

    def __init__(self):
        super().__init__()
        self.tables = []

    def log_table(self, key, columns=None, data=None, dataframe=None, step=None):
        self.tables.append((key, columns, data, step))


def test_loggers_that_take_tables_get_one_for_each_rollout(tmp_path, model_folder):
    logger = TableLogger()
    callback = CompletionsFile(show_every_n_rollouts=0)
    fitted(tmp_path, model_folder, callbacks=[callback], max_steps=2, logger=[logger, DummyLogger()])
    assert [(key, step) for key, _, _, step in logger.tables] == [("completions", 0), ("completions", 1)]
    for number, (_, columns, data, step) in enumerate(logger.tables):
        group = read_completions(tmp_path, step=step + 1)[4 * number : 4 * number + 4]
        assert [dict(zip(columns, row, strict=True)) for row in data] == group


def test_a_trial_writes_nothing(tmp_path, model_folder):
    fitted(tmp_path, model_folder, callbacks=[CompletionsFile()], fast_dev_run=1)
    assert not (tmp_path / "completions").exists()


def test_what_is_refused(monkeypatch):
    with pytest.raises(ValueError, match=r"`max_gigabytes` is -1; pass 0 or more"):
        CompletionsFile(max_gigabytes=-1)
    find_spec = importlib.util.find_spec
    monkeypatch.setattr(
        "lightning_modules.parquet_files.find_spec", lambda name: None if name == "pyarrow" else find_spec(name)
    )
    with pytest.raises(
        ImportError, match=r"CompletionsFile needs `pyarrow`.*, or leave it out of `trainer\.callbacks`"
    ):
        CompletionsFile()
