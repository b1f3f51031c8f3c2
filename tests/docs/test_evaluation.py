"""The commands of the page on evaluation run as they stand, with a tiny model in place of those that it names."""

import shlex
import shutil
import sys

import pytest

from lightning_modules.__main__ import main
from tests.docs.test_snippets import ROOT, blocks, folder, write_files

__all__ = ["folder"]

PAGE = ROOT / "docs" / "evaluation.md"
SMALL = ["--max_completion_length=6", "--accelerator=cpu", "--chat_template=false"]


@pytest.mark.slow
def test_the_commands_run_one_after_another(folder, tiny_model, monkeypatch, capsys):
    write_files(PAGE, folder)
    shutil.copytree(tiny_model, folder / "runs" / "mine" / "model")
    (folder / "runs" / "mine" / "config.yaml").write_text("")
    printed = []
    for _, _, code, _ in blocks(PAGE, "bash"):
        for line in code.replace("\\\n", " ").splitlines():
            program, *arguments = shlex.split(line)
            assert program == "aggregate-po"
            arguments = [argument.replace("Qwen/Qwen2.5-0.5B-Instruct", str(tiny_model)) for argument in arguments]
            monkeypatch.setattr(sys, "argv", [program, *arguments, *(SMALL if "--model" in arguments else [])])
            main()
            printed.append(capsys.readouterr().out)
    assert ["| sums " in text for text in printed] == [True, True, True]
    assert "B - A" in printed[-1]
    assert (folder / "evaluations" / "base" / "results.md").read_text() in printed[0]
