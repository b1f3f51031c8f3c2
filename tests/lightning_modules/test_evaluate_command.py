"""The three forms of `aggregate-po evaluate`: which is meant, what is printed, and its errors."""

import json
import warnings

import pytest

from lightning_modules import evaluate_command as commands
from lightning_modules.evaluate_command import evaluate_command
from lightning_modules.evaluation import comparison_table, read_results, results_table


@pytest.fixture
def problems(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    rows = [{"problem": f"What is {n} + 1?", "answer": n + 1} for n in range(3)]
    (tmp_path / "sums.jsonl").write_text("".join(json.dumps(row) + "\n" for row in rows))
    (tmp_path / "my_grader.py").write_text("def grade(completion, example):\n    return float(len(completion) % 2)\n")
    return tmp_path


def on_benchmarks(model_folder, output, *options):
    fixed = f"--model={model_folder}", "--benchmarks=sums.jsonl,again=sums.jsonl", f"--output={output}"
    sizes = "--samples=2", "--max_completion_length=4", "--accelerator=cpu", "--workers=1"
    return [*fixed, *sizes, "--reward=my_grader.grade", *options]


def test_models_are_evaluated_on_benchmarks_and_compared(model_folder, problems, capsys):
    evaluate_command(on_benchmarks(model_folder, "first", "--seed=1", "--rollouts=TransformersEngine"))
    printed = capsys.readouterr().out
    results = read_results(problems / "first")
    assert [one.name for one in results] == ["sums", "again"]
    assert printed == f"\n{results_table(results)}\n\nresults: first\n"
    evaluate_command(on_benchmarks(model_folder, "second", "--temperature=2", "--top_p=1.0", "--greedy=false"))
    assert "greedy" not in read_results(problems / "second")[0].metrics
    capsys.readouterr()
    evaluate_command(["first", "second"])
    assert capsys.readouterr().out == f"A: first\nB: second\n\n{comparison_table('first', 'second')}\n"


def test_options_may_be_in_a_file(model_folder, problems):
    (problems / "evaluation.yaml").write_text(
        f"model: {model_folder}\nbenchmarks: [sums.jsonl]\noutput: out\nsamples: 1\nmax_completion_length: 2\n"
        "accelerator: cpu\nreward: my_grader.grade\n"
    )
    evaluate_command(["--config", "evaluation.yaml", "--samples", "2"])
    assert read_results(problems / "out")[0].samples == 2


def test_other_prompts_than_those_of_the_run_are_warned_of(model_folder, problems):
    run = problems / "run"
    run.mkdir()
    (run / "model").symlink_to(model_folder)
    (run / "config.yaml").write_text("data: {system_prompt: null, prompt_template: 'Q: {prompt}'}")
    with pytest.warns(UserWarning, match=r"`prompt_template` is None, but the run 'run' was trained with 'Q: "):
        evaluate_command(on_benchmarks("run", "other"))
    with warnings.catch_warnings():
        warnings.filterwarnings("error", message=".*was trained with")
        evaluate_command(on_benchmarks("run", "same", "--prompt_template=Q: {prompt}"))


def test_the_folder_of_a_run_is_evaluated_as_before(monkeypatch):
    calls = []
    monkeypatch.setattr(commands, "evaluate_run", lambda *arguments: calls.append(arguments))
    evaluate_command(["runs/mine"])
    evaluate_command(["runs/mine", "--data.rollouts", "TransformersEngine"])
    assert calls == [("runs/mine",), ("runs/mine", "--data.rollouts", "TransformersEngine")]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["--model=tiny", "--benchmarks=aime99", "--output=out"], "error: `benchmarks` has 'aime99', which is neither"),
        (["none", "nothing"], r"error: 'none' has no results\.json"),
    ],
)
def test_an_error_is_one_sentence(problems, arguments, message):
    with pytest.raises(SystemExit, match=message):
        evaluate_command(arguments)


@pytest.mark.parametrize(
    ("options", "message"),
    [
        (["--top_k=3"], "top_k"),
        (["--reward=my_grader.none"], "Pass the import path of a class or function"),
        (["--samples=many"], 'Parser key "samples"'),
    ],
)
def test_an_option_that_is_not_understood_ends_with_a_usage_error(model_folder, problems, capsys, options, message):
    with pytest.raises(SystemExit) as stop:
        evaluate_command(on_benchmarks(model_folder, "out", *options))
    assert stop.value.code == 2
    assert message in capsys.readouterr().err
    assert not (problems / "out").exists()
