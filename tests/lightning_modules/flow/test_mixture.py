"""The two-dimensional task: its exact likelihood, its pre-trained model, and a proxy that differs from gold."""

import math
from pathlib import Path

import pytest
import torch
from safetensors.torch import load_file
from torch import distributions

from lightning_modules.flow import ODE, sample_trajectories, uniform_times
from lightning_modules.flow.mixture import (
    GoldLikelihood,
    MixtureConditions,
    MixtureWarmStart,
    NearMode,
    log_likelihood,
    mode_centers,
    random_points,
)

UPPER, LOWER = MixtureConditions(2)


@pytest.fixture(scope="module")
def cache(tmp_path_factory):
    with pytest.MonkeyPatch.context() as patched:
        folder = tmp_path_factory.mktemp("cache")
        patched.setenv("AGGREGATE_PO_CACHE", str(folder))
        yield folder


@pytest.fixture(scope="module")
def model(cache):
    """The model of the default arguments, pre-trained in two seconds."""
    source = MixtureWarmStart()
    source.prepare()
    return source.load()


def test_examples_are_the_halves_in_turn():
    examples = MixtureConditions(5)
    assert [example["condition"] for example in examples] == [0, 1, 0, 1, 0]
    assert UPPER == {"prompt": "upper half", "condition": 0}
    with pytest.raises(ValueError, match="`size` is 0; pass a positive number"):
        MixtureConditions(0)


def test_modes_are_on_the_circle_and_in_their_half():
    centers = mode_centers()
    torch.testing.assert_close(centers.norm(dim=-1), torch.full((2, 4), 1.5))
    assert (centers[0, :, 1] > 0).all()
    torch.testing.assert_close(centers[1], -centers[0])  # the opposite points
    torch.testing.assert_close(centers[0, 0], torch.tensor([1.5 * math.cos(math.pi / 8), 1.5 * math.sin(math.pi / 8)]))


@pytest.mark.parametrize("condition", [0, 1])
def test_likelihood_is_that_of_the_mixture_of_torch(condition):
    points = torch.randn(50, 2, generator=torch.Generator().manual_seed(0))
    mixture = distributions.MixtureSameFamily(
        distributions.Categorical(torch.ones(4)),
        distributions.Independent(distributions.Normal(mode_centers()[condition], 0.3), 1),
    )
    found = log_likelihood(points, torch.full((50,), condition))
    torch.testing.assert_close(found, mixture.log_prob(points))


def test_random_points_have_the_likelihood():
    """The density integrates to 1, and the mean log-likelihood of random points is minus the entropy."""
    axis = torch.linspace(-4, 4, 401, dtype=torch.float64)
    grid, area = torch.cartesian_prod(axis, axis), (axis[1] - axis[0]) ** 2
    conditions = torch.arange(20_000) % 2
    points = random_points(conditions, torch.Generator().manual_seed(0))
    for condition in (0, 1):
        densities = log_likelihood(grid, torch.full((len(grid),), condition))
        assert (densities.exp().sum() * area).item() == pytest.approx(1, abs=1e-6)
        entropy = -(densities.exp() * densities).sum() * area
        chosen = conditions == condition
        found = log_likelihood(points[chosen], conditions[chosen])
        assert -found.mean().item() == pytest.approx(entropy.item(), abs=4 * found.std().item() / 100)


def test_pre_trained_samples_are_nearly_as_likely_as_the_mixture(model):
    """Samples of the ODE lose 0.09 nats of 1.72; one in a hundred is in the wrong half."""
    conditions = torch.arange(4000) % 2
    ideal = log_likelihood(random_points(conditions, torch.Generator().manual_seed(0)), conditions).mean()
    sampled = sample_trajectories(model, {"condition": conditions}, uniform_times(40), ODE(), range(4000))
    found = log_likelihood(sampled.final_latents, conditions).mean()
    assert ideal.item() == pytest.approx(-1.72, abs=0.05)
    assert (found - ideal).item() == pytest.approx(-0.09, abs=0.08)
    in_its_half = (sampled.final_latents[:, 1] > 0) == (conditions == 0)
    assert in_its_half.float().mean() > 0.97
    initial = log_likelihood(sampled.latents[:, 0], conditions).mean()
    assert initial < found - 5


def test_the_best_point_of_the_proxy_is_not_that_of_gold():
    """Averaged over both conditions; on the proxy's, the lower half has lost nearly all likelihood."""
    axis = torch.linspace(-2, 2, 41)
    points = torch.cartesian_prod(axis, axis)
    proxy, gold = NearMode(), GoldLikelihood()
    proxies = torch.tensor([proxy(point, UPPER) + proxy(point, LOWER) for point in points])
    golds = torch.tensor([gold(point, UPPER) + gold(point, LOWER) for point in points])
    best_proxy, best_gold = points[proxies.argmax()], points[golds.argmax()]
    assert (best_proxy - mode_centers()[0, 0]).norm() < 0.08
    assert abs(best_gold[1]) < 0.01
    assert (best_proxy - best_gold).norm() > 0.5
    assert golds.max() - golds[proxies.argmax()] > 3
    assert gold(mode_centers()[0, 0], UPPER) > -1 > -8 > gold(mode_centers()[0, 0], LOWER)


def test_rewards_worked_by_hand():
    point = mode_centers()[0, 0] + torch.tensor([0.3, -0.4])
    assert NearMode()(point, LOWER) == pytest.approx(-0.5)
    assert NearMode(4)(-point, UPPER) == pytest.approx(-0.5)
    # A quarter of one mode at its center; the others are four standard deviations away.
    peak = GoldLikelihood()(mode_centers()[1, 1], LOWER)
    assert peak == pytest.approx(math.log(1 / 4 / (2 * math.pi * 0.09)), abs=2e-3)


def test_samples_are_what_rewards_receive(model):
    conditions = model.encode([UPPER, LOWER])
    assert conditions["condition"].tolist() == [0, 1]
    sampled = sample_trajectories(model, conditions, uniform_times(10), ODE(), [0, 1])
    first, second = model.decode(sampled.final_latents)
    assert first.shape == second.shape == (2,)
    assert isinstance(NearMode()(first, UPPER), float)
    assert GoldLikelihood()(first, UPPER) > GoldLikelihood()(first, LOWER)


def test_the_model_is_made_once_and_loads_the_same_weights(cache, model, monkeypatch):
    monkeypatch.setattr(MixtureWarmStart, "_make", lambda self, folder: pytest.fail("made again"))
    again = MixtureWarmStart().load()
    assert again is not model
    for name, weights in model.state_dict().items():
        assert torch.equal(again.state_dict()[name], weights)
    assert len(list(cache.glob("mixture-*"))) == 1


def test_pre_training_is_reproducible_and_leaves_the_random_state_alone(tmp_path, monkeypatch):
    made = []
    for number in (5, 6):
        monkeypatch.setenv("AGGREGATE_PO_CACHE", str(tmp_path / str(number)))
        torch.manual_seed(number)
        state = torch.get_rng_state()
        with torch.inference_mode():
            MixtureWarmStart(steps=3, batch_size=8).prepare()
        made.append(MixtureWarmStart(steps=3, batch_size=8).load().state_dict())
        assert torch.equal(torch.get_rng_state(), state)
    for weights in made[0]:
        assert torch.equal(made[0][weights], made[1][weights])


def test_other_arguments_make_other_weights(tmp_path, monkeypatch):
    monkeypatch.setenv("AGGREGATE_PO_CACHE", str(tmp_path))
    for arguments in ({}, {"seed": 1}, {"learning_rate": 1e-3}):
        MixtureWarmStart(steps=3, batch_size=8, **arguments).prepare()
    weights = {path.read_bytes() for path in tmp_path.rglob("*.safetensors")}
    assert len(weights) == 3


def test_a_trained_model_is_saved(cache, tmp_path):
    source = MixtureWarmStart()
    trained = source.load()
    with torch.no_grad():
        trained.layers[0].weight += 1
    source.save(trained, tmp_path)
    (file,) = Path(tmp_path).iterdir()
    assert torch.equal(load_file(file)["layers.0.weight"], trained.layers[0].weight)


def test_arguments_out_of_range_are_refused(model):
    with pytest.raises(ValueError, match="`steps` is 0; pass a positive number"):
        MixtureWarmStart(steps=0)
    with pytest.raises(ValueError, match="`mode` is 8; pass a number from 0 to 7"):
        NearMode(8)
    for example in ({"prompt": "upper half"}, {"condition": 2}):
        with pytest.raises(ValueError, match=r"`condition` of the example is .*; pass 0 or 1, as Mixture"):
            model.encode([example])
        with pytest.raises(ValueError, match="`condition` of the example is"):
            GoldLikelihood()(torch.zeros(2), example)
