"""A command without its required arguments says how each is given."""

import sys

import pytest

from lightning_modules.__main__ import main

JOB = "--model.model_name VALUE --model.objective VALUE --data.dataset VALUE --data.reward VALUE"


@pytest.mark.parametrize(
    ("arguments", "remedy"),
    [
        (["view"], "runs, output; pass RUNS --output VALUE"),
        (["view", "runs/a"], "output; pass --output VALUE"),
        (["compare", "runs/frozen"], "objectives, output; pass --objectives VALUE --output VALUE"),
        (["record"], f"fit.output; pass {JOB} --output VALUE"),
        (["fit"], f"fit.data.reward; pass {JOB}"),
    ],
)
def test_missing_arguments_are_named_as_they_are_typed(arguments, remedy, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["aggregate-po", *arguments])
    with pytest.raises(SystemExit):
        main()
    error = " ".join(capsys.readouterr().err.split())
    assert error.split("error: ")[1].endswith(remedy)
