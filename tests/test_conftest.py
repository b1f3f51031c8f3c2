"""What the tests share leaves nothing from one test to the next."""

import importlib

import pytest


@pytest.mark.parametrize("number", [1, 2])
def test_a_module_of_a_test_is_the_one_that_it_wrote(number, tmp_path, monkeypatch):
    (tmp_path / "module_of_two_tests.py").write_text(f"number = {number}\n")
    monkeypatch.syspath_prepend(tmp_path)
    assert importlib.import_module("module_of_two_tests").number == number
