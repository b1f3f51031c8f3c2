"""The script that installs Chromium: it does nothing where there is a browser, and says what to do where it cannot."""

import os
import subprocess
from pathlib import Path

import pytest

SCRIPT = Path(__file__).with_name("install_chromium.sh")


def run_with(folder, *programs):
    """Run the script where only these programs are found, each of which prints its name and arguments."""
    for name, output in programs:
        path = folder / name
        path.write_text(f"#!/bin/sh\necho {output or f'{name} $*'}\n")
        path.chmod(0o755)
    return subprocess.run(["/bin/sh", SCRIPT], env={"PATH": os.fspath(folder)}, capture_output=True, text=True)


@pytest.mark.parametrize("browser", ["chromium", "chromium-browser", "google-chrome"])
def test_nothing_is_installed_where_there_is_a_browser(browser, tmp_path):
    done = run_with(tmp_path, (browser, ""), ("apt-get", ""), ("id", "0"))
    assert (done.returncode, done.stdout, done.stderr) == (0, "", "")


def test_root_installs_the_package(tmp_path):
    done = run_with(tmp_path, ("apt-get", ""), ("id", "0"))
    assert done.returncode == 0, done.stderr
    update, install = done.stdout.splitlines()
    assert update.startswith("apt-get update")
    assert "chromium" in install


def test_others_are_told_to_ask_root(tmp_path):
    done = run_with(tmp_path, ("apt-get", ""), ("id", "1000"))
    assert (done.returncode, done.stdout) == (1, "")
    assert f"only root can install it: sudo sh {SCRIPT}" in done.stderr


def test_other_systems_are_told_to_install_it(tmp_path):
    done = run_with(tmp_path, ("id", "0"))
    assert done.returncode == 1
    assert "there is no apt-get to install it; install it with your package manager" in done.stderr
