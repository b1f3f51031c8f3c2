"""Gradients on frozen rollouts: that they are those of the objective, and that their comparison has no bias."""

import csv
from dataclasses import replace
from types import SimpleNamespace

import pytest
import torch

from aggregate_po.recipes import gmpo, grpo
from experiments.study import fidelity
from experiments.study.fidelity import Learner, MeanGradient, compared
from experiments.study.report import fidelities
from experiments.study.tasks import TASKS, addition
from experiments.tables import read_rows

pytestmark = pytest.mark.slow


@pytest.fixture
def task():
    return replace(addition(), model=replace(addition().model, steps=2))


def test_squared_norm_and_cosine_do_not_depend_on_the_noise():
    generator = torch.Generator().manual_seed(0)
    first, second = torch.tensor([3.0, 4.0, 0.0]), torch.tensor([0.0, 5.0, 0.0])
    norms, cosines, noises = [], [], []
    for _ in range(2000):
        stale, fresh = MeanGradient(), MeanGradient()
        for _ in range(6):
            stale.add(first + torch.randn(3, generator=generator))
            fresh.add(second + torch.randn(3, generator=generator))
        norms.append(stale.squared_norm)
        found = compared(stale, fresh)
        cosines.append(found["cosine"])
        noises.append(found["noise_to_signal"])
    assert sum(norms) / len(norms) == pytest.approx(25, abs=0.3)  # 25.5 with the bias
    assert sum(cosines) / len(cosines) == pytest.approx(0.8, abs=0.01)
    assert sum(noises) / len(noises) == pytest.approx(3**0.5 / 5, abs=0.01)


def test_nothing_is_compared_below_the_noise():
    noise = MeanGradient()
    noise.add(torch.tensor([1.0, 0.0]))
    noise.add(torch.tensor([-1.0, 0.0]))
    assert compared(noise, noise)["cosine"] is None


def test_one_rollout_has_no_variance():
    single = MeanGradient()
    single.add(torch.tensor([1.0, 0.0]))
    with pytest.raises(ValueError, match="of 1 rollout"):
        compared(single, single)


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        (["--checkpoints", "0", "-5"], "'-5' is not a whole number"),
        (["--paths", "0"], "'0' is not a whole number from 1"),
        (["--objectives", "nosuch"], "'nosuch' cannot be made"),
        (["--objectives", "tpo"], "'tpo', which reads a reference or rewards of groups"),
    ],
)
def test_arguments_that_mean_nothing_are_refused(arguments, words, tmp_path, capsys):
    with pytest.raises(SystemExit):
        fidelity.main([*arguments, "--output", str(tmp_path)])
    assert words in capsys.readouterr().err


def test_checkpoints_are_measured_where_their_key_says(monkeypatch, tmp_path, task):
    monkeypatch.setitem(TASKS, "addition", lambda: task)
    monkeypatch.setattr(fidelity, "Learner", lambda task: None)
    asked = []
    monkeypatch.setattr(fidelity, "paths", lambda options, learner: asked.extend(options.checkpoints) or [])
    fidelity.main(["--checkpoints", "20", "0", "10", "--output", str(tmp_path)])
    assert asked == [0, 10, 20]


class Wanderer:
    """A learner whose samples say where it was."""

    place = "checkpoint"

    def state(self):
        return self.place

    def restore(self, state):
        self.place = state

    def sample(self, number):
        return number, self.place


def test_every_path_begins_with_rollouts_of_its_checkpoint():
    learner = Wanderer()
    options = SimpleNamespace(checkpoints=[0], paths=2)
    for about, own, frozen in fidelity.paths(options, learner):
        assert learner.place == "checkpoint"
        assert own == (2000 + int(about["path"]), "checkpoint")
        assert {place for _, place in frozen} == {"checkpoint"}
        learner.place = "elsewhere"


def test_gradients_are_those_of_the_objective(task):
    learner = Learner(task)
    samples = learner.sample(0)
    samples = replace(samples, batch=replace(samples.batch, advantages=torch.randn(len(samples.batch.advantages))))
    learner.update(samples, torch.arange(64), grpo())
    found, log_ratio = learner.gradients(samples, {"grpo": grpo(), "gmpo": gmpo()})
    assert float(log_ratio.abs().max()) > 0
    for name, objective in (("grpo", grpo()), ("gmpo", gmpo())):
        value = objective(learner.policy.log_probs(samples.sequences), samples.batch)
        expected = torch.cat([part.flatten() for part in torch.autograd.grad(value, learner.parameters)])
        torch.testing.assert_close(found[name], expected, rtol=1e-4, atol=1e-6)


def test_restored_learner_goes_the_same_way_again(task):
    learner = Learner(task)
    samples = learner.sample(0)
    samples = replace(samples, batch=replace(samples.batch, advantages=torch.randn(len(samples.batch.advantages))))
    start, ends = learner.state(), []
    for _ in range(2):
        learner.restore(start)
        learner.update(samples, torch.arange(8), gmpo())
        learner.update(samples, torch.arange(8, 16), gmpo())
        ends.append(torch.cat([parameter.detach().flatten() for parameter in learner.parameters]))
    assert torch.equal(*ends)


def test_shortened_measurement_goes_on_where_it_was_from_the_same_model(task, tmp_path, monkeypatch):
    monkeypatch.setitem(TASKS, "addition", lambda: task)
    for name, value in (
        ("FROZEN", 2),
        ("FRESH", 2),
        ("UPDATES", (1, 2)),
        ("PROMPTS_PER_ROLLOUT", 2),
        ("DRIFTS", {"gmpo": gmpo}),
    ):
        monkeypatch.setattr(fidelity, name, value)
    options = ["--checkpoints", "1", "--paths", "1", "--output", str(tmp_path)]
    fidelity.main(["--objectives", "gmpo", *options])
    # Rules that follow the progress of the training or its rewards, too.
    further = ["tests.experiments.study.test_run.OwnMean", "holder_po", "apmpo"]
    fidelity.main(["--objectives", ",".join(["gmpo", *further]), *options])
    with (tmp_path / "fidelity.csv").open() as file:
        rows = list(csv.DictReader(file))
    expected = [("1", "gmpo"), ("2", "gmpo"), *(("1", name) for name in further), *(("2", name) for name in further)]
    assert [(row["updates"], row["objective"]) for row in rows] == expected
    other = replace(task, model=replace(task.model, steps=3))  # as another processor makes it
    monkeypatch.setitem(TASKS, "addition", lambda: other)
    fidelity.main(["--objectives", "gmpo", *options])
    rows = read_rows(tmp_path / "fidelity.csv")
    assert [row["start"] for row in rows] == [task.start] * 8 + [other.start] * 2
    assert other.start != task.start
    assert len(fidelities(rows, "gmpo", 2, "log_ratio_std")) == 2
