"""Objectives as the command line names them."""

import pytest

from aggregate_po import GeometricMean, PolicyObjective
from lightning_modules.comparison import named_objectives
from tests.third_party.lehmer import LehmerMean


def an_objective(bound):
    """A function of a user that makes an objective."""
    return PolicyObjective(LehmerMean(bound))


def test_names_keep_their_order_and_their_text():
    found = named_objectives("grpo, gmpo,tests.third_party.lehmer.LehmerMean")
    assert list(found) == ["grpo", "gmpo", "tests.third_party.lehmer.LehmerMean"]
    assert isinstance(found["tests.third_party.lehmer.LehmerMean"].aggregator, LehmerMean)
    assert isinstance(found["gmpo"].aggregator, GeometricMean)


def test_arguments_are_those_of_python():
    found = named_objectives(
        "grpo(clip_low=0.1, clip_high=.3), tests.lightning_modules.comparison.test_names.an_objective(bound=3)"
    )
    assert list(found) == [
        "grpo(clip_low=0.1, clip_high=0.3)",
        "tests.lightning_modules.comparison.test_names.an_objective(bound=3)",
    ]
    narrow, own = found.values()
    assert (narrow.token_transform.clip_low, narrow.token_transform.clip_high) == (0.1, 0.3)
    assert own.aggregator.order == 3


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("grpo,,gmpo", "cannot be read"),
        ("grpo gmpo", "cannot be read"),
        ("", "which has no name"),
        ("1", "has '1', which is no name"),
        ("grpo,grpo", "has 'grpo' twice"),
        ("grp0", r"has 'grp0', which cannot be made: .*pass one of"),
        ("tests.nowhere.Mean", r"'tests\.nowhere\.Mean'.*cannot be imported"),
        ("grpo(0.2)", "an argument has no name"),
        ("grpo(clip=1)", r"'grpo\(clip=1\)'"),
        ("grpo(clip_low=x)", "whose arguments cannot be read"),
        ("grpo(clip_low=-1)", "clip_low"),
    ],
)
def test_what_cannot_be_read_is_named(text, message):
    with pytest.raises(ValueError, match=message):
        named_objectives(text)


def test_an_argument_runs_no_code():
    with pytest.raises(ValueError, match="cannot be read"):
        named_objectives("grpo(clip_low=__import__('os').getpid())")
