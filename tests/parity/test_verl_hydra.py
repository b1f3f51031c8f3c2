"""The configuration of verl with our objectives, composed by Hydra from the command lines of the page."""

import json
import re
import subprocess
import sys

import pytest

from tests.peers import ROOT, environment_with, require_peers

PAGE = ROOT / "docs" / "from-trl-and-verl.md"
LOSS = "actor_rollout_ref.actor.policy_loss"
TARGET = f"{LOSS}._target_=aggregate_po.adapters.verl.ObjectiveLossConfig"
PARTS = re.search(r"```text\n(\+\.\.\..*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1].splitlines()
NESTED = (
    "{_target_: aggregate_po.PolicyObjective, aggregator: {_target_: aggregate_po.PowerMean, exponent: 0.5}, "
    "token_transform: {_target_: aggregate_po.PessimisticClip, clip_low: 0.2, clip_high: 0.3}, "
    "normalizer: {_target_: aggregate_po.TokenMean}, "
    "penalties: [{_target_: aggregate_po.EntropyBonus, coefficient: 0.01}]}"
)
# Overrides, objective, correction.
CASES = {
    "a recipe": ([f"+{LOSS}.objective=gmpo"], "gmpo()", "token"),
    "its arguments": ([f"+{LOSS}.objective=gmpo", f"+{LOSS}.arguments={{log_clip: 0.3}}"], "gmpo(0.3)", "token"),
    "a correction": ([f"+{LOSS}.objective=gspo", f"+{LOSS}.correction=sequence"], "gspo()", "sequence"),
    "an aggregator": (
        [f"+{LOSS}.objective=tests.third_party.lehmer.LehmerMean", f"+{LOSS}.arguments={{order: 3.0}}"],
        "PolicyObjective(LehmerMean(3.0))",
        "token",
    ),
    "a target": (
        [f"+{LOSS}.objective._target_=aggregate_po.recipes.gmpo", f"+{LOSS}.objective.log_clip=0.3"],
        "gmpo(0.3)",
        "token",
    ),
    "the parts on the page": (
        [
            line.replace("...", "actor_rollout_ref.actor.").replace("my_package.MyMean", "aggregate_po.GeometricMean")
            for line in PARTS
        ],
        "PolicyObjective(GeometricMean(), PessimisticClip(0.2, 0.2), normalizer=TokenMean())",
        "token",
    ),
    "nested parts": (
        [f"+{LOSS}.objective={NESTED}"],
        "PolicyObjective(PowerMean(0.5), PessimisticClip(0.2, 0.3), normalizer=TokenMean(), "
        "penalties=[EntropyBonus(0.01)])",
        "token",
    ),
}
REFUSED = {
    "verl's own class": ([f"+{LOSS}.objective=gmpo"], "unexpected keyword argument 'objective'"),
    "another loss": ([TARGET, f"{LOSS}.loss_mode=gspo"], "`loss_mode` is 'gspo', but the objective is the loss"),
    "an option of a loss": ([TARGET, f"{LOSS}.clip_cov_ratio=0.5"], "`clip_cov_ratio` is 0.5"),
    "a part": ([TARGET, f"+{LOSS}.objective=holder_po"], "`totals.progress` is None"),
}
PROGRAM = """
import json, sys
from pathlib import Path

import verl.trainer.config as configuration
from hydra import compose, initialize_config_dir
from verl.trainer.ppo.core_algos import get_adv_estimator_fn, get_policy_loss_fn
from verl.utils.config import omega_conf_to_dataclass

from aggregate_po import *
from aggregate_po.adapters.verl import policy_loss
from aggregate_po.recipes import *
from tests.third_party.lehmer import LehmerMean

REQUIRED = ["actor_rollout_ref.actor.strategy=fsdp", "actor_rollout_ref.actor.ppo_micro_batch_size_per_gpu=1"]
found = {}
with initialize_config_dir(str(Path(configuration.__file__).parent), version_base=None):
    for name, (overrides, expected) in json.loads(sys.argv[1]).items():
        config = compose("ppo_trainer", overrides=REQUIRED + overrides)
        get_adv_estimator_fn(config.algorithm.adv_estimator)
        try:
            loss = omega_conf_to_dataclass(config.actor_rollout_ref.actor).policy_loss
        except Exception as error:
            found[name] = {"error": str(error)}
            continue
        ours = get_policy_loss_fn(loss.get("loss_mode", "vanilla")) is policy_loss
        same = repr(loss.objective) == repr(eval(expected))
        found[name] = {"ours": ours, "same": same, "correction": loss.correction, "of": config.algorithm.adv_estimator}
print(json.dumps(found))
"""


@pytest.fixture(scope="module")
def found():
    """Loss that verl builds of each list of overrides, and of the lines of the page."""
    require_peers("verl")
    lines = re.search(r"```text\n(actor_rollout_ref.*?)```", PAGE.read_text(encoding="utf-8"), re.DOTALL)[1].split()
    asked = {name: ([TARGET, *overrides], expected) for name, (overrides, expected, _) in CASES.items()}
    asked |= {"the page": (lines, "gmpo()")} | {name: (overrides, "") for name, (overrides, _) in REFUSED.items()}
    command = [sys.executable, "-W", "ignore", "-c", PROGRAM, json.dumps(asked)]
    environment = environment_with("hydra")
    done = subprocess.run(command, cwd=ROOT, env=environment, capture_output=True, text=True, timeout=900)
    assert done.returncode == 0, done.stderr[-4000:]
    return json.loads(done.stdout.splitlines()[-1])


@pytest.mark.parametrize("name", CASES)
def test_an_objective_is_built(found, name):
    assert found[name] == {"ours": True, "same": True, "correction": CASES[name][2], "of": "gae"}


def test_the_lines_of_the_page(found):
    expected = {"ours": True, "same": True, "correction": "token", "of": "aggregate_po.GroupNormalized"}
    assert found["the page"] == expected


@pytest.mark.parametrize("name", REFUSED)
def test_refusals(found, name):
    assert REFUSED[name][1] in found[name]["error"]
