"""Every configuration that `fit` accepts is reproduced by the `config.yaml` that it writes."""

import contextlib
import io
from pathlib import Path

import pytest
import yaml

from lightning_modules.cli import run
from tests.end_to_end.test_configs import CONFIGS, ResolvingCLI, objects

PARTS = """
import functools
from collections.abc import Callable
from dataclasses import dataclass
from enum import Enum

from aggregate_po import GeometricMean, PessimisticClip, PolicyObjective
from lightning_modules.prompts import PromptDataset


def plain(completion, example):
    return 1.0


def make_limited(limit):
    def limited(completion, example):
        return float(len(completion) < limit)

    return limited


def logged(function):
    @functools.wraps(function)
    def wrapper(completion, example):
        return function(completion, example)

    return wrapper


@logged
def decorated(completion, example):
    return 1.0


class Level(Enum):
    LOW = 1
    HIGH = 2


class Grader:
    def __init__(self, tolerance: float = 0.1, level: Level = Level.LOW, table: dict[str, float] | None = None):
        self.tolerance, self.level, self.table = tolerance, level, table

    def __call__(self, completion, example):
        return self.tolerance

    def method(self, completion, example):
        return 1.0

    @staticmethod
    def static(completion, example):
        return 1.0

    @classmethod
    def of_the_class(cls, completion, example):
        return 1.0


@dataclass(frozen=True)
class Scaled:
    reward: Callable[[str, dict], float]
    scale: float = 1.0

    def __call__(self, completion, example):
        return self.scale * self.reward(completion, example)


halved = functools.partial(plain)
lambda_reward = lambda completion, example: 0.5
closure = make_limited(7)
grader = Grader(0.3)


def make_grader(tolerance: float = 0.2) -> Grader:
    return Grader(tolerance)


def my_objective(clip: float = 0.3) -> PolicyObjective:
    return PolicyObjective(GeometricMean(), PessimisticClip.log(clip, clip))


class Prompts(PromptDataset):
    def __init__(self, size: int = 3):
        self.size = size

    def __len__(self):
        return self.size

    def __getitem__(self, index):
        return {"prompt": "1 + 1", "answer": "2"}
"""

BOXED = "lightning_modules.rewards.boxed_answer"


def of(path, **arguments):
    return {"class_path": path, "init_args": arguments} if arguments else {"class_path": path}


def reward(*values, weights=None):
    said = {"reward": values[0] if len(values) == 1 else list(values)}
    return {"data": said if weights is None else {**said, "reward_weights": weights}}


def objective(**parts):
    return {"model": {"objective": of("aggregate_po.PolicyObjective", **parts)}}


CHAIN = of(
    "aggregate_po.Chain",
    transforms=[
        of("aggregate_po.CompletionRatio", aggregator=of("aggregate_po.Product")),
        of("aggregate_po.StraightThrough", transform=of("aggregate_po.TwoSidedClip", max_ratio=float("inf"))),
    ],
)
MATCHED = of("aggregate_po.PowerMean", exponent=of("aggregate_po.ESSMatching"))

# Options of the command line, or the text of a further file.
ACCEPTED = {
    "two functions by +=": ["--data.reward+=" + BOXED, "--data.reward+=parts.plain"],
    "a class and a function by +=": ["--data.reward+=parts.Grader", "--data.reward+=" + BOXED],
    "an argument by +=": ["--data.reward+=parts.Grader", "--data.reward.tolerance=0.5"],
    "a list in JSON": [f'--data.reward=["{BOXED}", "parts.plain"]', "--data.reward_weights=[1.0, 0.5]"],
    "a list in YAML": reward(BOXED, "parts.plain", weights=[1, 2]),
    "a list of one": {"data": {"reward": [BOXED]}},
    "the same twice": reward(BOXED, BOXED),
    "a class with arguments": reward(of("parts.Grader", tolerance=0.7, level="HIGH", table={"a": 1.0})),
    "classes and functions": reward(of("parts.Grader", tolerance=0.2), BOXED, of("parts.Grader", tolerance=0.3)),
    "a reward in a reward": reward(of("parts.Scaled", reward=of("parts.Grader", tolerance=0.2), scale=0.5)),
    "rewards in rewards": reward(of("parts.Scaled", reward=BOXED), of("parts.Scaled", reward="parts.plain"), BOXED),
    "partial": reward("parts.halved", BOXED),
    "lambda": reward("parts.lambda_reward"),
    "closure": reward("parts.closure", BOXED),
    "decorated": reward("parts.decorated"),
    "instance": reward("parts.grader", BOXED),
    "factory": reward(of("parts.make_grader", tolerance=0.6), BOXED),
    "static method": reward("parts.Grader.static", BOXED),
    "objective by a function": ["--model.objective=parts.my_objective", "--model.objective.clip=0.2"],
    "recipe": ["--model.objective=aggregate_po.recipes.pmpo", "--model.objective.log_clip=0.2"],
    "infinite clip": {"model": {"objective": of("aggregate_po.recipes.grpo", clip_high=float("inf"))}},
    "nested parts": objective(aggregator=MATCHED, token_transform=CHAIN),
    "prefix and suffix": objective(
        aggregator=of("aggregate_po.ArithmeticMean"),
        prefix=of("aggregate_po.PrefixKalmanFilter", process_variance=float("inf")),
        suffix_weight=of("aggregate_po.DiscountedFuture", half_life=16.0),
    ),
    "static method of a part": objective(
        aggregator=of("aggregate_po.PowerMean", exponent=0.5),
        token_transform=of("aggregate_po.PessimisticClip.log", log_clip_low=0.2),
    ),
    "penalties by +=": [
        "--model.objective.class_path=aggregate_po.recipes.grpo",
        "--model.objective.penalties+=K3Penalty",
        "--model.objective.penalties.coefficient=0.04",
        "--model.objective.penalties+=EntropyBonus",
        "--model.objective.penalties.coefficient=0.1",
    ],
    "penalties in penalties": objective(
        aggregator=of("aggregate_po.ArithmeticMean"),
        penalties=[
            of("aggregate_po.LagrangePenalty", cost=of("aggregate_po.RatioVariance"), bound=0.1, step_size=1.0),
            of("aggregate_po.ImportanceWeighted", cost=of("aggregate_po.K3Penalty", coefficient=0.1)),
        ],
    ),
    "schemes": ["--data.schemes+=DynamicSampling", "--data.schemes.max_rounds=3"],
    "advantages": {
        "data": {
            "advantages": of(
                "aggregate_po.advantages.OverlongShaping",
                estimator=of("aggregate_po.advantages.BetaNormalized", reward_range=[0.0, 2.0]),
                max_completion_length=40,
                cache_length=10,
            )
        }
    },
    "correction": {
        "data": {
            "old_log_probs": "trainer",
            "correction": of("aggregate_po.SequenceCorrection", max_weight=float("inf"), outside="truncate"),
        }
    },
    "engine": {"data": {"rollouts": of("lightning_modules.rollouts.VLLM")}},
    "adapters": {"model": {"lora": {"rank": 4, "target_modules": ["q_proj", "v_proj"]}}},
    "optimizer": ["--model.optimizer=torch.optim.SGD", "--model.optimizer.lr=0.1"],
    "optimizer with a pair": {"model": {"optimizer": of("torch.optim.Adam", lr=0.01, betas=[0.8, 0.9])}},
    "layout": {"model": {"layout": of("lightning_modules.PackedSequences", recompute=True)}},
    "a file": ["--data.dataset=train.jsonl", "--data.validation=train.jsonl"],
    "a file with other names": ["--data.dataset=lightning_modules.JSONLines", "--data.dataset.path=train.jsonl"],
    "prompts by a class": ["--data.dataset=parts.Prompts", "--data.dataset.size=5"],
    "callbacks by +=": [
        "--trainer.callbacks+=lightning_modules.callbacks.ratio_deviation.RatioDeviationStop",
        "--trainer.callbacks.bound=0.3",
        "--trainer.callbacks+=lightning.pytorch.callbacks.LearningRateMonitor",
    ],
    "loggers": {
        "trainer": {
            "logger": [of("lightning.pytorch.loggers.CSVLogger", save_dir=name) for name in ("one", "other")],
            "max_time": {"hours": 1},
        }
    },
    "strategy and plugins": {
        "trainer": {
            "strategy": of("lightning.pytorch.strategies.DDPStrategy", find_unused_parameters=True),
            "plugins": [of("lightning_modules.callbacks.checkpoints.AtomicCheckpointIO")],
            "profiler": "simple",
        }
    },
    "report and seed": ["--report.evaluate_every_n_steps=7", "--seed_everything=7", "--trainer.precision=bf16-mixed"],
}


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working folder with the parts of a user, and a configuration without objective and reward."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.syspath_prepend(str(tmp_path))
    (tmp_path / "parts.py").write_text(PARTS)
    (tmp_path / "train.jsonl").write_text('{"prompt": "What is 1 + 1?", "answer": "2"}\n')
    base = yaml.safe_load((CONFIGS / "addition.yaml").read_text())
    del base["data"]["reward"], base["model"]["objective"]
    (tmp_path / "base.yaml").write_text(yaml.safe_dump(base))
    return tmp_path


def arguments_of(said):
    """Options of `fit` that say this; objective and reward are the default ones unless said."""
    options = said if isinstance(said, list) else [f"--config={written(said)}"]
    text = str(said)
    others = [] if "reward'" in text or "--data.reward" in text else [f"--data.reward={BOXED}"]
    others += [] if "objective" in text else ["--model.objective=aggregate_po.recipes.gmpo"]
    return ["fit", "--config=base.yaml", *others, *options]


def written(said):
    Path("said.yaml").write_text(yaml.safe_dump(said))
    return "said.yaml"


def resolved(arguments):
    """The command line with its module and data, and the text of `config.yaml`, as a dictionary."""
    with contextlib.redirect_stdout(io.StringIO()):
        cli = run(arguments, ResolvingCLI)
    parser, config = cli._parser("fit"), cli.config["fit"]
    parser.save(config, "recorded.yaml", skip_none=False, overwrite=True, multifile=False)
    recorded = yaml.safe_load(Path("recorded.yaml").read_text())
    return cli, {name: value for name, value in recorded.items() if name != "config"}


def scored(cli):
    """What identifies the rewards of the data module."""
    return [(type(reward), getattr(reward, "__dict__", None) or reward) for reward in cli.datamodule.rewards._rewards]


@pytest.mark.parametrize("said", ACCEPTED.values(), ids=ACCEPTED.keys())
def test_a_configuration_is_reproduced_by_its_record(folder, said):
    first, recorded = resolved(arguments_of(said))
    second, again = resolved(["fit", "--config=recorded.yaml"])
    assert again == recorded
    assert objects(second.model) == objects(first.model)
    assert objects(second.datamodule) == objects(first.datamodule)
    assert repr(second.model.objective) == repr(first.model.objective)
    assert str(scored(second)) == str(scored(first)) or " at 0x" in str(scored(first))
    assert second.datamodule.rewards.names == first.datamodule.rewards.names


@pytest.mark.parametrize(
    ("said", "name"),
    [
        (reward("parts.grader.method"), "data.reward"),
        (reward("parts.Grader.of_the_class", BOXED), "data.reward"),
        (reward(of("parts.Scaled", reward="parts.Grader.of_the_class")), "data.reward.init_args.reward"),
    ],
    ids=["bound method", "class method in a list", "within a reward"],
)
def test_what_cannot_be_recorded_is_refused_before_anything_is_built(folder, said, name):
    with pytest.raises(SystemExit, match=rf"^error: `{name}` is <bound method .*, which `config.yaml` could not name"):
        run([*arguments_of(said), f"--trainer.default_root_dir={folder / 'run'}"])
    assert not (folder / "run").exists()
