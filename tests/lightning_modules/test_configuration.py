"""Configurations as plain values, and their differences by name."""

import functools
import math

import pytest
import torch

from aggregate_po.penalties import K3Penalty
from aggregate_po.recipes import gmpo, grpo
from lightning_modules import configuration
from lightning_modules.addition import AdditionProblems
from lightning_modules.configuration import Change, changes, described, with_contents
from lightning_modules.model.lora import LoRA
from lightning_modules.prompts import JSONLines
from tests.lightning_modules.training import text_reward


def named(old, new, **options):
    return {change.name: (change.old, change.new) for change in changes(old, new, "model", **options)}


@pytest.mark.parametrize("value", [None, True, 3, 0.1, "text", [1, 2], {"a": [None]}])
def test_plain_values_are_themselves(value):
    assert described(value) == value


def test_parts_have_the_form_of_the_command_line():
    assert described(LoRA(4)) == {
        "class_path": "lightning_modules.model.lora.LoRA",
        "init_args": {"rank": 4, "alpha": 32, "target_modules": "all-linear", "seed": 0, "export": "merged"},
    }
    assert described(text_reward) == "tests.lightning_modules.training.text_reward"
    assert described(functools.partial(torch.optim.SGD, lr=0.1)) == {
        "class_path": "torch.optim.sgd.SGD",
        "init_args": {"lr": 0.1},
    }


CHANGED = {
    "a number of a part": (lambda: gmpo(), lambda: gmpo(log_clip=0.3)),
    "another recipe": (lambda: gmpo(), lambda: grpo()),
    "a penalty more": (lambda: grpo(), lambda: grpo(penalties=[K3Penalty(0.1)])),
    "a number of a penalty": (lambda: grpo(penalties=[K3Penalty(0.1)]), lambda: grpo(penalties=[K3Penalty(0.2)])),
    "an example of a list": (lambda: [{"prompt": "a"}, {"prompt": "b"}], lambda: [{"prompt": "a"}, {"prompt": "c"}]),
    "the order of examples": (lambda: [{"prompt": "a"}, {"prompt": "b"}], lambda: [{"prompt": "b"}, {"prompt": "a"}]),
    "an example more": (lambda: [{"prompt": "a"}], lambda: [{"prompt": "a"}] * 2),
    "a data set": (lambda: AdditionProblems(16), lambda: AdditionProblems(16, seed=1)),
    "another optimizer": (lambda: None, lambda: functools.partial(torch.optim.SGD, lr=0.1)),
    "a function": (lambda: text_reward, lambda: gmpo),
    "a list of functions": (lambda: [text_reward], lambda: [text_reward, gmpo]),
    "an infinite number": (lambda: 1.0, lambda: math.inf),
}


@pytest.mark.parametrize(("old", "new"), CHANGED.values(), ids=CHANGED.keys())
def test_a_change_is_found_and_no_change_is_none(old, new):
    assert named(described(old()), described(new())) != {}
    assert named(described(old()), described(old())) == {}
    assert named(described(new()), described(new())) == {}


def test_the_smallest_part_that_differs_is_named():
    def config(rate, clip):
        return {"rate": rate, "objective": {"class_path": "recipes.gmpo", "init_args": {"clip": clip, "list": [1, 2]}}}

    assert named(config(1, 0.4), config(2, 0.4)) == {"model.rate": (1, 2)}
    assert named(config(1, 0.4), config(1, 0.3)) == {"model.objective.clip": (0.4, 0.3)}
    other = {"rate": 1, "objective": {"class_path": "recipes.grpo", "init_args": {}}}
    assert [*named(config(1, 0.4), other)] == ["model.objective"]
    text = "`model.objective` was recipes.gmpo(clip=0.4, list=[1, 2]) and is recipes.grpo()"
    assert [str(change) for change in changes(config(1, 0.4), other, "model")] == [text]


@pytest.mark.parametrize(("old", "new"), [(1, 1.0), (math.nan, math.nan), (0.1, 0.1), ([], [])])
def test_equal_values_are_no_change(old, new):
    assert named(old, new) == {}


def test_what_is_free_may_differ():
    assert named({"a": 1, "b": 2}, {"a": 3, "b": 4}, is_free={"model.a"}.__contains__) == {"model.b": (2, 4)}


def test_a_long_value_is_shown_in_part():
    assert len(str(Change("data.dataset", "x" * 10_000, "y" * 10_000))) < 400


def test_a_file_is_its_content_wherever_it_is(tmp_path):
    first, moved, other = (tmp_path / name for name in ("a.jsonl", "b.jsonl", "c.jsonl"))
    first.write_text('{"prompt": "a"}\n')
    moved.write_text('{"prompt": "a"}\n')
    other.write_text('{"prompt": "b"}\n')
    old = with_contents(str(first))
    assert named(old, with_contents(str(moved))) == {}
    assert [*named(old, with_contents(str(other)))] == ["model, a.jsonl", "model, c.jsonl"]
    first.write_text('{"prompt": "c"}\n')
    assert [*named(old, with_contents(str(first)))] == ["model, a.jsonl"]
    nested = {"class_path": "lightning_modules.JSONLines", "init_args": {"path": str(first)}}
    before = with_contents(nested)
    first.write_text('{"prompt": "d"}\n')
    assert [*named(before, with_contents(nested))] == ["model.path, a.jsonl"]
    first.unlink()
    assert with_contents("Qwen/Qwen2.5-0.5B") == "Qwen/Qwen2.5-0.5B"


def test_a_folder_is_its_files(tmp_path):
    folder = tmp_path / "model"
    folder.mkdir()
    (folder / "tokenizer.json").write_text("{}")
    (folder / "config.json").write_text("{}")
    old = with_contents(str(folder))
    folder.rename(tmp_path / "moved")
    assert named(old, with_contents(str(tmp_path / "moved"))) == {}
    (tmp_path / "moved" / "tokenizer.json").write_text("{ }")
    assert [*named(old, with_contents(str(tmp_path / "moved")))] == ["model, tokenizer.json"]


def test_a_data_set_from_python_is_its_examples(tmp_path):
    path = tmp_path / "prompts.jsonl"
    path.write_text('{"prompt": "a"}\n')
    old = described(JSONLines(str(path)))
    path.write_text('{"prompt": "b"}\n')
    assert [*named(old, described(JSONLines(str(path))))] == ["model.examples.sha256"]


def test_large_weights_are_known_by_their_size_or_by_all_their_bytes(tmp_path, monkeypatch):
    monkeypatch.setattr(configuration, "_HASHED_BYTES", 8)
    file = tmp_path / "model.safetensors"
    known = []
    for content in (b"nine byte", b"nine bits"):
        file.write_bytes(content)
        known.append((with_contents(str(tmp_path)), with_contents({"model": str(tmp_path)}, whole=True)))
    (by_size, whole), (same_size, other) = known
    assert by_size == same_size
    assert whole != other
