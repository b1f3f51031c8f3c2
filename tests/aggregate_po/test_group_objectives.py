"""Group objectives: worked examples, terms of micro-batches, the factors of the weights, and errors."""

from dataclasses import replace

import pytest
import torch

from aggregate_po import (
    CompletionValues,
    CorrectionWeights,
    GeometricMean,
    GroupObjective,
    LabelLogistic,
    PessimisticClip,
    PolicyBatch,
    PolicyObjective,
    Product,
    StepTotals,
    TargetCrossEntropy,
    TokenMean,
    recipes,
)
from aggregate_po.advantages import GroupedRewards, GroupNormalized
from tests.aggregate_po.worked_example import close
from tests.third_party import CompletionSum

# Z-scores by the standard deviation of the population.
SCORES = GroupNormalized(ddof=0, delta=0)(GroupedRewards(torch.tensor([1.0, 0, 0, 0]).double(), 4))


def of_one_token(log_ratios, old=(0.0, 0.0, 0.0, 0.0), advantages=SCORES, groups=(0, 0, 0, 0)):
    """Log-probabilities and batch of completions of one token each."""
    old = torch.tensor(old).double().unsqueeze(-1)
    log_probs = old + torch.tensor(log_ratios).double().unsqueeze(-1)
    return log_probs, PolicyBatch(old, torch.ones_like(old), advantages, groups=torch.tensor(groups))


def measured(objective, log_probs, batch):
    """Value, gradient by autograd, and closed-form weights."""
    inputs = log_probs.clone().requires_grad_()
    value = objective(inputs, batch)
    value.backward()
    return value.item(), inputs.grad, objective.gradient_weights(log_probs, batch)


@pytest.mark.parametrize(
    ("recipe", "case", "value", "gradient"),
    [
        (
            recipes.real,
            of_one_token([0.2, -0.1, 0.05, 0.0]),
            -1.88010174,
            [0.80262468, -0.41730442, -0.56330205, -0.50969677],
        ),
        (
            recipes.tpo,
            of_one_token([0.4, -0.2, 0.1, 0.0], old=[-10.0, -12.0, -11.0, -9.0]),
            None,
            [0.44203343, -0.01325478, -0.05832021, -0.37045844],
        ),
    ],
)
def test_worked_examples(recipe, case, value, gradient):
    actual, by_autograd, weights = measured(recipe(), *case)
    assert value is None or abs(actual - value) < 1e-8
    close(by_autograd.squeeze(-1), gradient, tolerance=1e-8)
    close(weights.total.squeeze(-1), gradient, tolerance=1e-8)


def test_target_by_hand():
    """Behavior probabilities (0.2, 0.3, 0.5), a tilt of log 2 and -log 5, and a policy that moved the first to 0.6."""
    old, advantages = torch.tensor([0.2, 0.3, 0.5]).log().tolist(), torch.tensor([2.0, 1.0, 0.2]).double().log()
    log_probs, batch = of_one_token([torch.tensor(3.0).log().item(), 0.0, 0.0], old, advantages, [0, 0, 0])
    value, gradient, _ = measured(recipes.tpo(), log_probs, batch)
    target = torch.tensor([0.4, 0.3, 0.1]).double() / 0.8
    policy = torch.tensor([0.6, 0.3, 0.5]).double() / 1.4
    assert abs(value - (target * policy.log()).sum().item()) < 1e-7
    torch.testing.assert_close(gradient.squeeze(-1), target - policy, rtol=0, atol=1e-7)


def test_temperatures_scale_log_values_and_advantages():
    log_probs, batch = of_one_token([0.2, -0.1, 0.05, 0.0])
    wide = of_one_token([0.8, -0.4, 0.2, 0.0])
    assert recipes.real(2.0)(*wide).item() == pytest.approx(recipes.real(0.5)(log_probs, batch).item())
    double = replace(batch, advantages=2 * batch.advantages)
    assert recipes.tpo(2.0)(log_probs, double).item() == pytest.approx(recipes.tpo()(log_probs, batch).item())


@pytest.mark.parametrize("signs", [(1.0, 1.0), (-1.0, -1.0), (0.0, -2.0)])
def test_a_group_of_one_label_is_skipped(signs):
    """Value and gradient of the group are 0, and it counts among the groups of the step."""
    advantages = torch.tensor([*signs, 1.0, -1.0]).double()
    log_probs, batch = of_one_token([0.3, -0.2, 0.1, 0.4], advantages=advantages, groups=[5, 5, 2, 2])
    value, gradient, _ = measured(recipes.real(), log_probs, batch)
    alone = of_one_token([0.1, 0.4], (0.0, 0.0), advantages[2:], [0, 0])
    own_value, own_gradient, _ = measured(recipes.real(), *alone)
    assert (gradient[:2] == 0).all()
    assert value == pytest.approx(own_value / 2)
    torch.testing.assert_close(gradient[2:], own_gradient / 2)


def test_an_advantage_of_zero_is_a_negative_label():
    moves = [0.3, -0.2, 0.1]
    zero, negative = (
        measured(recipes.real(), *of_one_token(moves, [0.0] * 3, torch.tensor(given).double(), [0] * 3))
        for given in ([1.0, 0.0, -1.0], [1.0, -1.0, -1.0])
    )
    assert zero[0] == negative[0]
    assert torch.equal(zero[1], negative[1])


@pytest.fixture
def step():
    """Six completions of unequal lengths in groups of two sizes, one of them without a trained token."""
    generator = torch.Generator().manual_seed(3)
    old = -torch.rand(6, 5, generator=generator).double()
    log_probs = old + 0.3 * torch.randn(6, 5, generator=generator).double()
    mask = torch.arange(5) < torch.tensor([5, 2, 0, 3, 4, 1]).unsqueeze(-1)
    advantages = torch.tensor([1.0, -0.5, 3.0, 0.5, -1.0, 2.0]).double()
    return log_probs, PolicyBatch(old, mask, advantages, groups=torch.tensor([7, 7, 7, -2, 7, -2]))


@pytest.mark.parametrize("normalizer", [None, TokenMean()])
def test_the_sum_over_the_completions_of_a_group_is_the_ordinary_objective(step, normalizer):
    parts = (GeometricMean(), PessimisticClip.log(0.2, 0.2), PessimisticClip(0.1, 0.1))
    options = {} if normalizer is None else {"normalizer": normalizer}
    expected, gradient, ordinary = measured(PolicyObjective(*parts, **options), *step)
    value, by_groups, weights = measured(PolicyObjective(*parts, **options, group_objective=CompletionSum()), *step)
    assert value == pytest.approx(expected)
    torch.testing.assert_close(by_groups, gradient)
    torch.testing.assert_close(weights.total, ordinary.total)
    for name in ("completion", "concentration", "gate", "clipped", "overflow"):
        assert torch.equal(getattr(weights, name), getattr(ordinary, name)), name
    torch.testing.assert_close(weights.advantages * weights.magnitude, ordinary.advantages * ordinary.magnitude)


@pytest.mark.parametrize("objective", [recipes.real(), recipes.tpo()])
def test_a_step_may_be_split_within_groups(step, objective):
    """Log values are collected from the micro-batches, in any order; their terms are those of the whole step."""
    log_probs, batch = step
    expected, gradient, _ = measured(objective, log_probs, batch)
    parts = [torch.tensor([4, 0]), torch.tensor([2]), torch.tensor([5, 1, 3])]
    tables = [objective.completion_values(log_probs[rows], batch.select(rows)).table for rows in parts]
    terms = objective.group_terms(CompletionValues.of(tables))
    lengths = [len(rows) for rows in parts]
    values = torch.zeros(()).double()
    for rows, own, advantages in zip(parts, terms.values.split(lengths), terms.advantages.split(lengths), strict=True):
        micro_batch = replace(batch.select(rows), group_values=own, group_advantages=advantages)
        value, own_gradient, weights = measured(objective, log_probs[rows], micro_batch)
        values += value
        torch.testing.assert_close(own_gradient, gradient[rows], rtol=1e-12, atol=1e-15)
        torch.testing.assert_close(weights.total, gradient[rows], rtol=1e-12, atol=1e-15)
    assert values.item() == pytest.approx(expected, rel=1e-12)
    own_groups = sum(objective(log_probs[rows], batch.select(rows)).item() for rows in parts)
    assert abs(own_groups - expected) > 1e-3  # parts of groups are other groups


@pytest.mark.parametrize(
    "groups", [torch.tensor([2**53, 2**53 + 1, -1, 2**63 - 1, 2**63 - 2]), torch.tensor([0.0, 1.0, -2.0, 0.25, 0.5])]
)
def test_values_of_a_step_keep_any_numbers_of_groups_apart(groups):
    """Integers above 2**53, such as hashes, are no numbers of float64, in which the values are gathered."""
    values = CompletionValues(*torch.zeros(4, 5).double(), groups=groups)
    found = CompletionValues.of([values.table, values.table]).groups
    assert len(found.unique()) == 5
    assert torch.equal(found[:5], found[5:])


def test_factors_of_the_weights(step):
    """The advantage of a completion is the derivative of its group's value over its share of the group's weight."""
    log_probs, batch = step
    weights = recipes.tpo().gradient_weights(log_probs, batch)
    assert weights.completion.squeeze(-1).tolist() == pytest.approx([0.2, 0.2, 0.0, 0.2, 0.2, 0.2])
    group = [0, 1, 4]
    ratios = torch.where(batch.response_mask, log_probs - batch.old_log_probs, 0).sum(dim=-1)[group]
    old = batch.old_log_probs.sum(dim=-1)[group]
    expected = 3 * (torch.softmax(old + batch.advantages[group], 0) - torch.softmax(old + ratios, 0))
    torch.testing.assert_close(weights.advantages.squeeze(-1)[group], expected)
    assert (weights.magnitude == 1).all()
    assert (weights.advantages[2] == 0).all()


def test_groups_keep_their_numbers_in_half_precision():
    batch = PolicyBatch(torch.zeros(3, 2), torch.ones(3, 2), torch.ones(3), groups=torch.tensor([1000, 1001, 1002]))
    assert batch.to(torch.bfloat16).groups.tolist() == [1000, 1001, 1002]
    assert batch.select(torch.tensor([2, 0])).groups.tolist() == [1002, 1000]


def test_log_values_beyond_the_bound_of_exp_keep_their_gradient():
    """No group objective exponentiates a log value by itself, so nothing overflows."""
    log_probs, batch = of_one_token([19.0, -19.0, 0.0, 0.0])
    weights = PolicyObjective(Product(), group_objective=LabelLogistic(0.5)).gradient_weights(2 * log_probs, batch)
    assert weights.overflow.squeeze(-1).tolist() == [True, True, False, False]
    old = torch.zeros(4, 3).double()
    moved, longer = torch.full((4, 3), 10.0).double(), PolicyBatch(old, old + 1, SCORES, groups=torch.zeros(4))
    assert (
        not PolicyObjective(Product(), group_objective=LabelLogistic()).gradient_weights(moved, longer).overflow.any()
    )


def test_a_step_without_tokens():
    batch = PolicyBatch(torch.zeros(2, 3), torch.zeros(2, 3), torch.ones(2), groups=torch.zeros(2))
    for objective in (recipes.real(), recipes.tpo()):
        log_probs = torch.zeros(2, 3, requires_grad=True)
        objective(log_probs, batch).backward()
        assert (log_probs.grad == 0).all()


def test_only_objectives_with_a_part_for_them_train_every_completion():
    assert recipes.tpo().trains_every_completion
    assert not recipes.grpo().trains_every_completion


@pytest.mark.parametrize("kind", [LabelLogistic, TargetCrossEntropy])
@pytest.mark.parametrize("temperature", [0.0, -1.0, float("nan")])
def test_temperatures_are_positive(kind, temperature):
    with pytest.raises(ValueError, match="`temperature` is"):
        kind(temperature)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"groups": None}, "`groups` is None"),
        ({"advantages": torch.ones(4, 1)}, "`advantages` has shape `batch time`, but `group_objective`"),
        ({"correction": CorrectionWeights(log_token=torch.zeros(4, 1))}, "`correction` has weights"),
        ({"correction": CorrectionWeights(log_sequence=torch.zeros(4))}, "`correction` has weights"),
    ],
)
def test_what_has_no_definition_is_refused(changes, message):
    log_probs, batch = of_one_token([0.2, -0.1, 0.05, 0.0])
    with pytest.raises(ValueError, match=message):
        recipes.real()(log_probs, replace(batch, **changes))


def test_wrong_parts_and_shapes():
    class OneValue(GroupObjective):
        def __call__(self, groups):
            return groups.log_values.sum()

    with pytest.raises(TypeError, match="`group_objective` is"):
        PolicyObjective(GeometricMean(), group_objective=GeometricMean())
    with pytest.raises(ValueError, match=r"`OneValue\.__call__` returned shape"):
        PolicyObjective(GeometricMean(), group_objective=OneValue())(*of_one_token([0.2, -0.1, 0.05, 0.0]))
    with pytest.raises(ValueError, match="`groups` has shape"):
        PolicyBatch(torch.zeros(2, 3), torch.ones(2, 3), torch.ones(2), groups=torch.zeros(2, 3))
    with pytest.raises(ValueError, match="`group_objective` is None"):
        recipes.grpo().group_terms(CompletionValues(*torch.zeros(5, 2)))


def test_totals_of_the_step_weigh_the_groups(step):
    """Half of a step has half the weight of the step."""
    log_probs, batch = step
    twice = replace(batch, totals=StepTotals(completions=10, tokens=30))
    assert recipes.tpo()(log_probs, twice).item() == pytest.approx(recipes.tpo()(log_probs, batch).item() / 2)
