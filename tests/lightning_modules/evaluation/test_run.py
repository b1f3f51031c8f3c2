"""Evaluations of the tiny model: what is sampled, graded, recorded and continued."""

import json
import os
import shutil
import signal
import subprocess
import sys
import time
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file, save_file

from lightning_modules import configuration
from lightning_modules.evaluation import evaluate, read_results
from lightning_modules.evaluation.records import EvaluationFolder, GradedCompletion
from lightning_modules.rewards import BatchReward, MathReward, RewardPool
from lightning_modules.rollouts import TransformersEngine
from tests.lightning_modules.evaluation import graders
from tests.lightning_modules.training import RecordingEngine

ROOT = Path(__file__).resolve().parents[3]


@pytest.fixture(scope="module")
def problems(tmp_path_factory):
    path = tmp_path_factory.mktemp("problems") / "sums.jsonl"
    path.write_text("".join(json.dumps({"question": f"What is {n} + 1?", "answer": n + 1}) + "\n" for n in range(5)))
    return str(path)


def evaluated(model_folder, problems, output, **options):
    defaults = {
        "samples": 3,
        "max_completion_length": 6,
        "completions_per_batch": 6,
        "reward": graders.parity,
        "workers": 1,
        "accelerator": "cpu",
    }
    return evaluate(model_folder, problems, str(output), **{**defaults, **options})


def records(output, name="sums"):
    return list(EvaluationFolder(Path(output), json.loads((Path(output) / "settings.json").read_text())).read(name))


@pytest.fixture(scope="module")
def finished(model_folder, problems, tmp_path_factory):
    """An evaluation with its output folder and its engine."""
    output, engine = tmp_path_factory.mktemp("finished"), RecordingEngine()
    return evaluated(model_folder, problems, output, rollouts=engine), output, engine


def test_a_template_formats_the_problems(model_folder, problems, tmp_path, tokenizer):
    engine = RecordingEngine()
    evaluated(model_folder, problems, tmp_path, rollouts=engine, prompt_template="Q: {prompt} A:", greedy=False)
    assert engine.prompts[0] == [tokenizer.encode(f"Q: What is {number} + 1? A:") for number in range(2)]
    with pytest.raises(ValueError, match="prompt_template"):
        evaluated(model_folder, problems, tmp_path, rollouts=engine, greedy=False)


def test_completions_are_those_of_the_engine(finished, tokenizer):
    (result,), output, engine = finished
    asked = [(one.temperature, one.top_p, one.samples_per_prompt) for one in engine.sampling]
    assert asked == [(0.6, 0.95, 3), (0.0, 1.0, 1)] * 3
    assert len({one.seed for one in engine.sampling}) == 3  # of the batches
    sampled = [one for one in records(output) if not one.greedy]
    assert [one.problem for one in sampled] == [0, 0, 0, 1, 1, 1, 2, 2, 2, 3, 3, 3, 4, 4, 4]
    lengths = torch.cat([one.mask.sum(-1) for one in engine.generated[::2]]).tolist()
    assert [one.length for one in sampled] == lengths
    assert [one.truncated for one in sampled] == [not done for one in engine.generated[::2] for done in one.finished]
    assert result.truncated["sampled"] == sum(one.truncated for one in sampled) / 15
    for one in records(output):
        assert one.value == graders.parity(one.completion, {"prompt": f"What is {one.problem} + 1?"})
    assert 0 < result.metrics["avg@3"].value < 1
    assert engine.prompts[0] == [tokenizer.encode("What is 0 + 1?"), tokenizer.encode("What is 1 + 1?")]


def test_the_results_are_in_the_folder(finished):
    results, output, _ = finished
    assert read_results(output) == results
    assert "| sums " in (output / "results.md").read_text()
    parquet = pytest.importorskip("pyarrow.parquet")
    rows = parquet.read_table(output / "completions.parquet").to_pylist()
    assert len(rows) == 5 * 4
    assert [row["completion"] for row in rows] == [one.completion for one in records(output)]
    last = {name: rows[-1][name] for name in ("benchmark", "prompt", "answer", "problem", "sample", "greedy")}
    expected = {"prompt": "What is 4 + 1?", "answer": "5", "problem": 4, "sample": 0, "greedy": True}
    assert last == {"benchmark": "sums", **expected}


def test_a_finished_evaluation_is_read_and_a_missing_batch_is_repeated(finished, model_folder, problems):
    results, output, engine = finished
    calls, before = len(engine.generated), records(output)
    assert evaluated(model_folder, problems, output, rollouts=engine) == results
    assert len(engine.generated) == calls
    (output / "batches" / "sums" / "000002.jsonl").unlink()
    (output / "batches" / "sums" / ".new-000004.jsonl").write_text("{half of a li")  # of a kill while it was written
    assert evaluated(model_folder, problems, output, rollouts=engine) == results
    assert len(engine.generated) == calls + 2
    assert records(output) == before


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.7}, r"`temperature` was 0\.6 and is 0\.7"),
        ({"samples": 2}, r"`benchmarks\.sums\.samples` was 3 and is 2"),
        ({"reward": MathReward()}, r"`reward` was 'tests\..*parity' and is .*MathReward"),
        ({"completions_per_batch": 7}, r"`completions_per_batch` was 6 and is 7"),
    ],
)
def test_other_settings_are_refused(finished, model_folder, problems, options, message):
    _, output, engine = finished
    with pytest.raises(ValueError, match=rf"has an evaluation with other settings: .*{message}.*; pass those"):
        evaluated(model_folder, problems, output, **{"rollouts": engine, **options})


def test_a_model_that_was_trained_further_is_refused(model_folder, problems, tmp_path, monkeypatch):
    """Its files have the sizes that they had."""
    monkeypatch.setattr(configuration, "_HASHED_BYTES", 8)
    folder, output = tmp_path / "model", tmp_path / "out"
    shutil.copytree(model_folder, folder)
    evaluated(str(folder), problems, output)
    weights = load_file(folder / "model.safetensors")
    name = next(iter(weights))
    save_file({**weights, name: weights[name] + 1e-3}, folder / "model.safetensors", metadata={"format": "pt"})
    with pytest.raises(ValueError, match=r"`model, model\.safetensors` was"):
        evaluated(str(folder), problems, output)


def test_other_problems_and_another_model_are_refused(finished, model_folder, problems, tiny_model, tmp_path):
    _, output, engine = finished
    other = tmp_path / "sums.jsonl"
    other.write_text('{"prompt": "What is 1 + 1?", "answer": "2"}\n')
    with pytest.raises(ValueError, match=r"`benchmarks\.sums\.problems"):
        evaluated(model_folder, str(other), output, rollouts=engine)
    with pytest.raises(ValueError, match=r"`model, generation_config\.json` was"):
        evaluated(str(tiny_model), problems, output, rollouts=engine)


def test_the_arguments_of_an_engine_may_change(model_folder, problems, tmp_path):
    first = evaluated(model_folder, problems, tmp_path, rollouts=TransformersEngine())
    assert evaluated(model_folder, problems, tmp_path, rollouts=TransformersEngine(max_sequences=7)) == first


class Parity(BatchReward):
    """`graders.parity`, for several completions at once."""

    def __call__(self, completions, examples):
        return [graders.parity(*pair) for pair in zip(completions, examples, strict=True)]


async def parity_from_afar(completion, example):
    return graders.parity(completion, example)


def test_rewards_of_several_completions_and_asynchronous_ones_grade_too(finished, model_folder, problems, tmp_path):
    results, *_ = finished
    for number, reward in enumerate((Parity(), parity_from_afar, RewardPool(graders.parity))):
        assert evaluated(model_folder, problems, tmp_path / str(number), reward=reward) == results


@pytest.mark.filterwarnings("ignore:.reward. hostile failed")
def test_failed_verdicts_are_counted_by_cause_and_count_as_wrong(model_folder, problems, tmp_path):
    (result,) = evaluated(model_folder, problems, tmp_path, reward=graders.hostile, greedy=False)
    assert sum(result.failed.values()) == 3
    assert result.failed.keys() <= {"exit", "exception"}
    assert [sum(scores) for scores in result.scores["sampled"].values()] == [3, 0, 3, 3, 3]
    assert "maj@3" not in result.metrics
    assert "greedy" not in result.metrics


def test_answers_vote_where_the_reward_reads_them(model_folder, problems, tmp_path):
    (result,) = evaluated(model_folder, problems, tmp_path, reward=MathReward(answer_forms=["last_number"]))
    assert {one.extracted for one in records(tmp_path)} > {None}
    assert result.metrics["maj@3"].value <= result.metrics["pass@3"].value


def test_without_pyarrow_the_completions_are_in_the_batches(finished, model_folder, problems, tmp_path, monkeypatch):
    results, *_ = finished
    monkeypatch.setattr("lightning_modules.evaluation.run.has_pyarrow", lambda: False)
    with pytest.warns(UserWarning, match=r"completions\.parquet is not written: pyarrow is not installed; run pip"):
        assert evaluated(model_folder, problems, tmp_path) == results
    assert not (tmp_path / "completions.parquet").exists()


def test_the_folder_of_a_run_stands_for_its_model(finished, model_folder, problems, tmp_path):
    run = tmp_path / "run"
    run.mkdir()
    (run / "config.yaml").write_text("")
    (run / "model").symlink_to(model_folder)
    results, *_ = finished
    assert evaluated(str(run), problems, tmp_path / "evaluation") == results


@pytest.mark.parametrize(
    ("options", "message"),
    [
        ({"temperature": 0.0}, r"`temperature` is 0\.0; pass a positive number"),
        ({"top_p": 0.0}, r"`top_p` is 0\.0; pass a probability above 0"),
        ({"top_p": 1.1}, r"`top_p` is 1\.1"),
        ({"samples": 0}, r"`samples` is 0; pass 1 or more"),
        ({"system_prompt": "Be brief."}, r"`system_prompt` is 'Be brief\.', but `chat_template` is False"),
        ({"reward": graders.excessive}, r"`reward` gave 2\.0; pass a reward from 0 to 1"),
    ],
)
def test_what_is_refused(model_folder, problems, tmp_path, options, message):
    with pytest.raises(ValueError, match=message):
        evaluated(model_folder, problems, tmp_path, **options)


@pytest.mark.slow
def test_a_killed_evaluation_continues_with_the_results_it_would_have_had(model_folder, problems, tmp_path):
    options = {"completions_per_batch": 1, "reward": graders.slow_parity}
    whole = evaluated(model_folder, problems, tmp_path / "whole", **options)
    output = tmp_path / "killed"
    program = (
        "from tests.lightning_modules.evaluation import graders, test_run as tests\n"
        f"tests.evaluated({model_folder!r}, {problems!r}, {str(output)!r}, completions_per_batch=1,"
        " reward=graders.slow_parity)"
    )
    process = subprocess.Popen([sys.executable, "-c", program], cwd=ROOT, env={**os.environ, "PYTHONPATH": str(ROOT)})
    batches = output / "batches" / "sums"
    while not (batches / "000000.jsonl").exists():
        assert process.poll() is None
        time.sleep(0.005)
    process.send_signal(signal.SIGKILL)
    process.wait()
    left = len(list(batches.glob("[0-9]*.jsonl")))
    assert 1 <= left < 5
    assert not (output / "results.json").exists()
    assert evaluated(model_folder, problems, output, **options) == whole
    assert records(output) == records(tmp_path / "whole")
    assert all(isinstance(one, GradedCompletion) for one in records(output))


@pytest.mark.parametrize(("completions", "sizes"), [(1, [1, 1, 1, 1, 1]), (8, [2, 2, 1]), (256, [5])])
def test_a_batch_has_as_many_problems_as_have_its_completions(model_folder, problems, tmp_path, completions, sizes):
    evaluated(model_folder, problems, tmp_path / "out", completions_per_batch=completions)
    files = sorted((tmp_path / "out" / "batches").rglob("*.jsonl"))
    problems_of = [{json.loads(line)["problem"] for line in file.read_text().splitlines()} for file in files]
    assert [len(found) for found in problems_of] == sizes
