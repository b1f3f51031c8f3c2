"""The page on flow-matching models: its commands parse."""

import shlex

import pytest

from lightning_modules.flow.command import flow_command
from tests.docs.test_snippets import ROOT, blocks

PAGE = ROOT / "docs" / "flow.md"
COMMANDS = [
    shlex.split(line)[2:]
    for _, _, code, _ in blocks(PAGE, "bash")
    for line in code.replace("\\\n", " ").splitlines()
    if line.startswith("aggregate-po flow ")
]


@pytest.mark.parametrize("arguments", COMMANDS, ids=" ".join)
def test_commands_parse(arguments, monkeypatch, capsys):
    monkeypatch.chdir(ROOT)
    with pytest.raises(SystemExit) as stop:
        flow_command([*arguments, *([] if "--data.dynamics.help" in arguments else ["--print_config"])])
    assert not stop.value.code
    assert capsys.readouterr().out


def test_commands_are_found():
    assert len(COMMANDS) == 3
