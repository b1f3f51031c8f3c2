"""Dynamic pruning: the expected gradient by enumeration, what is prunable, and what pruning saves."""

import itertools
from collections import Counter
from types import SimpleNamespace

import pytest
import torch

from aggregate_po import GroupedRewards, PolicyBatch, StepTotals
from aggregate_po.advantages import GroupNormalized
from aggregate_po.recipes import dapo, gmpo, grpo, pmpo
from lightning_modules.batch import RolloutBatch
from lightning_modules.data.schemes import DynamicPruning
from lightning_modules.data.schemes.pruning import fraction_factors, random_factors
from lightning_modules.data.updates import _counted, _scales
from tests.lightning_modules.data.schemes.candidates import ALONE, Endless, context, known
from tests.lightning_modules.data.test_failed_verdicts import group
from tests.lightning_modules.training import BatchRecorder, NotedAdvantages, RecordingEngine, fitted, small_data

PROMPTS, GROUP, TIME = 4, 4, 5
REWARDS = torch.tensor([[1.0, 0, 0, 0], [0, 1, 1, 1], [0.5, 0, 1, 0.4], [1, 0, 1, 0]], dtype=torch.double).flatten()
SCORES = {0: 0.1, 1: 0.2, 2: 0.1, 3: 0.9}  # prompt 3 is above the mean
RATE = 0.3


class TinyProblem:
    """Log-probabilities as parameters; gradients of weighted completions of chosen prompts."""

    def __init__(self, objective):
        generator = torch.Generator().manual_seed(0)
        self.objective = objective
        self.log_probs = (-torch.rand(PROMPTS * GROUP, TIME, generator=generator, dtype=torch.double)).requires_grad_()
        self.old = self.log_probs.detach() + 0.1 * torch.randn(PROMPTS * GROUP, TIME, generator=generator).double()
        lengths = torch.randint(1, TIME + 1, (PROMPTS * GROUP, 1), generator=generator)
        self.mask = torch.arange(TIME) < lengths
        self.advantages = GroupNormalized()(GroupedRewards(REWARDS, GROUP))

    def gradient(self, factors, weights=None):
        """Gradient of the rows whose factor is not 0, with totals as an update counts them."""
        weights = torch.ones(PROMPTS) if weights is None else weights
        sampled = (weights > 0).repeat_interleave(GROUP)
        by_row = weights.repeat_interleave(GROUP)
        counted = _counted(self.mask[sampled].sum(dim=-1), sampled[sampled], by_row[sampled])
        scales = _scales([counted])
        totals = StepTotals(*(counted.sums[name] * scales[name] for name in ("completions", "tokens")))
        advantages = self.advantages * by_row * factors
        rows = (advantages != 0).nonzero().squeeze(-1)
        batch = PolicyBatch(self.old[rows], self.mask[rows], advantages[rows], totals)
        (gradient,) = torch.autograd.grad(self.objective(self.log_probs[rows], batch), self.log_probs)
        return gradient

    @property
    def prunable(self):
        magnitudes = self.advantages.abs().view(PROMPTS, GROUP)
        return magnitudes < magnitudes.mean(dim=-1, keepdim=True) * (1 - 1e-9)


def expected_over_completions(problem, weights=None):
    """Sum of probability times gradient over all patterns of the prunable completions of the sampled prompts."""
    sampled = torch.ones(PROMPTS, 1, dtype=torch.bool) if weights is None else weights.view(-1, 1) > 0
    places = (problem.prunable & sampled).nonzero().tolist()
    total = torch.zeros_like(problem.log_probs)
    for pattern in itertools.product([0.0, 1.0], repeat=len(places)):
        chances = torch.ones(PROMPTS, GROUP, dtype=torch.double)
        for (prompt, number), chance in zip(places, pattern, strict=True):
            chances[prompt, number] = chance
        probability = RATE ** pattern.count(0.0) * (1 - RATE) ** pattern.count(1.0)
        total += probability * problem.gradient(random_factors(problem.prunable, chances, RATE).flatten(), weights)
    return total


@pytest.mark.parametrize("recipe", [grpo, gmpo, dapo], ids=lambda recipe: recipe.__name__)
def test_pruning_completions_at_random_has_the_gradient_of_all_in_expectation(recipe):
    problem = TinyProblem(recipe())
    full = problem.gradient(torch.ones(PROMPTS * GROUP))
    assert int(problem.prunable.sum()) == 8
    assert torch.allclose(expected_over_completions(problem), full, rtol=0, atol=1e-15)
    magnitudes = problem.advantages.abs().view(PROMPTS, GROUP)
    biased = problem.gradient(fraction_factors(problem.prunable, magnitudes, 0.5).flatten())
    assert float((biased - full).norm() / full.norm()) > 0.1


def subsets(scheme):
    """Weights of the prompts, 0 for pruned ones, for many seeds, with the number of seeds of each."""
    known(scheme._deviations, SCORES)
    found = Counter()
    for seed in range(3000):
        weights = [0.0] * PROMPTS
        for one in scheme.candidates(PROMPTS, Endless(PROMPTS), context(PROMPTS, seed=seed)):
            weights[one.index] = one.weight
        found[tuple(weights)] += 1
    return found


@pytest.mark.parametrize("recipe", [grpo, gmpo, pmpo], ids=lambda recipe: recipe.__name__)
def test_pruning_prompts_and_completions_at_random_has_the_gradient_of_all_in_expectation(recipe):
    problem = TinyProblem(recipe())
    found = subsets(DynamicPruning(prompt_rate=0.5))
    assert found.keys() == {(0, 1.5, 1.5, 1), (1.5, 0, 1.5, 1), (1.5, 1.5, 0, 1)}
    assert all(abs(count / 3000 - 1 / 3) < 0.03 for count in found.values())
    full = problem.gradient(torch.ones(PROMPTS * GROUP))
    parts = [expected_over_completions(problem, torch.tensor(weights, dtype=torch.double)) for weights in found]
    assert torch.allclose(sum(parts) / 3, full, rtol=0, atol=1e-15)


def test_pruning_a_fraction_of_the_prompts_is_biased():
    (weights,) = subsets(DynamicPruning(prompt_rate=0.5, method="fraction"))
    assert weights == (0, 1, 1, 1)  # always the same, of the two with the lowest score the first
    problem = TinyProblem(grpo())
    full = problem.gradient(torch.ones(PROMPTS * GROUP))
    biased = problem.gradient(torch.ones(PROMPTS * GROUP), torch.tensor(weights, dtype=torch.double))
    assert float((biased - full).norm() / full.norm()) > 0.1


def test_the_rest_divides_among_ranks_and_updates():
    scheme = DynamicPruning(prompt_rate=0.9)
    known(scheme._deviations, {**dict.fromkeys(range(15), 0.0), 15: 1.0})
    for multiple, kept in ((1, 3), (4, 4), (8, 8), (16, 16)):
        chosen = scheme.candidates(16, Endless(16), context(16, multiple))
        assert len(chosen) == kept
        assert sum(one.weight for one in chosen) == pytest.approx(16)
    # A further round of another scheme asks for what is missing, which need not divide among the updates.
    assert len(scheme.candidates(2, Endless(15), context(16, multiple=4))) == 2
    assert len(scheme.candidates(6, Endless(15), context(16, multiple=4))) == 2


def test_prompts_that_are_unknown_or_alike_are_all_kept():
    scheme = DynamicPruning(prompt_rate=0.9)
    assert len(scheme.candidates(8, Endless(8), context())) == 8
    known(scheme._deviations, dict.fromkeys(range(8), 0.1 + 0.2))
    known(scheme._deviations, dict.fromkeys(range(4), 0.3))
    assert [one.weight for one in scheme.candidates(8, Endless(8), context())] == [1.0] * 8


def test_advantages_per_token_are_pruned_by_completion():
    scheme = DynamicPruning(completion_rate=0.5)
    per_token = torch.tensor([[3.0, 0, 0], [0.5, -1, 0], [0.5, -1, 0], [0, 0, 0]], dtype=torch.double)
    groups = SimpleNamespace(group_size=4, scored=torch.ones(4, dtype=torch.bool))
    results = {tuple(scheme.weighted(per_token, groups, seed).flatten().tolist()) for seed in range(40)}
    rows = {(first, second) for first in (0.0, 2.0) for second in (0.0, 2.0)}
    expected = {tuple((per_token * torch.tensor([1, *row, 1]).unsqueeze(-1)).flatten().tolist()) for row in rows}
    assert results == expected
    assert torch.equal(scheme.weighted(per_token, groups, 7), scheme.weighted(per_token, groups, 7))


def deviation(*rewards):
    """Running deviation of a prompt after one group; None is a verdict that failed."""
    scheme = DynamicPruning()
    scheme.groups(1, lambda count: group(*rewards), ALONE)
    return scheme._deviations.average(0)


def test_the_deviation_of_a_prompt_is_that_of_its_verdicts():
    assert deviation(1.0, None, 0.0, None) == pytest.approx(0.5)
    assert deviation(1.0, 0.0, 0.25, None) == pytest.approx(deviation(1.0, 0.0, 0.25))
    assert deviation(1.0, None, None) is None  # one verdict has nothing to be compared with


def test_completions_without_a_verdict_make_no_other_prunable():
    scheme = DynamicPruning(completion_rate=0.99)
    advantages = torch.tensor([1.0, 0.0, -0.4, 0.0], dtype=torch.double)
    alone = scheme.weighted(advantages[[0, 2]], group(1.0, 0.0), seed=3)
    assert alone.tolist() == [1.0, 0.0]  # the mean magnitude is 0.7
    assert scheme.weighted(advantages, group(1.0, None, 0.0, None), seed=3).tolist()[::2] == alone.tolist()
    assert scheme.weighted(0 * advantages, group(None, None, None, None), seed=3).tolist() == [0.0] * 4


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"prompt_rate": 1.0}, r"`prompt_rate` is 1\.0; pass a fraction, from 0 to below 1"),
        ({"completion_rate": -0.1}, r"`completion_rate` is -0\.1; pass a fraction"),
        ({"prompt_threshold": -1.0}, r"`prompt_threshold` is -1\.0; pass 0 or more"),
        ({"method": "best"}, "`method` is 'best'; pass one of random, fraction"),
    ],
)
def test_arguments_out_of_range_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        DynamicPruning(**arguments)


# In a training

DATASET = [{"prompt": f"{number} + {number}"} for number in range(8)]


def reward(completion, example):
    """All alike for odd prompts; one right in four, whatever it says, for the others."""
    reward.calls += 1
    return 0.0 if int(example["prompt"].split()[0]) % 2 else float(reward.calls % 4 == 1)


def test_pruned_prompts_are_not_sampled_and_pruned_completions_not_trained_on(tmp_path, model_folder):
    reward.calls = 0
    engine, recorder, noted = RecordingEngine(), BatchRecorder(), NotedAdvantages()
    data = small_data(
        dataset=DATASET,
        reward=reward,
        rollouts=engine,
        prompts_per_rollout=8,
        advantages=noted,
        schemes=[DynamicPruning(prompt_rate=0.5, completion_rate=0.5)],
    )
    fitted(tmp_path, model_folder, grpo(), data=data, callbacks=[recorder], max_steps=2)
    assert [len(prompts) for prompts in engine.prompts] == [8, 6]
    first, second = recorder.batches
    assert [metrics["prompts/skipped"] for metrics in recorder.metrics] == [0, 2]
    for batch, sampled, estimated in zip((first, second), (8, 6), noted.steps, strict=True):
        # The totals are those of all prompts.
        assert float(batch.policy.totals.completions) == 32
        assert len(estimated.rewards) == 4 * sampled
        values = [round(value, 6) for value in batch.policy.advantages.tolist()]
        assert {0.75} <= set(values) <= {0.75, -0.5}  # -0.25, pruned with probability 1/2
        assert values.count(0.75) == 4
        assert 0 < values.count(-0.5) < 12
    trained = [metrics["completions/trained_ratio"] for metrics in recorder.metrics]
    assert trained == [len(first.completion_ids) / 32, len(second.completion_ids) / 24]
    assert isinstance(second, RolloutBatch)
