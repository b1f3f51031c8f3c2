"""What the training package does not import by itself: what is optional, and what only a picture needs."""

import subprocess
import sys
from pathlib import Path

import pytest

pytest.importorskip("lightning")

# Whoever imports matplotlib is noted, because torchmetrics does so by itself wherever it is installed.
PROGRAM = """
import builtins
import sys

imported = builtins.__import__


def noted(name, namespace=None, *rest, **named):
    importer = (namespace or {}).get("__name__", "")
    if name.split(".")[0] == "matplotlib" and importer.split(".")[0] in ("aggregate_po", "lightning_modules"):
        print(importer, "imports", name)
    return imported(name, namespace, *rest, **named)


builtins.__import__ = noted
from lightning_modules import *

print(*sorted({"peft", "vllm"} & sys.modules.keys()))
"""


def test_the_training_package_imports_neither_vllm_nor_matplotlib_nor_peft():
    root = Path(__file__).resolve().parents[1]
    result = subprocess.run([sys.executable, "-c", PROGRAM], cwd=root, capture_output=True, text=True)
    assert result.returncode == 0, result.stderr
    assert result.stdout.strip() == ""


def test_the_package_loads_torch_when_a_name_is_used():
    root = Path(__file__).resolve().parents[1]
    program = "import sys, lightning_modules; print('torch' in sys.modules, 'RunReport' in dir(lightning_modules))"
    result = subprocess.run([sys.executable, "-c", program], cwd=root, capture_output=True, text=True)
    assert result.stdout.split() == ["False", "True"], result.stderr


def test_every_name_of_the_package_is_found():
    import lightning_modules

    assert [name for name in lightning_modules.__all__ if getattr(lightning_modules, name).__name__ != name] == []
    with pytest.raises(AttributeError, match="No lightning_modules attribute PolicyModel"):
        lightning_modules.PolicyModel  # noqa: B018
