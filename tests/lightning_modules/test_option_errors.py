"""Errors of the command line's options name the value and a remedy, and nothing that does not concern the value."""

import pytest

from lightning_modules.cli import run
from lightning_modules.option_errors import concerning_the_value


def said(capsys, *options):
    with pytest.raises(SystemExit) as ended:
        run(["fit", "--model.model_name=any", "--model.objective=aggregate_po.recipes.gmpo", *options])
    return capsys.readouterr().err + str(ended.value)


DATA = ["--data.dataset=lightning_modules.addition.AdditionProblems", "--data.reward=lightning_modules.boxed_answer"]


@pytest.mark.parametrize(
    ("options", "words"),
    [
        (["--data.reward=lightning_modules.MathRewrad"], ["MathRewrad", "Pass the import path of a class or function"]),
        (
            ["--data.schemes=lightning_modules.DynamicSampling"],
            ["Got value: lightning_modules.DynamicSampling", "`+=`"],
        ),
        (["--data.schemes.max_rounds=4"], ["SamplingScheme is abstract", "Name a class first"]),
        (["--data.max_completion_lenght=16"], ["did you mean --data.max_completion_length?"]),
        (["--data.dataset.sizes=16"], ["Option 'sizes' is not accepted; pass one of size, held_out, seed"]),
    ],
)
def test_the_error_names_value_and_remedy(options, words, capsys):
    message = said(capsys, *DATA, *options)
    assert all(text in message for text in words), message
    assert "Union" not in message
    assert "collections.abc.Callable" not in message


@pytest.mark.parametrize("option", ["path", "prompt"])
def test_the_error_of_a_class_is_the_only_one(option, tmp_path, capsys):
    (tmp_path / "rows.jsonl").write_text('{"question": "1 + 1?"}\n')
    path = tmp_path / ("none.jsonl" if option == "path" else "rows.jsonl")
    dataset = ["--data.dataset=lightning_modules.JSONLines", f"--data.dataset.path={path}"]
    message = said(capsys, *dataset, "--data.reward=lightning_modules.boxed_answer").split("error: ")[1]
    assert message.startswith("`path` is" if option == "path" else f"{path}, line 1: no field 'prompt'")


def test_a_value_of_no_type_keeps_the_message_of_every_type():
    message = """Parser key "a":
  Does not validate against any of the Union subtypes
  Subtypes: [<class 'int'>, <class 'bool'>]
  Errors:
    - Expected a <class 'int'>
    - Expected a <class 'bool'>
  Given value type: <class 'str'>
  Given value: x"""
    assert concerning_the_value(message) == message


def test_the_errors_of_one_value_are_said_once():
    message = """Does not validate against any of the Union subtypes
Subtypes: [A, B, C]
Errors:
  - Expected a <class 'int'>
  - Problem with given class_path 'm.A':
      The first line.
      The second.
  - Problem with given class_path 'm.A':
      The first line.
      The second.
Given value type: <class 'str'>
Given value: m.A
Then more."""
    expected = "Problem with given class_path 'm.A':\n  The first line.\n  The second.\nThen more."
    assert concerning_the_value(message) == expected


@pytest.mark.parametrize(
    ("file", "place"), [("trainer: {max_steps: 3\nmodel: [\n", "line 2"), ("a:\n\tb: 1\n", "line 2")]
)
def test_a_file_that_is_no_yaml_is_named(file, place, tmp_path, capsys):
    (tmp_path / "mine.yaml").write_text(file)
    with pytest.raises(SystemExit):
        run(["fit", "--config", str(tmp_path / "mine.yaml")])
    message = capsys.readouterr().err
    assert f'in "{tmp_path / "mine.yaml"}", {place}' in message
    assert "unicode" not in message
