"""Properties of penalties."""

from copy import deepcopy
from dataclasses import replace
from typing import Any, ClassVar

import torch
from hypothesis import strategies as st
from hypothesis.strategies import SearchStrategy
from torch import Tensor

from aggregate_po.aggregators import GeometricMean
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import Penalty
from aggregate_po.testing.contexts import (
    copied,
    require_additive,
    require_gradient,
    require_joint,
    require_untouched,
    some_rows,
)
from aggregate_po.testing.laws import Contract, KeptLaws, check, law
from aggregate_po.testing.reports import require_close, require_finite, require_form, scale
from aggregate_po.testing.strategies import Case, batches, finite_batches


def _detached(case: Case) -> Case:
    # As an objective passes them: zeros on padding.
    return Case(torch.where(case.batch.response_mask, case.log_probs.detach(), 0), case.batch)


def _cases(**changes: Any) -> SearchStrategy[Case]:
    return batches(**changes).map(_detached)


class PenaltyContract(Contract):
    """Properties of a penalty.

    The inputs are log-probabilities under the trained policy, the behavior policy and the reference policy.

    Attributes:
        penalty: instance under test; only copies are modified.
        rounding: tolerance for rounding errors, relative to the size of a result or to 1.

    Example:
        >>> from aggregate_po import K3Penalty
        >>> class TestK3Penalty(PenaltyContract):
        ...     penalty = K3Penalty(0.04)
    """

    penalty: Penalty
    rounding: ClassVar[float] = 1e-9

    _attribute = "penalty"
    _kind = Penalty

    def measured(self, case: Case) -> tuple[Tensor, Tensor]:
        """Return the detached costs and derivatives."""
        return self.penalty.token_costs(*case).detach(), self.penalty.token_derivatives(*case).detach()

    @law(case=_cases())
    def test_shapes(self, case: Case) -> None:
        """Costs, derivatives and observations have the shape and the precision of the log-probabilities."""
        log_probs, batch = case
        for given in (case, Case(log_probs.float(), batch.to(torch.float32))):
            costs, derivatives = self.measured(given)
            observed = self.penalty.observed(*given)
            for name, result in (("token_costs", costs), ("token_derivatives", derivatives), ("observed", observed)):
                require_form(name, result, log_probs.shape, given.log_probs.dtype)

    @law(case=st.one_of(finite_batches(torch.float64), finite_batches(torch.float32)))
    def test_finite(self, case: Case) -> None:
        """Costs and derivatives are finite for all finite log-probabilities, also in float32."""
        costs, derivatives = self.measured(_detached(case))
        require_finite("token_costs", costs, case.batch.response_mask)
        require_finite("token_derivatives", derivatives, case.batch.response_mask)

    @law(case=_cases())
    def test_derivatives(self, case: Case) -> None:
        """`token_derivatives` equal the derivatives of the costs by autograd."""
        expected = Penalty.token_derivatives(self.penalty, *case)
        costs, derivatives = self.measured(case)
        # A large cost may have a small derivative, which inherits the rounding error of the cost.
        allowed = self.rounding * (scale(expected) + costs.abs())
        require_close("token_derivatives", derivatives, expected, allowed, case.batch.response_mask)

    @law(case=_cases())
    def test_evaluate(self, case: Case) -> None:
        """`evaluate` returns the results of the separate methods; only the costs have a graph."""
        inputs = case.log_probs.detach().clone().requires_grad_()
        given, penalty = Case(inputs, case.batch), self.penalty
        separate = {
            "token_costs": penalty.token_costs(*given),
            "token_derivatives": penalty.token_derivatives(*given),
            "observed": penalty.observed(*given),
        }
        require_joint(penalty.evaluate(*given), separate, inputs, self.rounding, case.batch.response_mask)

    @law(together=True, case=_cases())
    def test_completions_do_not_see_each_other(self, case: Case) -> None:
        """A completion alone has the same costs and derivatives as among others."""
        log_probs, batch = case
        rows = [slice(row, row + 1) for row in range(len(log_probs))]
        alone = zip(*(self.measured(Case(log_probs[row], some_rows(batch, row))) for row in rows), strict=True)
        for name, actual, parts in zip(("costs", "derivatives"), self.measured(case), alone, strict=True):
            expected = torch.cat(parts)
            require_close(
                f"{name} among others", actual, expected, self.rounding * scale(expected), batch.response_mask
            )

    @law(case=_cases())
    def test_inputs_are_left_untouched(self, case: Case) -> None:
        """Log-probabilities and batch are not modified, and do not require gradient."""
        before = copied(case)
        self.measured(case)
        require_untouched("log_probs", case.log_probs, before.log_probs)
        require_untouched("batch", case.batch, before.batch)

    @law(case=_cases())
    def test_inference_mode(self, case: Case) -> None:
        """In `torch.inference_mode`, costs and derivatives are the same."""
        expected = self.measured(case)
        with torch.inference_mode():
            actual = self.measured(copied(case))
        for name, inside, outside in zip(("costs", "derivatives"), actual, expected, strict=True):
            require_close(f"{name} in inference mode", inside, outside, where=case.batch.response_mask)

    @law(case=_cases())
    def test_reference(self, case: Case) -> None:
        """A penalty whose `needs_reference` is False works without a reference."""
        if not self.penalty.needs_reference:
            batch = replace(case.batch, ref_log_probs=None, ref_divergence=None)
            without = self.penalty.token_costs(case.log_probs, batch)
            require_close("token_costs without reference", without, self.penalty.token_costs(*case))

    @law(together=True, case=batches(), boundary=st.integers(1, 4))
    def test_in_an_objective(self, case: Case, boundary: int) -> None:
        """In an objective, the weights equal the gradient, and splitting a step into micro-batches changes nothing."""
        objective = PolicyObjective(GeometricMean(), penalties=[self.penalty])
        require_gradient(objective, *case, self.rounding)
        require_additive(objective, *case, boundary, self.rounding)

    @law(case=_cases(), observed=st.floats(-10, 10))
    def test_state(self, case: Case, observed: float) -> None:
        """A new copy with the restored state of an adapted penalty has the same costs."""
        adapted, fresh = deepcopy(self.penalty), deepcopy(self.penalty)
        adapted.adapt(observed)
        fresh.load_state_dict(deepcopy(adapted.state_dict()))
        require_close("token_costs by the state", fresh.token_costs(*case), adapted.token_costs(*case))


def check_penalty(penalty: Penalty, **options: Any) -> KeptLaws:
    """Check all properties of a penalty outside a test runner; see `check_aggregator`.

    Args:
        penalty: instance to test.
        options: `skip`, `examples`, and attributes of `PenaltyContract` to change.

    Example:
        >>> from aggregate_po import K3Penalty
        >>> "derivatives" in check_penalty(K3Penalty(0.04), examples=5)
        True
    """
    return check(PenaltyContract, penalty, **options)
