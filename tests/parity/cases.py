"""Random batches on which this library and a peer are compared, and what counts as agreement."""

from dataclasses import dataclass, replace

import torch
from torch import Tensor

from aggregate_po import PerToken, PolicyBatch, PolicyObjective


@dataclass(frozen=True)
class Case:
    """Log-probabilities that are trained, and the batch that they belong to."""

    log_probs: PerToken
    batch: PolicyBatch

    @classmethod
    def random(cls, seed, batch, time, spread, holes=False, first_sign=1):
        """Ragged completions whose log ratios are normal with deviation `spread`; float64.

        Advantages alternate in sign and one of more than four is 0. Every completion has a token.
        """
        generator = torch.Generator().manual_seed(seed)

        def normal(*shape):
            return torch.randn(*shape, generator=generator, dtype=torch.float64)

        def uniform(*shape):
            return torch.rand(*shape, generator=generator, dtype=torch.float64)

        old = -3 * uniform(batch, time) - 0.01
        mask = torch.arange(time) < torch.randint(1, time + 1, (batch, 1), generator=generator)
        if holes:
            mask &= uniform(batch, time) < 0.7
            mask[:, 0] = True
        signs = first_sign * (1 - 2 * (torch.arange(batch) % 2))
        signs[4:5] = 0
        return cls(
            log_probs=(old + spread * normal(batch, time)).clamp(max=-1e-3),
            batch=PolicyBatch(
                old_log_probs=old,
                response_mask=mask,
                advantages=signs * (0.2 + normal(batch).abs()),
                ref_log_probs=(old + 0.5 * normal(batch, time)).clamp(max=-1e-3),
            ),
        )

    def to(self, dtype):
        """The case in another precision."""
        return self._with(lambda tensor: tensor.to(dtype) if tensor.is_floating_point() else tensor)

    def rows(self, rows):
        """Some completions of the step, as a micro-batch has them."""
        return self._with(lambda tensor: tensor[rows])

    def without(self, row):
        """The case with one completion masked."""
        mask = self.batch.response_mask.clone()
        mask[row] = False
        return Case(self.log_probs, replace(self.batch, response_mask=mask, totals=None))

    def with_token_advantages(self):
        """The case with an advantage of its own for each token."""
        generator = torch.Generator().manual_seed(7)
        advantages = torch.randn(self.log_probs.shape, generator=generator, dtype=torch.float64)
        return Case(self.log_probs, replace(self.batch, advantages=advantages))

    def micro_batches(self, size):
        """The step split into micro-batches of `size` completions, each with the totals of the whole step."""
        return [self.rows(slice(start, start + size)) for start in range(0, len(self.log_probs), size)]

    def _with(self, change):
        tensors = {name: change(value) for name, value in vars(self.batch).items() if isinstance(value, Tensor)}
        return Case(change(self.log_probs), replace(self.batch, **tensors))


CASES = {
    "one token": Case.random(0, batch=1, time=1, spread=0.3),
    "one completion": Case.random(1, batch=1, time=9, spread=0.3, first_sign=-1),
    "on policy": Case.random(2, batch=3, time=5, spread=0.0),
    "within the clip": Case.random(3, batch=4, time=6, spread=0.05),
    "across the clip": Case.random(4, batch=6, time=12, spread=0.3, holes=True),
    "far outside": Case.random(5, batch=8, time=33, spread=1.2, holes=True),
}


def by_hand(log_ratio, advantages, mask=None, dtype=torch.float64):
    """Completions with the given log ratios, from a behavior policy that gave each token the probability 1/e."""
    log_ratio = torch.tensor(log_ratio, dtype=dtype)
    old = torch.full_like(log_ratio, -1)
    mask = torch.ones_like(log_ratio) if mask is None else torch.tensor(mask)
    return Case(old + log_ratio, PolicyBatch(old, mask, torch.tensor(advantages, dtype=dtype), ref_log_probs=old))


def differentiate(loss, case):
    """Value of `loss(log_probs, batch)` and its gradient with respect to `log_probs`."""
    inputs = case.log_probs.clone().requires_grad_()
    value = loss(inputs, case.batch)
    (gradient,) = torch.autograd.grad(value, inputs)
    return value.detach(), gradient


def loss_of(objective):
    """Return the loss that a peer minimizes, the negated objective."""
    return lambda log_probs, batch: -objective(log_probs, batch)


def gradient_of(loss, case):
    return differentiate(loss, case)[1]


def value_of(loss, case):
    return differentiate(loss, case)[0]


def replaced(objective, **parts):
    """The objective with some of its parts exchanged."""
    return PolicyObjective(**{**vars(objective), **parts})


def assert_close(actual: Tensor, expected: Tensor, rtol):
    """Agreement of each number to `rtol`, or absolutely to a tenth of that."""
    torch.testing.assert_close(actual.to(expected.dtype), expected, rtol=rtol, atol=rtol / 10)


def assert_parity(peer, objective, case, rtol=1e-10, values=True):
    """A peer's loss and its gradient are this objective's, and so are the closed-form weights.

    In float64 to `rtol`. In float32 this library stays within 1e-6 of what the peer gives in float64 for the same
    numbers, which is more than the peers do: see the tests of their rounding.
    """
    single = case.to(torch.float32)
    for ours, theirs, tolerance in [(case, case, rtol), (single, single.to(torch.float64), max(rtol, 1e-6))]:
        peer_value, peer_gradient = differentiate(peer, theirs)
        value, gradient = differentiate(loss_of(objective), ours)
        assert_close(gradient, peer_gradient, tolerance)
        assert_close(-objective.gradient_weights(ours.log_probs, ours.batch).total, peer_gradient, tolerance)
        if values:
            assert_close(value, peer_value, tolerance)
