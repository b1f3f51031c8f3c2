"""The command `aggregate-po example`."""

import sys
from pathlib import Path

import pytest

from lightning_modules.__main__ import main

ROOT = Path(__file__).resolve().parents[2]


def printed(arguments, monkeypatch, capsys):
    monkeypatch.setattr(sys, "argv", ["aggregate-po", "example", *arguments])
    main()
    return capsys.readouterr().out


def test_it_prints_the_configuration_of_the_default_job(monkeypatch, capsys):
    expected = (ROOT / "experiments" / "configs" / "addition.yaml").read_text(encoding="utf-8")
    assert printed([], monkeypatch, capsys) == expected


def test_an_argument_is_refused(monkeypatch, capsys):
    with pytest.raises(SystemExit):
        printed(["addition"], monkeypatch, capsys)
    assert "aggregate-po example: error: unrecognized arguments: addition" in capsys.readouterr().err
