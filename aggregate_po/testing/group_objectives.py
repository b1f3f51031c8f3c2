"""Properties of group objectives."""

from dataclasses import replace
from typing import Any, ClassVar

import torch
from hypothesis import strategies as st
from torch import Generator, Tensor

from aggregate_po.group_objectives import GroupObjective, GroupValues
from aggregate_po.testing.contexts import (
    copied,
    require_untouched,
)
from aggregate_po.testing.group_strategies import group_values
from aggregate_po.testing.laws import Contract, KeptLaws, check, law
from aggregate_po.testing.reports import require_close, require_finite, require_form, scale
from aggregate_po.testing.strategies import generators, junk


class GroupObjectiveContract(Contract):
    """Properties of a group objective.

    The inputs are log values up to 80, log-probabilities under the behavior policy, and advantages of both signs, of
    groups of different sizes.

    Attributes:
        group_objective: instance under test.
        rounding: tolerance for rounding errors, relative to the size of a result or to 1.

    Example:
        >>> from aggregate_po import LabelLogistic
        >>> class TestLabelLogistic(GroupObjectiveContract):
        ...     group_objective = LabelLogistic()
    """

    group_objective: GroupObjective
    rounding: ClassVar[float] = 1e-9

    _attribute = "group_objective"
    _kind = GroupObjective

    @torch.no_grad()
    def measured(self, groups: GroupValues) -> tuple[Tensor, Tensor]:
        """Return the values, and the derivatives with 0 on padding."""
        return self.group_objective(groups), torch.where(groups.mask, self.group_objective.derivatives(groups), 0)

    def _require_same(self, what: str, actual: tuple[Tensor, Tensor], expected: tuple[Tensor, Tensor]) -> None:
        for name, changed, original in zip(("values", "derivatives"), actual, expected, strict=True):
            require_close(f"{name} {what}", changed, original, self.rounding * scale(original))

    @law(together=True, groups=group_values())
    def test_shapes(self, groups: GroupValues) -> None:
        """The values have shape `group`, the derivatives have shape `group member`."""
        values, derivatives = self.measured(groups)
        require_form("the values", values, groups.mask.shape[:1], torch.float64)
        require_form("the derivatives", derivatives, tuple(groups.mask.shape), torch.float64)

    @law(groups=st.one_of(group_values(), group_values(limit=1e6)))
    def test_finite(self, groups: GroupValues) -> None:
        """Values and derivatives are finite."""
        values, derivatives = self.measured(groups)
        require_finite("the values", values)
        require_finite("the derivatives", derivatives)

    @law(groups=group_values())
    def test_derivatives(self, groups: GroupValues) -> None:
        """`derivatives` equal the derivatives of the values by autograd."""
        _, derivatives = self.measured(groups)
        expected = torch.where(groups.mask, GroupObjective.derivatives(self.group_objective, groups), 0)
        require_close("derivatives (expected: autograd)", derivatives, expected, self.rounding * scale(expected))

    @law(together=True, groups=group_values(), generator=generators())
    def test_order(self, groups: GroupValues, generator: Generator) -> None:
        """The order of the completions of a group changes neither its value nor their derivatives."""
        order = torch.rand(groups.mask.shape, generator=generator).argsort(dim=-1)
        permuted = GroupValues(**{name: value.gather(-1, order) for name, value in vars(groups).items()})
        values, derivatives = self.measured(groups)
        self._require_same("in another order", self.measured(permuted), (values, derivatives.gather(-1, order)))

    @law(together=True, groups=group_values(), noise=junk())
    def test_other_groups_and_padding(self, groups: GroupValues, noise: float) -> None:
        """A group alone, with anything on padding, has the same value and derivatives as among others."""
        rows = range(len(groups.mask))
        dirty = replace(groups, log_values=torch.where(groups.mask, groups.log_values, noise))
        alone = [
            self.measured(GroupValues(**{name: value[row : row + 1] for name, value in vars(dirty).items()}))
            for row in rows
        ]
        expected = torch.cat([values for values, _ in alone]), torch.cat([derivatives for _, derivatives in alone])
        self._require_same("among others", self.measured(groups), expected)

    @law(groups=group_values())
    def test_inputs_are_left_untouched(self, groups: GroupValues) -> None:
        """The context is not modified, and does not require gradient."""
        before = copied(groups)
        self.measured(groups)
        require_untouched("groups", groups, before)

    @law(groups=group_values())
    def test_inference_mode(self, groups: GroupValues) -> None:
        """In `torch.inference_mode`, values and derivatives are the same."""
        expected = self.measured(groups)
        with torch.inference_mode():
            actual = self.measured(copied(groups))
        self._require_same("in inference mode", actual, expected)


def check_group_objective(group_objective: GroupObjective, **options: Any) -> KeptLaws:
    """Check all properties of a group objective outside a test runner; see `check_aggregator`.

    Args:
        group_objective: instance to test.
        options: `skip`, `examples`, and attributes of `GroupObjectiveContract` to change.

    Example:
        >>> from aggregate_po import TargetCrossEntropy
        >>> "order" in check_group_objective(TargetCrossEntropy(), examples=5)
        True
    """
    return check(GroupObjectiveContract, group_objective, **options)
