"""A number that is infinite or NaN, and what is no number, is refused by the name of its argument."""

import inspect
import math

import pytest

import aggregate_po
from aggregate_po import PessimisticClip
from aggregate_po.advantages import GroupCentered
from aggregate_po.penalties import RatioVariance
from tests.aggregate_po.numeric_arguments import numeric_arguments

# One valid value for each argument that has no default.
REQUIRED = {
    "estimator": GroupCentered(),
    "cost": RatioVariance(),
    "clip": PessimisticClip(),
    **dict.fromkeys(["max_completion_length", "cache_length", "length", "steps"], 8),
    **dict.fromkeys(["finest", "width", "largest"], 0.5),
    **dict.fromkeys(["coefficient", "bound", "step_size", "exponent", "value", "max_divergence", "max_ratio"], 1.5),
}
# Made by the library: totals of a step, and rewards, whose tensors are checked where they are given.
RECORDS = ("StepTotals", "GroupedRewards", "RewardGroups")
ARGUMENTS = numeric_arguments(aggregate_po, REQUIRED, RECORDS)


def test_arguments_are_found():
    names = {str(argument.values[0]) for argument in ARGUMENTS}
    assert {"PowerMean.exponent", "gmpo.log_clip", "LagrangePenalty.step_size", "GroupNormalized.delta"} <= names
    assert len(names) > 60


# Upper bounds of `PessimisticClip` and `TwoSidedClip`, whose docstrings say that `inf` means no bound.
UNBOUNDED = ("clip_high", "max_ratio")
DUAL_CLIPS = ("grpo_dual_clip.max_ratio", "fipo.max_ratio")  # of a `NegativeCap`, which would do nothing


def may_be_infinite(argument):
    handed_to_a_clip = inspect.isfunction(argument.owner) and argument.name in UNBOUNDED
    return "`inf`" in argument.entry or (handed_to_a_clip and str(argument) not in DUAL_CLIPS)


@pytest.mark.parametrize("argument", ARGUMENTS)
@pytest.mark.parametrize("number", [math.nan, math.inf, -math.inf])
def test_a_number_that_is_not_finite_is_refused_by_name(argument, number):
    value = (0.0, number) if argument.name == "reward_range" else number
    if number == math.inf and may_be_infinite(argument):
        assert argument.given(value) is not None
        return
    with pytest.raises(ValueError, match=rf"`\w+` is .*{number}.*; pass ") as refused:
        argument.given(value)
    if inspect.isclass(argument.owner):
        assert f"`{argument.name}` is" in str(refused.value) or f"`{argument.name}` {number}" in str(refused.value)


@pytest.mark.parametrize("argument", ARGUMENTS)
def test_what_is_no_number_is_refused_by_name(argument):
    """The name is that of the part which a recipe hands its argument to."""
    value = (0.0, "a") if argument.name == "reward_range" else "a"
    with pytest.raises((TypeError, ValueError), match=r"^`\w+` is 'a'; pass ") as refused:
        argument.given(value)
    if inspect.isclass(argument.owner):
        assert f"`{argument.name}` is" in str(refused.value)
