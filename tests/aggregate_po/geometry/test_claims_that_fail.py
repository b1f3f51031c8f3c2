"""Claims of the papers that do not hold as stated, each with the smallest counterexample, and what does hold."""

import math

import pytest
import torch

from aggregate_po import PessimisticClip, PolicyBatch, PolicyObjective, PowerMean
from aggregate_po.geometry import log_variance_proxy, variance_minimizing_exponent
from aggregate_po.recipes import gmpo_no_clip, grpo, holder_po
from tests.aggregate_po.worked_example import close, worked_batch


def test_group_of_mixed_signs_may_be_larger_under_gmpo():
    """The mean inequality bounds each completion, not a sum with cancellation; see also `am_gm_gap`."""
    log_probs = torch.tensor([[2.0, 0.5], [1.25, 1.25]], dtype=torch.float64).log()
    batch = PolicyBatch(
        torch.zeros(2, 2, dtype=torch.float64), torch.ones(2, 2), torch.tensor([1.0, -1.0], dtype=torch.float64)
    )
    arithmetic = grpo(clip_low=1.0, clip_high=float("inf"))
    close(arithmetic(log_probs, batch), 0.0, tolerance=1e-15)
    close(gmpo_no_clip()(log_probs, batch), -0.125, tolerance=1e-15)


def test_holder_po_at_exponent_one_is_not_grpo():
    """HölderPO clips the mean, 1.1888 here, and not the tokens."""
    log_probs, batch = worked_batch(1)
    close(holder_po(1.0)(log_probs, batch), 1.188805784)
    close(grpo()(log_probs, batch), 1.02792539)


EXPONENTS = torch.linspace(-4, 4, 33, dtype=torch.float64).tolist()


@pytest.mark.parametrize("advantage", [1.0, -1.0, -2.5])
@pytest.mark.parametrize("spread", [0.3, 1.0, 4.0])
def test_a_token_clip_leaves_a_monotone_bound_on_the_gradient(advantage, spread):
    """HölderPO, arXiv:2605.12058, keeps the clip after the mean because a clip on tokens would void the bound.

    With the clipped mean H_p in place of M_p it survives: unclipped tokens keep their own value, so the sum of their
    powers is at most the sum of all clipped powers, and the absolute token weights sum to at most |A| H_p, which rises
    with p.
    """
    generator = torch.Generator().manual_seed(0)
    log_ratio = spread * torch.randn(64, 7, generator=generator, dtype=torch.float64)
    clip = PessimisticClip(0.2, 0.28)
    low, high = (-math.inf, math.log(1.28)) if advantage > 0 else (math.log(0.8), math.inf)
    clipped = log_ratio.clamp(low, high)
    is_open = clipped == log_ratio
    batch = PolicyBatch(torch.zeros_like(log_ratio), torch.ones(64, 7), torch.full((64,), advantage).double())

    bounds = []
    for exponent in EXPONENTS:
        open_powers = torch.where(is_open, (exponent * log_ratio).exp(), 0).sum(dim=-1)
        assert (open_powers <= (exponent * clipped).exp().sum(dim=-1) * (1 + 1e-12)).all()

        log_probs = log_ratio.clone().requires_grad_()
        PolicyObjective(PowerMean(exponent), clip)(log_probs, batch).backward()
        mean = clipped.mean(-1).exp() if exponent == 0 else (exponent * clipped).exp().mean(-1) ** (1 / exponent)
        bounds.append(abs(advantage) * mean)
        assert (64 * log_probs.grad.abs().sum(dim=-1) <= bounds[-1] * (1 + 1e-12)).all()
    assert (torch.stack(bounds).diff(dim=0) >= -1e-12).all()
    assert not is_open.all()


def test_the_variance_proxy_of_widely_spread_ratios_has_no_minimum():
    """HölderPO states a minimizer at or below zero; here the infimum is only approached as p falls without end."""
    log_ratio, mask = torch.tensor([[0.0, -4.0]], dtype=torch.float64), torch.ones(1, 2, dtype=torch.bool)
    infimum = -8.0
    for lowest in (-2.0, -8.0, -32.0, -128.0):
        close(variance_minimizing_exponent(log_ratio, mask, lowest), [lowest], tolerance=1e-9)
        assert log_variance_proxy(log_ratio, mask, lowest) > infimum
    close(log_variance_proxy(log_ratio, mask, -1e6), [infimum], tolerance=1e-5)
