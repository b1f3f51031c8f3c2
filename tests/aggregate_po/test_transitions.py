"""Denoising steps: divergence and scale of a transition in the batch, and the transforms that read them."""

import math
from dataclasses import replace

import pytest
import torch

from aggregate_po import (
    ArithmeticMean,
    Chain,
    GaussianKLMask,
    GeometricMean,
    PessimisticClip,
    PolicyBatch,
    PolicyObjective,
    PowerMean,
    PrefixGeometricMean,
    RatioNorm,
    TokenRatios,
)
from aggregate_po.recipes import flow_dppo, grpo_guard
from tests.aggregate_po.worked_example import LOG_RATIO, close

# Two latent dimensions: the mean moves by (0.1, -0.05) at standard deviation 0.5, and the noise is (0.3, -1.2).
SHIFT = torch.tensor([[[0.1, -0.05]]], dtype=torch.float64)
NOISE = torch.tensor([[[0.3, -1.2]]], dtype=torch.float64)
SCALE = torch.tensor([[0.5]], dtype=torch.float64)


def log_density(sample, mean, scale):
    """Gaussian log-density without its constant, averaged over latent dimensions."""
    return -((sample - mean) / scale.unsqueeze(-1)).square().mean(dim=-1) / 2


def divergence_of(mean, old_mean, scale):
    """Divergence of two transitions of equal scale, averaged over latent dimensions."""
    return ((mean - old_mean) / scale.unsqueeze(-1)).square().mean(dim=-1) / 2


def steps(divergence, scale=1.0, log_ratio=0.5, advantage=1.0):
    """Context of one completion with a step for each divergence."""
    divergence = torch.tensor([divergence], dtype=torch.float64)
    given = {"divergence": divergence, "scale": torch.full_like(divergence, scale)}
    advantages = torch.tensor([advantage], dtype=torch.float64)
    return TokenRatios.of(torch.full_like(divergence, log_ratio), advantages=advantages, **given)


def test_log_ratio_and_divergence_worked_by_hand():
    sample = SCALE.unsqueeze(-1) * NOISE
    log_ratio = log_density(sample, SHIFT, SCALE) - log_density(sample, torch.zeros_like(SHIFT), SCALE)
    close(log_ratio, [[0.0775]])
    close(divergence_of(SHIFT, torch.zeros_like(SHIFT), SCALE), [[0.0125]])
    tokens = TokenRatios.of(log_ratio, divergence=torch.tensor([[0.0125]]).double(), scale=SCALE)
    close(RatioNorm()(tokens), [[0.045]])
    close(RatioNorm()(tokens), (NOISE * SHIFT).mean(dim=-1))
    close(RatioNorm().derivative(tokens), SCALE)


def test_summed_convention():
    """Log-densities and divergences summed over dimensions: 0.155 becomes 0.09."""
    tokens = TokenRatios.of(torch.tensor([[0.155]]), divergence=torch.tensor([[0.025]]), scale=SCALE.float())
    close(RatioNorm()(tokens), [[0.09]], tolerance=1e-6)


@pytest.mark.parametrize(
    "objective",
    [
        PolicyObjective(ArithmeticMean(), RatioNorm()),
        PolicyObjective(ArithmeticMean(), Chain([RatioNorm(), PessimisticClip(0.02, 0.02)])),
        PolicyObjective(PowerMean(-1.0), Chain([RatioNorm(), PessimisticClip(0.02, 0.02)])),
    ],
    ids=["arithmetic", "clipped", "harmonic"],
)
def test_gradient_through_log_probs_and_divergence_is_weight_times_noise_over_scale(objective):
    """The policy moves both; the weights, which hold the divergence fixed, give the whole gradient all the same."""
    generator = torch.Generator().manual_seed(1)
    old_mean, noise, shift = (torch.randn(4, 7, 5, generator=generator, dtype=torch.float64) for _ in range(3))
    scale = 0.1 + torch.rand(4, 7, generator=generator, dtype=torch.float64)
    mask, advantages = torch.rand(4, 7, generator=generator) < 0.8, torch.tensor([1.0, -1.0, 0.5, -2.0]).double()
    mean = (old_mean + 0.1 * shift).requires_grad_()
    sample = old_mean + scale.unsqueeze(-1) * noise
    log_probs, old = (log_density(sample, center, scale) for center in (mean, old_mean))
    batch = PolicyBatch(
        old, mask, advantages, divergence=divergence_of(mean, old_mean, scale), scale=scale, mean_weights=1 / scale
    )
    objective(log_probs, batch).backward()
    weights = objective.gradient_weights(log_probs, batch)
    assert weights.total.abs().max() > 1e-3
    close(mean.grad, weights.total.unsqueeze(-1) * noise / (5 * scale.unsqueeze(-1)), tolerance=1e-12)
    # The published form: u is the mean of noise times shift, so its derivative by the mean is the noise.
    gate = torch.where(mask, weights.gate, 1)
    published = weights.total / gate.where(gate > 0, 1) * (gate > 0)
    close(mean.grad, published.unsqueeze(-1) * noise / 5, tolerance=1e-12)


def test_divergence_is_masked_where_the_log_ratio_overflows():
    """Beyond the bound neither has a gradient."""
    log_probs = torch.tensor([[-25.0, -1.0]], dtype=torch.float64, requires_grad=True)
    divergence = torch.tensor([[19.0, 30.0]], dtype=torch.float64, requires_grad=True)
    batch = PolicyBatch(
        torch.zeros(1, 2).double(), torch.ones(1, 2), torch.ones(1), divergence=divergence, scale=torch.ones(1, 2)
    )
    PolicyObjective(ArithmeticMean(), RatioNorm())(log_probs, batch).backward()
    assert (divergence.grad == 0).all()
    assert (log_probs.grad > 0).tolist() == [[False, True]]


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "masked"),
    [
        (0.5, 1.0, [False, True, True]),
        (-0.5, -1.0, [False, True, True]),
        (0.5, -1.0, [False] * 3),
        (-0.5, 1.0, [False] * 3),
        (0.0, 1.0, [False] * 3),
        (0.5, 0.0, [False] * 3),
    ],
)
def test_mask_drops_steps_that_moved_far_in_the_direction_of_the_advantage(log_ratio, advantage, masked):
    tokens = steps([0.99e-5, 1e-5, 0.0125], log_ratio=log_ratio, advantage=advantage)
    assert GaussianKLMask().clipped(tokens).tolist() == [masked]


@pytest.mark.parametrize("objective", [flow_dppo(), grpo_guard(2)], ids=["mask", "norm"])
def test_a_divergence_that_is_nan_reaches_value_and_gradient(objective):
    """As a log-probability that is NaN does, so that the optimizer step is skipped; a mask would never act on it."""
    given = {"divergence": torch.tensor([[0.0, math.nan]]), "scale": torch.ones(1, 2)}
    batch = PolicyBatch(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1), **given)
    log_probs = torch.zeros(1, 2, requires_grad=True)
    value = objective(log_probs, batch)
    assert value.isnan()
    value.backward()
    assert log_probs.grad.isnan().any()


def test_a_divergence_that_is_nan_on_padding_changes_nothing():
    given = {"divergence": torch.tensor([[0.0, math.nan]]), "scale": torch.ones(1, 2)}
    batch = PolicyBatch(torch.zeros(1, 2), torch.tensor([[True, False]]), torch.ones(1), **given)
    assert flow_dppo()(torch.zeros(1, 2), batch) == 1


def test_mask_reads_the_ratio_before_other_transforms():
    tokens = steps([1.0])
    assert GaussianKLMask().clipped(replace(tokens, log_ratio=-tokens.log_ratio)).item()


def test_weighted_means_of_the_worked_example():
    weights = torch.tensor([[4.0, 2.0, 1.0, 1.0]], dtype=torch.float64) / 3
    tokens = TokenRatios.of(LOG_RATIO, mean_weights=weights)
    for mean, value in ((ArithmeticMean(), 1.35351377), (GeometricMean(), 1.23676611), (PowerMean(-1), 1.10860793)):
        close(mean.log_aggregate(tokens).exp(), [value], tolerance=1e-8)


def test_parts_without_what_they_read():
    tokens, after = TokenRatios.of(torch.zeros(1, 2)), steps([0.0]).after_mean(torch.zeros(1))
    expected = (
        "`scale` is None, but RatioNorm reads it of each token; pass `PolicyBatch(..., scale=...)`, and no `prefix`."
    )
    with pytest.raises(ValueError) as error:  # noqa: PT011  # the whole message is compared
        RatioNorm()(tokens)
    assert str(error.value) == expected
    with pytest.raises(
        ValueError, match=r"^`divergence` is None, but GaussianKLMask reads it of each token; pass `Pol"
    ):
        GaussianKLMask()(tokens)
    for part in (RatioNorm(), GaussianKLMask()):
        with pytest.raises(ValueError, match=rf"is None after the mean, but {type(part).__name__} .*`token_transform`"):
            part(after)


def test_the_ratio_of_a_prefix_has_no_standard_deviation_of_a_step():
    given = {"divergence": torch.full((1, 2), 0.25), "scale": torch.full((1, 2), 0.5)}
    batch = PolicyBatch(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1), **given)
    prefix = PrefixGeometricMean()
    with pytest.raises(ValueError, match=r"^`scale` is None, but RatioNorm reads it .*, and no `prefix`\.$"):
        PolicyObjective(ArithmeticMean(), RatioNorm(), prefix=prefix)(torch.zeros(1, 2), batch)
    masked = PolicyObjective(ArithmeticMean(), GaussianKLMask(0.1), prefix=prefix)  # reads the step alone
    assert masked.evaluate(torch.tensor([[0.1, -0.1]]), batch).weights.clipped.tolist() == [[True, False]]


@pytest.mark.parametrize("value", [0.0, -1.0, math.nan, math.inf, 1e7])
def test_scales_are_positive_on_trained_tokens(value):
    scale, mask = torch.tensor([[0.5, value]]), torch.tensor([[True, False]])
    batch = PolicyBatch(torch.zeros(1, 2), mask, torch.ones(1), scale=scale)
    assert batch.scale.tolist() == [[0.5, 1.0]]
    for of in (
        lambda: PolicyBatch(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1), scale=scale),
        lambda: TokenRatios.of(torch.zeros(1, 2), scale=scale),
    ):
        with pytest.raises(ValueError, match=r"^`scale` has .* on a trained token; pass the standard .*response_mask"):
            of()


@pytest.mark.parametrize("name", ["divergence", "ref_divergence"])
def test_divergences_are_not_negative(name):
    given = {name: torch.tensor([[0.5, -0.1]])}
    batch = PolicyBatch(torch.zeros(1, 2), torch.tensor([[True, False]]), torch.ones(1), **given)
    assert getattr(batch, name).tolist() == [[0.5, 0.0]]
    with pytest.raises(ValueError, match=rf"^`{name}` has -0.1\d* on a trained token; .*minus the divergence\.$"):
        PolicyBatch(torch.zeros(1, 2), torch.ones(1, 2), torch.ones(1), **given)


def test_divergences_keep_their_graph_and_scales_do_not():
    given = {name: torch.ones(3, 4, requires_grad=True) for name in ("divergence", "ref_divergence", "scale")}
    batch = PolicyBatch(torch.zeros(3, 4), torch.ones(3, 4), torch.ones(3), **given)
    fewer = batch.select(torch.tensor([2, 0]), 3).to(torch.float64)
    assert fewer.divergence.shape == fewer.scale.shape == (2, 3)
    (fewer.divergence + 2 * fewer.ref_divergence).sum().backward()
    kept = torch.tensor([[1.0] * 3 + [0], [0.0] * 4, [1.0] * 3 + [0]])
    assert torch.equal(given["divergence"].grad, kept)
    assert torch.equal(given["ref_divergence"].grad, 2 * kept)
    assert not batch.scale.requires_grad
