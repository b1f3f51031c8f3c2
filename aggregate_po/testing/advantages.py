"""Laws of advantage estimators."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Generator, Tensor

from aggregate_po.advantages import AdvantageEstimator, GroupAdvantage, GroupedRewards
from aggregate_po.testing.contexts import copied, require_untouched
from aggregate_po.testing.laws import Contract, KeptLaws, check, law
from aggregate_po.testing.reports import require, require_close, require_finite, require_form, scale
from aggregate_po.testing.strategies import generators, grouped_rewards, rollout

_LARGEST = torch.finfo(torch.float32).max


def _numbers(contract: "AdvantageContract") -> SearchStrategy[float]:
    """Rewards of every size within the range, 0 and 1 often."""
    low, high = contract.rewards
    special = [0.0, 1.0, -1.0, 0.5, 0.1, 1 + 1e-7, 1e30, -1e30, 1e-30, _LARGEST, -_LARGEST]
    inside = [number for number in special if low <= number <= high]
    common = [number for number in inside if number in (0.0, 1.0)]
    moderate = st.floats(max(low, -10.0), min(high, 10.0), width=32, allow_subnormal=False)
    return st.one_of([st.sampled_from(numbers) for numbers in (common, inside) if numbers] + [moderate])


def _extreme(contract: "AdvantageContract") -> SearchStrategy[GroupedRewards]:
    return grouped_rewards(_numbers(contract))


def _moderate(contract: "AdvantageContract") -> SearchStrategy[GroupedRewards]:
    """Rewards that are multiples of 1/8, so that two are equal or far from equal, in float64."""
    low, high = (8 * max(min(bound, 10.0), -10.0) for bound in contract.rewards)
    eighths = st.integers(int(low), int(high)).map(lambda number: number / 8)
    return grouped_rewards(eighths, dtype=torch.float64)


class AdvantageContract(Contract):
    """Laws of an advantage estimator: of every one, and of a `GroupAdvantage`.

    The inputs are rollouts of up to five prompts with every optional field, rewards of any size that float32 knows.

    Attributes:
        estimator: the instance that is tested.
        rewards: smallest and largest reward that it takes; `(0.0, 1.0)` for one that is made for success rates.
        rounding: how far results may be off by rounding, relative to their size or to 1, where rewards are multiples of
            1/8.

    Example:
        >>> from aggregate_po.advantages import GroupCentered
        >>> class TestGroupCentered(AdvantageContract):
        ...     estimator = GroupCentered()
    """

    estimator: AdvantageEstimator
    rewards: ClassVar[tuple[float, float]] = (-_LARGEST, _LARGEST)
    rounding: ClassVar[float] = 1e-6

    _attribute = "estimator"
    _kind = AdvantageEstimator

    @law(step=_extreme)
    def test_shapes(self, step: GroupedRewards) -> None:
        """Advantages have shape `batch`, or `batch time` up to the longest completion, in the rewards' precision."""
        for given in (step, _in_double(step)):
            shape = given.rewards.shape
            per_token = (*shape, int(_lengths(step).max()))
            require_form("the advantages", self.estimator(given), shape, given.rewards.dtype, or_shape=per_token)

    @law(step=_extreme)
    def test_finite(self, step: GroupedRewards) -> None:
        """The advantages of finite rewards are finite."""
        for given in (step, _in_double(step)):
            require_finite(f"the advantages in {given.rewards.dtype}", self.estimator(given))

    @law(step=_moderate, generator=generators())
    def test_order_of_prompts(self, step: GroupedRewards, generator: Generator) -> None:
        """Permuting the prompts permutes the advantages."""
        prompts = torch.randperm(len(step.rewards) // step.group_size, generator=generator)
        rows = (prompts.unsqueeze(-1) * step.group_size + torch.arange(step.group_size)).flatten()
        self._require_permuted("the advantages of permuted prompts", step, rows)

    @law(step=_moderate, generator=generators())
    def test_order_within_a_prompt(self, step: GroupedRewards, generator: Generator) -> None:
        """Permuting the completions of a prompt permutes their advantages."""
        places = torch.rand(step.groups.shape, generator=generator).argsort(dim=-1)
        rows = (torch.arange(len(places)).unsqueeze(-1) * step.group_size + places).flatten()
        self._require_permuted("the advantages of permuted completions", step, rows)

    @law(step=_extreme)
    def test_same_every_time(self, step: GroupedRewards) -> None:
        """The same rollout has the same advantages every time; what is random follows `seed`."""
        require_close("the advantages, once more", self.estimator(step), self.estimator(step))

    @law(step=_extreme)
    def test_inputs_are_left_untouched(self, step: GroupedRewards) -> None:
        """The rollout is what it was before."""
        before = copied(step)
        self.estimator(step)
        require_untouched("step", step, before)

    @law(step=_extreme)
    def test_no_graph(self, step: GroupedRewards) -> None:
        """The advantages are the same in `torch.inference_mode`, and constants to the gradient outside."""
        expected = self.estimator(step)
        require(not expected.requires_grad, "the advantages require gradient")
        with torch.inference_mode():
            inside = self.estimator(copied(step))
        require_close("the advantages in inference mode", inside, expected)

    @law(claimed_by=GroupAdvantage, step=_extreme, other=_numbers)
    def test_groups_do_not_see_each_other(self, step: GroupedRewards, other: float) -> None:
        """The rewards and lengths of other prompts make no difference to a prompt's advantages."""
        first = torch.arange(len(step.rewards)) < step.group_size
        rewards = torch.where(first, step.rewards, step.rewards.new_tensor(other))
        changed = rollout(rewards, step.group_size, torch.where(first, _lengths(step), 7), step.seed)
        require_close(
            "the advantages of the first prompt (expected: among other rewards)",
            self.estimator(step)[: step.group_size],
            self.estimator(changed)[: step.group_size],
        )

    def _require_permuted(self, what: str, step: GroupedRewards, rows: Tensor) -> None:
        per_completion = {name: getattr(step, name)[rows] for name in ("rewards", "lengths", "components")}
        expected = self.estimator(step)[rows]
        permuted = self.estimator(replace(step, **per_completion))
        require_close(what, permuted, expected, self.rounding * scale(expected))


def _lengths(step: GroupedRewards) -> Tensor:
    return step.required("lengths", "the law")


def _in_double(step: GroupedRewards) -> GroupedRewards:
    return rollout(step.rewards.double(), step.group_size, _lengths(step), step.seed)


def check_advantage(estimator: AdvantageEstimator, **options: Any) -> KeptLaws:
    """Put an advantage estimator to all its laws, outside a test runner; see `check_aggregator`.

    Args:
        estimator: an instance.
        options: `skip`, `examples`, and attributes of `AdvantageContract` to change.

    Example:
        >>> from aggregate_po.advantages import GroupCentered
        >>> "order_of_prompts" in check_advantage(GroupCentered(), examples=5)
        True
    """
    return check(AdvantageContract, estimator, **options)
