"""Mixtures of prompt sources: shares, passes, and places."""

import json
import logging
from collections import Counter
from fractions import Fraction
from math import ceil, floor

import pytest
from hypothesis import given
from hypothesis import strategies as st

from lightning_modules import JSONLines, Mixture
from lightning_modules.addition import AdditionProblems
from lightning_modules.configuration import changes, described
from lightning_modules.prompts import PromptDataset, PromptOrder
from lightning_modules.prompts.base import first_index_of

SIZES = st.lists(st.integers(1, 30), min_size=1, max_size=4)


def source(name, size):
    return [{"prompt": f"{name}{number}"} for number in range(size)]


def mixture(sizes, weights=None):
    return Mixture([source("abcd"[number], size) for number, size in enumerate(sizes)], weights)


@given(SIZES, st.data())
def test_a_pass_has_every_example_in_the_shares_of_the_weights(sizes, data):
    weights = data.draw(st.lists(st.sampled_from([1, 2, 3, 5, 0.5]), min_size=len(sizes), max_size=len(sizes)))
    mixed = mixture(sizes, weights)
    shares = [Fraction(weight) / sum(map(Fraction, weights)) for weight in weights]
    length = max(size / share for size, share in zip(sizes, shares, strict=True))
    prompts = Counter(example["prompt"] for example in mixed)
    for number, (size, share) in enumerate(zip(sizes, shares, strict=True)):
        repeats = [prompts[f"{'abcd'[number]}{row}"] for row in range(size)]
        assert abs(sum(repeats) - share * length) <= Fraction(1, 2)
        assert 1 <= floor(sum(repeats) / size) == min(repeats) <= max(repeats) == ceil(sum(repeats) / size)
    assert any(sum(prompts[f"{'abcd'[n]}{row}"] for row in range(size)) == size for n, size in enumerate(sizes))


@given(SIZES, st.data())
def test_any_beginning_of_a_pass_has_the_shares_too(sizes, data):
    weights = data.draw(st.lists(st.sampled_from([1, 2, 3]), min_size=len(sizes), max_size=len(sizes)))
    mixed = mixture(sizes, weights)
    whole = Counter(example["prompt"][0] for example in mixed)
    seen = Counter()
    for count, example in enumerate(mixed, start=1):
        seen[example["prompt"][0]] += 1
        for name in whole:
            assert abs(seen[name] - count * whole[name] / len(mixed)) < len(sizes)


@given(SIZES, st.data())
def test_the_copies_of_an_example_have_the_index_of_the_first(sizes, data):
    weights = data.draw(st.lists(st.sampled_from([1, 2, 3]), min_size=len(sizes), max_size=len(sizes)))
    mixed = mixture(sizes, weights)
    nested = Mixture([mixed, source("e", 1)], weights=[1, 3])  # copies of copies
    for dataset in (mixed, nested):
        prompts = [example["prompt"] for example in dataset]
        firsts = [dataset.first_index(index) for index in range(len(dataset))]
        assert firsts == [prompts.index(prompt) for prompt in prompts]


def test_an_example_of_another_data_set_is_its_own_first():
    assert [first_index_of(source("a", 3), index) for index in range(3)] == [0, 1, 2]
    assert [first_index_of(AdditionProblems(3), index) for index in range(3)] == [0, 1, 2]


@given(SIZES)
def test_without_weights_every_example_appears_once(sizes):
    mixed = mixture(sizes)
    assert sorted(example["prompt"] for example in mixed) == sorted(
        f"{'abcd'[number]}{row}" for number, size in enumerate(sizes) for row in range(size)
    )
    assert len(mixed) == sum(sizes)


def test_hand_worked():
    mixed = mixture([4, 1], [2, 1])
    assert [example["prompt"] for example in mixed] == ["a0", "b0", "a1", "a2", "b0", "a3"]
    assert [example["prompt"] for example in mixture([3, 1], [3, 1])] == ["a0", "a1", "b0", "a2"]
    assert Counter(example["prompt"] for example in mixture([1, 1], [3, 5])) == {"a0": 1, "b0": 2}
    assert mixed.location(4) == "source 1, prompt 0 (of 0 to 0)"
    assert mixed[-1] == mixed[5]
    with pytest.raises(IndexError):
        mixed[6]


def test_sources_are_files_and_data_sets(tmp_path):
    path = tmp_path / "a.jsonl"
    path.write_text("\n".join(json.dumps(row) for row in source("a", 2)))
    mixed = Mixture([str(path), JSONLines(str(path)), source("b", 2)], [1, 1, 2])
    assert Counter(example["prompt"][0] for example in mixed) == {"a": 4, "b": 4}
    places = {mixed.location(index) for index in range(len(mixed))}
    assert {f"source 0, {path}, line 1", f"source 1, {path}, line 2", "source 2, prompt 1 (of 0 to 1)"} <= places


def test_the_order_of_a_run_is_a_function_of_the_position():
    mixed = mixture([4, 1], [2, 1])
    order = PromptOrder(len(mixed), 0)
    passes = [Counter(mixed[index]["prompt"] for index in order.slice(6 * n, 6 * n + 6)) for n in range(3)]
    assert passes == [Counter(a0=1, a1=1, a2=1, a3=1, b0=2)] * 3
    assert order.slice(4, 9) == [index for at in range(4, 9) for index in PromptOrder(len(mixed), 0).slice(at, at + 1)]


def test_another_weight_or_source_is_another_configuration():
    first = described(mixture([4, 1], [2, 1]))

    def changed(other):
        return {change.name for change in changes(first, described(other), "data.dataset")}

    assert "data.dataset.weights.0" in changed(mixture([4, 1], [3, 1]))
    assert any(name.startswith("data.dataset.sources.1") for name in changed(mixture([4, 2], [2, 1])))
    assert not changed(mixture([4, 1], [2, 1]))


@pytest.mark.parametrize(
    ("sources", "weights", "message"),
    [
        ([], None, r"`sources` is \[\]; pass a list with at least one source"),
        ("a.jsonl", None, "`sources` is 'a.jsonl'; pass a list"),
        ([source("a", 1), []], None, r"`sources\[1\]` is \[\], which has no prompts"),
        ([source("a", 1), [{"prompt": ""}]], None, r"`sources\[1\]`, prompt 0 \(of 0 to 0\): the prompt is ''"),
        ([source("a", 1)], [1, 2], r"`weights` is \[1, 2\]; pass a positive number for each of the 1 sources"),
        ([source("a", 1)], [0], r"`weights` is \[0\]; pass a positive number"),
        ([source("a", 1)], [float("nan")], r"`weights` is \[nan\]; pass a positive number"),
        (
            [source("a", 9), source("b", 9)],
            [1e-9, 1],
            r"a pass over sources of \[9, 9\] prompts would have 9,000,000,009",
        ),
    ],
)
def test_bad_arguments_are_refused(sources, weights, message):
    with pytest.raises(ValueError, match=message):
        Mixture(sources, weights)


def test_sources_are_named_by_a_configuration(tmp_path, monkeypatch):
    """In the forms of one data set: a path, or a class with its arguments."""
    import yaml

    from tests.end_to_end.test_configs import CONFIGS, ResolvingCLI, run

    monkeypatch.chdir(tmp_path)
    (tmp_path / "a.jsonl").write_text("\n".join(json.dumps(row) for row in source("a", 2)))
    hub = {"class_path": "lightning_modules.HubDataset", "init_args": {"path": "a.jsonl"}}
    mixed = {"class_path": "lightning_modules.Mixture", "init_args": {"sources": ["a.jsonl", hub], "weights": [1, 3]}}
    (tmp_path / "mixed.yaml").write_text(yaml.safe_dump({"data": {"dataset": mixed}}))
    cli = run(["fit", "--config", str(CONFIGS / "addition.yaml"), "--config", "mixed.yaml"], ResolvingCLI)
    assert len(cli.datamodule.dataset) == 8
    cli.parser.save(cli.config, "saved.yaml", skip_none=False, multifile=False)
    saved = yaml.safe_load((tmp_path / "saved.yaml").read_text())["fit"]["data"]["dataset"]["init_args"]
    assert saved["sources"][0] == "a.jsonl"
    assert saved["sources"][1]["class_path"] == "lightning_modules.HubDataset"


class Slow(PromptDataset):
    """A data set of a user, which is not read as a whole."""

    def __len__(self):
        return 3

    def __getitem__(self, index):
        raise AssertionError("an example was read")


def test_prompts_that_several_sources_have_are_counted(caplog):
    with caplog.at_level(logging.INFO):
        nested = Mixture([source("a", 2), source("b", 3)])
        assert not caplog.messages
        Mixture([source("a", 3), nested, source("b", 1) * 2, Slow()])
    assert caplog.messages == [
        "`sources[2]`: 1 of 2 prompts are duplicates of others.",
        "`sources`: 3 of 9 different prompts of the sources are in an earlier source, too.",
    ]
