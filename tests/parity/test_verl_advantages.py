"""verl: its advantage estimators for groups of completions."""

import pytest
import torch

from tests.peers import require_peers

require_peers("verl")

from verl.trainer.ppo.core_algos import ADV_ESTIMATOR_REGISTRY

from aggregate_po.advantages import (
    BestOfGroup,
    ComponentNormalized,
    GroupCentered,
    GroupedRewards,
    GroupNormalized,
    LeaveOneOut,
    LengthWeightedCentered,
    WhitenedCentered,
    WhitenedReturns,
)
from tests.parity.verl_advantages import response_mask, verl_advantages, verl_gdpo

# They need a critic, a second rollout or the probabilities of whole vocabularies.
WITHOUT_COUNTERPART = {"gae", "remax", "optimal_token_baseline", "tir_optimal_token_baseline"}

PAIRS = {
    "grpo": ("grpo", GroupNormalized(), {}),
    "grpo, without deviation": ("grpo", GroupCentered(), {"norm_adv_by_std_in_grpo": False}),
    "grpo_passk": ("grpo_passk", BestOfGroup(), {}),
    "rloo": ("rloo", LeaveOneOut(), {}),
    "rloo_vectorized": ("rloo_vectorized", LeaveOneOut(), {}),
    "opo": ("opo", LengthWeightedCentered(), {}),
}

WHITENED = {
    "reinforce_plus_plus": ("reinforce_plus_plus", WhitenedReturns(), {"gamma": 1.0}),
    "reinforce_plus_plus, discounted": ("reinforce_plus_plus", WhitenedReturns(0.9), {"gamma": 0.9}),
    "reinforce_plus_plus_baseline": ("reinforce_plus_plus_baseline", WhitenedCentered(), {}),
}


def random_step(seed, prompts, group_size, binary=False):
    """Rewards of either kind, and lengths from 1 to 9."""
    generator = torch.Generator().manual_seed(seed)
    rewards = torch.randn(prompts * group_size, generator=generator, dtype=torch.float64)
    lengths = torch.randint(1, 10, rewards.shape, generator=generator)
    return GroupedRewards((rewards > 0).double() if binary else rewards, group_size, lengths=lengths)


def random_components(lengths, weights=None):
    """Two rewards of completions in groups of four."""
    generator = torch.Generator().manual_seed(3)
    components = torch.randn(len(lengths), 2, generator=generator, dtype=torch.float64)
    total = components @ torch.tensor(weights or (1.0, 1.0)).double()
    return GroupedRewards(total, 4, lengths.long(), components, weights)


STEPS = {
    "a group of two": random_step(0, prompts=1, group_size=2),
    "groups of four": random_step(1, prompts=6, group_size=4),
    "groups of eight, right or wrong": random_step(2, prompts=5, group_size=8, binary=True),
}


@pytest.fixture(params=STEPS, ids=str)
def step(request):
    return STEPS[request.param]


def ours(estimator, step):
    """Advantages on each token, as verl has them."""
    advantages = estimator(step)
    return (advantages if advantages.ndim == 2 else advantages.unsqueeze(-1)) * response_mask(step)


def assert_close(actual, expected, rtol=1e-10):
    torch.testing.assert_close(actual, expected.to(actual.dtype), rtol=rtol, atol=rtol)


def test_every_estimator_is_here_or_has_no_counterpart():
    tested = {name for name, _, _ in [*PAIRS.values(), *WHITENED.values()]} | {"grpo_vectorized", "gdpo", "gpg"}
    names = {str(getattr(name, "value", name)) for name in ADV_ESTIMATOR_REGISTRY}
    of_adapter = {name for name in names if name.startswith("aggregate_po.") or name == "mine"}
    assert tested | WITHOUT_COUNTERPART == names - of_adapter


@pytest.mark.parametrize(("name", "estimator", "config"), PAIRS.values(), ids=PAIRS.keys())
def test_advantages(name, estimator, config, step):
    """verl takes the option of GRPO from its trainer as an argument, and all others from the configuration."""
    arguments = config if name == "grpo" else {}
    assert_close(ours(estimator, step), verl_advantages(name, step, config, **arguments))


@pytest.mark.parametrize(("name", "estimator", "config"), WHITENED.values(), ids=WHITENED.keys())
def test_whitened_advantages(name, estimator, config, step):
    """verl divides counts of tokens as integers, which gives single precision."""
    assert_close(ours(estimator, step), verl_advantages(name, step, config), rtol=1e-7)


@pytest.mark.parametrize(
    ("estimator", "by_deviation"), [(GroupNormalized(), True), (GroupCentered(), False)], ids=["grpo", "centered"]
)
def test_grpo_vectorized_computes_in_single_precision(estimator, by_deviation, step):
    theirs = verl_advantages("grpo_vectorized", step, norm_adv_by_std_in_grpo=by_deviation)
    assert_close(ours(estimator, step), theirs, rtol=1e-5)


@pytest.mark.parametrize("weights", [None, (1.0, 0.25)])
def test_gdpo_of_completions_of_one_token(weights):
    """verl has the single rewards in single precision."""
    step = random_components(torch.ones(24), weights)
    assert_close(ours(ComponentNormalized(), step), verl_gdpo(step, weights), rtol=1e-5)


# --- where verl departs ----------------------------------------------------------------------------------------------


def test_gdpo_whitens_over_tokens():
    """A completion counts once for each of its tokens; the paper, TRL and this library count completions."""
    step = random_components(1 + torch.arange(24) % 9)
    theirs, mask = verl_gdpo(step), response_mask(step).bool()
    assert abs(theirs[mask].mean()) < 1e-5
    assert abs(theirs[:, 0].mean()) > 0.01
    assert abs(ComponentNormalized()(step).mean()) < 1e-12


def test_gpg_scales_by_the_share_of_rewards_that_are_not_zero():
    """The estimator is `GroupCentered` times the completions over those whose reward is not 0, wherever they are."""
    step = STEPS["groups of eight, right or wrong"]
    factor = len(step.rewards) / step.rewards.count_nonzero()
    assert_close(ours(GroupCentered(), step) * factor, verl_advantages("gpg", step))


@pytest.mark.parametrize(
    ("name", "estimator"), [("grpo", GroupNormalized()), ("rloo", LeaveOneOut()), ("opo", LengthWeightedCentered())]
)
def test_a_group_of_one_keeps_its_reward(name, estimator):
    """In this library a group of one has advantage 0: there is no other reward to compare with."""
    alone = random_step(5, prompts=3, group_size=1)
    assert_close(verl_advantages(name, alone)[:, 0], alone.rewards, rtol=1e-5)
    assert (estimator(alone) == 0).all()


def test_pass_at_k_refuses_a_group_of_one():
    alone = random_step(5, prompts=3, group_size=1)
    with pytest.raises(ValueError, match="at least 2 samples per group"):
        verl_advantages("grpo_passk", alone)
    assert (BestOfGroup()(alone) == 0).all()


def test_equal_rewards_leave_rounding_behind():
    """The mean of equal numbers need not be that number, and its error is divided by almost nothing."""
    equal = GroupedRewards(torch.full((8,), 0.9), 8, lengths=torch.full((8,), 3))
    assert verl_advantages("grpo", equal).abs().max() > 0.05
    assert (GroupNormalized()(equal) == 0).all()
