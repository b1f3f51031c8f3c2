"""Properties of advantage estimators."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from hypothesis import assume
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Generator, Tensor

from aggregate_po.advantages import AdvantageEstimator, GroupAdvantage, GroupedRewards
from aggregate_po.testing.contexts import copied, require_untouched
from aggregate_po.testing.group_strategies import grouped_rewards, two_reward_rollout
from aggregate_po.testing.laws import Contract, KeptLaws, check, law
from aggregate_po.testing.reports import require, require_close, require_finite, require_form, scale
from aggregate_po.testing.strategies import generators

_LARGEST = torch.finfo(torch.float32).max


def _numbers(contract: "AdvantageContract") -> SearchStrategy[float]:
    """Generate rewards of every magnitude within the range, 0 and 1 often."""
    low, high = contract.rewards
    special = [0.0, 1.0, -1.0, 0.5, 0.1, 1 + 1e-7, 1e30, -1e30, 1e-30, _LARGEST, -_LARGEST]
    inside = [number for number in special if low <= number <= high]
    common = [number for number in inside if number in (0.0, 1.0)]
    moderate = st.floats(max(low, -10.0), min(high, 10.0), width=32, allow_subnormal=False)
    return st.one_of([st.sampled_from(numbers) for numbers in (common, inside) if numbers] + [moderate])


def _extreme(contract: "AdvantageContract") -> SearchStrategy[GroupedRewards]:
    return grouped_rewards(_numbers(contract))


def _moderate(contract: "AdvantageContract") -> SearchStrategy[GroupedRewards]:
    """Generate rewards that are multiples of 1/8 in float64, so that two are equal or clearly different."""
    low, high = (8 * max(min(bound, 10.0), -10.0) for bound in contract.rewards)
    eighths = st.integers(int(low), int(high)).map(lambda number: number / 8)
    return grouped_rewards(eighths, dtype=torch.float64)


class AdvantageContract(Contract):
    """Properties of every advantage estimator, and further ones of a `GroupAdvantage`.

    The inputs are rollouts of up to five prompts with every optional field, and rewards of any float32 magnitude.

    Attributes:
        estimator: instance under test.
        rewards: smallest and largest valid reward; `(0.0, 1.0)` for an estimator of success rates.
        rounding: tolerance for rounding errors, relative to the size of a result or to 1, for rewards that are
            multiples of 1/8.

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

    @law(rollout=_extreme)
    def test_shapes(self, rollout: GroupedRewards) -> None:
        """Advantages have shape `batch`, or `batch time` up to the longest completion, in the rewards' precision."""
        for given in (rollout, _in_double(rollout)):
            shape = given.rewards.shape
            per_token = (*shape, int(_lengths(rollout).max()))
            require_form("the advantages", self.estimator(given), shape, given.rewards.dtype, or_shape=per_token)

    @law(rollout=_extreme)
    def test_finite(self, rollout: GroupedRewards) -> None:
        """The advantages of finite rewards are finite."""
        for given in (rollout, _in_double(rollout)):
            require_finite(f"the advantages in {given.rewards.dtype}", self.estimator(given))

    @law(rollout=_moderate, generator=generators())
    def test_order_of_prompts(self, rollout: GroupedRewards, generator: Generator) -> None:
        """Permuting the prompts permutes the advantages."""
        prompts = torch.randperm(len(rollout.rewards) // rollout.group_size, generator=generator)
        rows = (prompts.unsqueeze(-1) * rollout.group_size + torch.arange(rollout.group_size)).flatten()
        self._require_permuted("the advantages of permuted prompts", rollout, rows)

    @law(rollout=_moderate, generator=generators())
    def test_order_within_a_prompt(self, rollout: GroupedRewards, generator: Generator) -> None:
        """Permuting the completions of a prompt permutes their advantages."""
        places = torch.rand(rollout.groups.shape, generator=generator).argsort(dim=-1)
        rows = (torch.arange(len(places)).unsqueeze(-1) * rollout.group_size + places).flatten()
        self._require_permuted("the advantages of permuted completions", rollout, rows)

    @law(rollout=_moderate, generator=generators())
    def test_completions_without_a_reward(self, rollout: GroupedRewards, generator: Generator) -> None:
        """Completions without a reward have advantage 0, and the others the advantages of the smaller groups."""
        size = max(2, int(torch.randint(rollout.group_size, (), generator=generator)))
        assume(size <= rollout.group_size)
        chosen = torch.rand(rollout.groups.shape, generator=generator).argsort(dim=-1) < size
        expected = self.estimator(_with_rows(rollout, chosen.flatten(), group_size=size))
        rewards = torch.where(chosen.flatten(), rollout.rewards, torch.nan)
        actual = self.estimator(replace(rollout, rewards=rewards, scored=chosen.flatten()))
        missing = actual[~chosen.flatten()]
        require_close("the advantages without a reward", missing, torch.zeros_like(missing))
        present = actual[chosen.flatten()]
        if present.ndim > 1:  # the longest completion may have no reward
            present = present[:, : expected.shape[1]]
        require_close("the advantages of the others", present, expected, self.rounding * scale(expected))

    @law(rollout=_moderate)
    def test_rewards_of_steps(self, rollout: GroupedRewards) -> None:
        """Rewards of steps have no effect unless `needs_step_rewards` announces that they are read."""
        without = rollout if self.estimator.needs_step_rewards else replace(rollout, step_rewards=None)
        require_close("the advantages without step rewards", self.estimator(without), self.estimator(rollout))

    @law(rollout=_extreme)
    def test_same_every_time(self, rollout: GroupedRewards) -> None:
        """Repeated calls on one rollout give the same advantages; randomness follows `seed`."""
        require_close("the advantages, once more", self.estimator(rollout), self.estimator(rollout))

    @law(rollout=_extreme)
    def test_inputs_are_left_untouched(self, rollout: GroupedRewards) -> None:
        """The rollout is not modified."""
        before = copied(rollout)
        self.estimator(rollout)
        require_untouched("rollout", rollout, before)

    @law(rollout=_extreme)
    def test_no_graph(self, rollout: GroupedRewards) -> None:
        """The advantages are the same in `torch.inference_mode`, and constants to the gradient outside."""
        expected = self.estimator(rollout)
        require(not expected.requires_grad, "the advantages require gradient")
        with torch.inference_mode():
            inside = self.estimator(copied(rollout))
        require_close("the advantages in inference mode", inside, expected)

    @law(claimed_by=GroupAdvantage, rollout=_extreme, other=_numbers)
    def test_groups_do_not_see_each_other(self, rollout: GroupedRewards, other: float) -> None:
        """The rewards and lengths of other prompts do not change a prompt's advantages."""
        first = torch.arange(len(rollout.rewards)) < rollout.group_size
        rewards = torch.where(first, rollout.rewards, rollout.rewards.new_tensor(other))
        lengths = torch.where(first, _lengths(rollout), 7)
        changed = two_reward_rollout(rewards, rollout.group_size, lengths, rollout.seed)
        require_close(
            "the advantages of the first prompt (expected: among other rewards)",
            self.estimator(rollout)[: rollout.group_size],
            self.estimator(changed)[: rollout.group_size],
        )

    def _require_permuted(self, what: str, rollout: GroupedRewards, rows: Tensor) -> None:
        expected = self.estimator(rollout)[rows]
        permuted = self.estimator(_with_rows(rollout, rows))
        require_close(what, permuted, expected, self.rounding * scale(expected))


def _with_rows(rollout: GroupedRewards, rows: Tensor, **changes: Any) -> GroupedRewards:
    """Return the rollout with some of its completions, in the given order."""
    names = ("rewards", "lengths", "components", "step_rewards")
    per_completion: dict[str, Any] = {name: getattr(rollout, name)[rows] for name in names}
    return replace(rollout, **per_completion, **changes)


def _lengths(rollout: GroupedRewards) -> Tensor:
    return rollout.required("lengths", "the property")


def _in_double(rollout: GroupedRewards) -> GroupedRewards:
    return two_reward_rollout(rollout.rewards.double(), rollout.group_size, _lengths(rollout), rollout.seed)


def check_advantage(estimator: AdvantageEstimator, **options: Any) -> KeptLaws:
    """Check all properties of an advantage estimator outside a test runner; see `check_aggregator`.

    Args:
        estimator: instance to test.
        options: `skip`, `examples`, and attributes of `AdvantageContract` to change.

    Example:
        >>> from aggregate_po.advantages import GroupCentered
        >>> "order_of_prompts" in check_advantage(GroupCentered(), examples=5)
        True
    """
    return check(AdvantageContract, estimator, **options)
