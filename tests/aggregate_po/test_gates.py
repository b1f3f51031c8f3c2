"""Gates, masks, and transforms made of transforms."""

import math
from dataclasses import replace

import pytest
import torch

from aggregate_po import (
    AdaptiveClip,
    ArctanGate,
    ArithmeticMean,
    BernoulliKLMask,
    Chain,
    CompletionRatio,
    GammaKernel,
    GeometricMean,
    NegativeCap,
    PessimisticClip,
    PolicyBatch,
    PolicyObjective,
    PowerMean,
    Product,
    RatioTransform,
    SigmoidGate,
    StaleCompletionMask,
    StepTotals,
    StraightThrough,
    TokenRatios,
    TotalVariationMask,
    TwoSidedClip,
)
from tests.aggregate_po.worked_example import LOG_RATIO, close


def tokens(log_ratio, advantage=1.0, old_log_probs=None, **totals):
    """One completion; the behavior policy had probability 1 unless told otherwise."""
    log_ratio = torch.as_tensor(log_ratio, dtype=torch.float64)
    context = TokenRatios.of(
        log_ratio,
        advantages=torch.tensor([advantage], dtype=torch.float64),
        totals=StepTotals(1, log_ratio.shape[1], **totals),
    )
    if old_log_probs is None:
        return context
    return replace(context, old_log_probs=torch.tensor(old_log_probs, dtype=torch.float64))


def assert_derivative_and_saturation(transform, context):
    """The clipped forms are those of autograd."""
    close(transform.derivative(context), RatioTransform.derivative(transform, context), tolerance=1e-12)
    assert torch.equal(transform.saturated(context), RatioTransform.saturated(transform, context))


@pytest.mark.parametrize(
    ("advantage", "tau", "values"),
    [
        (1.0, 1.0, [4 / (1 + math.exp(-0.8221188)), 4 / (1 + math.exp(0.39346934))]),
        (-1.0, 1.05, [4 / 1.05 / (1 + math.exp(-1.05 * 0.8221188)), 4 / 1.05 / (1 + math.exp(1.05 * 0.39346934))]),
    ],
    ids=["positive", "negative"],
)
def test_sigmoid_gate(advantage, tau, values):
    """f(r) = 4 / tau * sigmoid(tau (r - 1)) at r = 1.8221188 and 0.60653066; f(1) = 2 / tau with slope 1."""
    gate, context = SigmoidGate(), tokens(LOG_RATIO[:, :2], advantage)
    close(gate(context).exp(), [values])
    assert_derivative_and_saturation(gate, context)
    on_policy = tokens([[0.0]], advantage)
    close(gate(on_policy).exp(), [[2 / tau]], tolerance=1e-15)
    close(gate(on_policy).exp() * gate.derivative(on_policy), [[1.0]], tolerance=1e-15)


@pytest.mark.parametrize("dtype", [torch.float32, torch.float64])
@pytest.mark.parametrize("tau", [0.01, 1.0, 50.0])
def test_sigmoid_gate_ends_where_its_exponential_would_overflow(tau, dtype):
    """A hundred tokens of log ratio 1: f(e^100) = 4 / tau to the last digit, with slope 0."""
    batch = PolicyBatch(torch.zeros(1, 100), torch.ones(1, 100), torch.ones(1)).to(dtype)
    log_probs = torch.ones(1, 100, dtype=dtype, requires_grad=True)
    gate = SigmoidGate(tau, tau)
    evaluated = PolicyObjective(Product(), sequence_transform=gate).evaluate(log_probs, batch)
    evaluated.value.backward()
    close(evaluated.value.detach() * tau / 4, 1.0, tolerance=1e-6)
    assert log_probs.grad.tolist() == evaluated.weights.total.tolist() == [[0.0] * 100]
    # Far along the slope of a wide gate the bound is not in the way.
    context = tokens([[math.log(1 + 3 / tau)]])
    close(gate(context).exp(), [[4 / tau / (1 + math.exp(-3))]], tolerance=1e-9)


def test_sigmoid_gate_keeps_a_slope_that_single_precision_has():
    """r sigmoid(1 - r) at e^4.5 = 90.017 is 90.017 e^-89.017 = 1.97e-37, of which the sigmoid alone would underflow."""
    context = tokens([[4.5]])
    single = SigmoidGate().derivative(replace(context, log_ratio=context.log_ratio.float()))
    assert single.item() > torch.finfo(torch.float32).tiny
    torch.testing.assert_close(single.double(), SigmoidGate().derivative(context), rtol=1e-3, atol=0)


@pytest.mark.parametrize("advantage", [1.0, -1.0])
def test_arctan_gate(advantage):
    """Arctangents of 1, -sqrt(3) and 0 are pi / 4, -pi / 3 and 0; slopes 1/2, 1/4 and 1."""
    gate, context = ArctanGate(5.0), tokens([[0.2, -math.sqrt(3) / 5, 0.0]], advantage)
    close(gate(context), [[math.pi / 20, -math.pi / 15, 0.0]], tolerance=1e-15)
    close(gate.derivative(context), [[0.5, 0.25, 1.0]], tolerance=1e-15)
    assert_derivative_and_saturation(gate, context)


def test_arctan_gate_is_bounded():
    """At log ratios of +-1e30, also in single precision, where the square overflows."""
    context = tokens([[1e30, -1e30]])
    close(ArctanGate(0.5)(context), [[math.pi, -math.pi]], tolerance=1e-15)
    single = replace(context, log_ratio=context.log_ratio.float())
    assert ArctanGate(0.5).derivative(single).tolist() == [[0.0, 0.0]]
    assert_derivative_and_saturation(ArctanGate(0.5), context)


@pytest.mark.parametrize(
    ("advantage", "value", "peak"),
    [(1.0, 0.50891509, 2 / 3), (0.0, 0.50891509, 2 / 3), (-1.0, 1.24153759, 3 / 2)],
    ids=["positive", "none", "negative"],
)
def test_gamma_kernel(advantage, value, peak):
    """At w = e^0.4: e^(3 + 0.8 - 3 w), and e^(2 + 1.2 - 2 w) for a negative advantage."""
    kernel = GammaKernel()
    close(kernel(tokens([[0.4]], advantage)).exp(), [[value]])
    close(kernel(tokens([[0.0]], advantage)), [[0.0]], tolerance=0)
    at_the_peak = tokens([[math.log(peak)]], advantage)
    close(kernel.derivative(at_the_peak), [[0.0]], tolerance=1e-15)
    for context in (tokens(LOG_RATIO, advantage), tokens([[-30.0, 30.0, 20.0, -20.0]], advantage)):
        assert_derivative_and_saturation(kernel, context)


@pytest.mark.parametrize(("advantage", "ratios"), [(1.0, [1.28, 0.8, 1.22140276]), (-1.0, [1.28, 0.8, 1.22140276])])
def test_two_sided_clip_ignores_the_advantage(advantage, ratios):
    context = tokens([[0.6, -0.5, 0.2]], advantage)
    clip = TwoSidedClip(0.8, 1.28)
    close(clip(context).exp(), [ratios])
    assert clip.derivative(context).tolist() == [[0.0, 0.0, 1.0]]
    assert_derivative_and_saturation(clip, context)


def test_straight_through_keeps_the_values_and_every_gradient():
    context = tokens([[0.6, -0.5, 0.2]])
    weight = StraightThrough(TwoSidedClip(0.8, 1.28))
    close(weight(context).exp(), [[1.28, 0.8, 1.22140276]])
    assert weight.derivative(context).tolist() == [[1.0, 1.0, 1.0]]
    assert not weight.saturated(context).any()
    assert_derivative_and_saturation(weight, context)


@pytest.mark.parametrize(
    ("advantage", "ratios", "open_tokens"),
    [(-1.0, [3.0, 1.8221188, 0.8], [0.0, 1.0, 0.0]), (1.0, [1.2, 1.2, 0.60653066], [0.0, 0.0, 1.0])],
    ids=["negative", "positive"],
)
def test_dual_clip_bounds_a_negative_advantage_from_both_sides(advantage, ratios, open_tokens):
    """Ratios 3.3201, 1.8221, 0.6065: for A < 0 held between 0.8 and 3, for A > 0 at 1.2."""
    clip = Chain([PessimisticClip(0.2, 0.2), NegativeCap(3.0)])
    context = tokens([[1.2, 0.6, -0.5]], advantage)
    close(clip(context).exp(), [ratios])
    assert clip.derivative(context).tolist() == [open_tokens]
    assert_derivative_and_saturation(clip, context)


@pytest.mark.parametrize(
    ("mean", "deviation", "bound"),
    [(0.5, 0.5, 0.35231883), (0.0, 0.3, 0.2), (1.0, 0.0, 0.4), (-1.0, 0.5, 0.2)],
    ids=["as steady as high", "no reward", "all solved", "below zero"],
)
def test_adaptive_clip_widens_with_steady_rewards(mean, deviation, bound):
    context = tokens([[0.6, -0.5]], 1.0, reward_mean=mean, reward_std=deviation)
    close(AdaptiveClip()(context).exp(), [[1 + bound, 0.60653066]])
    fell = tokens([[0.6, -0.5]], -1.0, reward_mean=mean, reward_std=deviation)
    close(AdaptiveClip()(fell).exp(), [[1.8221188, 0.8]])
    assert_derivative_and_saturation(AdaptiveClip(), context)


def test_completion_ratio_gives_every_token_the_ratio_of_its_completion():
    context = tokens(LOG_RATIO)
    for aggregator, value in ((GeometricMean(), 1.105170918), (Product(), 1.491824698), (PowerMean(2.0), 1.265032)):
        transform = CompletionRatio(aggregator)
        close(transform(context).exp(), [[value] * 4])
        assert transform.derivative(context).tolist() == [[1.0] * 4]
        assert_derivative_and_saturation(transform, context)


def test_completion_ratio_passes_gradient_to_its_own_token_only():
    log_ratio = LOG_RATIO.clone().requires_grad_()
    context = replace(tokens(LOG_RATIO), log_ratio=log_ratio)
    CompletionRatio(GeometricMean())(context)[0, 1].backward()
    assert log_ratio.grad.tolist() == [[0.0, 1.0, 0.0, 0.0]]


@pytest.mark.parametrize("transform", [CompletionRatio(GeometricMean()), StaleCompletionMask(0.1)], ids=repr)
def test_what_acts_on_tokens_says_so_after_the_mean(transform):
    objective = PolicyObjective(GeometricMean(), sequence_transform=transform)
    with pytest.raises(ValueError, match=r"^`log_ratio` has shape \(1,\), but .* tokens; pass it as `token_transform`"):
        objective(torch.zeros(1, 4), PolicyBatch(torch.zeros(1, 4), torch.ones(1, 4), torch.ones(1)))


OLD = [[math.log(0.5), math.log(0.5), math.log(0.001), math.log(0.9)]]
NEW = [[math.log(0.75), math.log(0.25), math.log(0.01), math.log(0.5)]]


def moved(advantage):
    return tokens(torch.tensor(NEW) - torch.tensor(OLD), advantage, OLD)


@pytest.mark.parametrize(
    ("advantage", "clipped"),
    [(1.0, [True, False, False, False]), (-1.0, [False, True, False, True])],
    ids=["rose", "fell"],
)
def test_total_variation_mask(advantage, clipped):
    """Probabilities .5 to .75, .5 to .25, .001 to .01 (ratio 10), .9 to .5, against a bound of 0.2."""
    mask = TotalVariationMask(0.2, 0.2)
    assert mask.clipped(moved(advantage)).tolist() == [clipped]
    close(mask(moved(advantage)), moved(advantage).log_ratio, tolerance=0)
    assert mask.saturated(moved(advantage)).tolist() == [clipped]
    assert_derivative_and_saturation(mask, moved(advantage))


@pytest.mark.parametrize(
    ("bound", "advantage", "clipped"),
    [
        (0.14, 1.0, [True, False, False, False]),
        (0.15, 1.0, [False, False, False, False]),
        (0.14, -1.0, [False, True, False, True]),
        (0.36, -1.0, [False, False, False, True]),
        (0.37, -1.0, [False, False, False, False]),
        (0.006, 1.0, [True, False, True, False]),
    ],
)
def test_bernoulli_kl_mask(bound, advantage, clipped):
    """KL(old || new) of the binary choices: 0.1438, 0.1438, 0.0067 and 0.3681 nats."""
    mask = BernoulliKLMask(bound, bound)
    assert mask.clipped(moved(advantage)).tolist() == [clipped]
    assert_derivative_and_saturation(mask, moved(advantage))


def test_bernoulli_kl_mask_has_a_bound_for_each_direction():
    mask = BernoulliKLMask(max_divergence_low=1.0, max_divergence_high=0.1)
    assert mask.clipped(moved(1.0)).tolist() == [[True, False, False, False]]
    assert not mask.clipped(moved(-1.0)).any()


def test_masks_judge_the_policies_and_not_what_an_earlier_transform_made_of_them():
    context = moved(1.0)
    weight = Chain([StraightThrough(TwoSidedClip(1.0, 1.0)), TotalVariationMask(0.2, 0.2)])
    close(weight(context).exp(), [[1.0] * 4], tolerance=0)
    assert weight.derivative(context).tolist() == [[0.0, 1.0, 1.0, 1.0]]
    assert_derivative_and_saturation(weight, context)


def test_a_masked_token_keeps_its_ratio_where_a_clip_would_replace_it():
    """Under a geometric mean the others see the difference."""
    context = moved(1.0)
    weights = []
    for transform in (TotalVariationMask(0.2, 0.2), PessimisticClip(0.2, 0.2)):
        batch = PolicyBatch(torch.tensor(OLD).double(), torch.ones(1, 4), torch.ones(1).double())
        log_probs = batch.old_log_probs + context.log_ratio
        weights.append(PolicyObjective(GeometricMean(), transform).gradient_weights(log_probs, batch))
    assert weights[0].magnitude > weights[1].magnitude
    close(weights[0].magnitude.squeeze(), context.log_ratio.mean().exp())


@pytest.mark.parametrize(
    ("log_ratio", "advantage", "clipped"),
    [([[-0.9, -0.3]], -1.0, True), ([[-0.9, -0.3]], 1.0, False), ([[-0.9, 0.1]], -1.0, False)],
    ids=["left behind", "positive", "near"],
)
def test_stale_completion_mask(log_ratio, advantage, clipped):
    """Means of -log r are 0.6, 0.6 and 0.4, against 0.5."""
    mask = StaleCompletionMask(0.5)
    assert mask.clipped(tokens(log_ratio, advantage)).tolist() == [[clipped] * 2]
    assert mask.derivative(tokens(log_ratio, advantage)).tolist() == [[float(not clipped)] * 2]
    gate = PolicyObjective(ArithmeticMean(), mask).gradient_weights(
        torch.tensor(log_ratio),
        PolicyBatch(torch.zeros(1, 2), torch.ones(1, 2), torch.tensor([advantage])),
    )
    assert gate.gate.tolist() == [[float(not clipped)] * 2]
    assert gate.clipped.tolist() == [[clipped] * 2]


@pytest.mark.parametrize(
    ("make", "message"),
    [
        (lambda: SigmoidGate(tau_negative=0.0), r"^`tau_negative` is 0.0; pass a positive number"),
        (lambda: ArctanGate(0.0), r"^`tau` is 0.0; pass a positive number"),
        (lambda: ArctanGate(math.inf), r"^`tau` is inf; pass a positive number"),
        (lambda: GammaKernel(rate_positive=math.nan), r"^`rate_positive` is nan; pass a positive number"),
        (lambda: TwoSidedClip(1.2, 0.8), r"^`min_ratio` is 1.2 and `max_ratio` 0.8; pass two ratios in this order"),
        (lambda: TwoSidedClip(-0.1, 0.8), r"^`min_ratio` is -0.1"),
        (lambda: NegativeCap(1.0), r"^`max_ratio` is 1.0; pass a ratio above 1"),
        (lambda: TotalVariationMask(max_decrease=-0.1), r"^`max_decrease` is -0.1; pass 0 or more"),
        (lambda: BernoulliKLMask(math.nan), r"^`max_divergence_low` is nan; pass 0 or more"),
        (lambda: AdaptiveClip(clip_high_max=-1.0), r"^`clip_high_max` is -1.0; pass a distance"),
    ],
)
def test_numbers_out_of_range_are_named(make, message):
    with pytest.raises(ValueError, match=message):
        make()


def test_a_chain_takes_transforms_only():
    with pytest.raises(TypeError, match=r"^`transforms` has 0.2; pass instances of subclasses of RatioTransform"):
        Chain([PessimisticClip(), 0.2])
