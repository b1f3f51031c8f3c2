"""The scripts of the laboratory, shortened, with an objective of the reader's own."""

import csv
import itertools
import math

import pytest
import torch

from aggregate_po import ArithmeticMean, LengthWeighted, PessimisticClip, PolicyObjective, PowerMean
from aggregate_po.advantages import GroupNormalized
from aggregate_po.recipes import gmpo, grpo
from experiments.exact import (
    bias_variance,
    clip_width,
    completion_length,
    ess_target,
    exponent,
    group_size,
    learning_curves,
    on_policy_bias,
    ratio_bias,
)
from experiments.exact.learning import learning_curve
from experiments.exact.policies import Sequences
from experiments.exact.problems import random_problem

THIRD_PARTY = "tests.third_party.AsinhMean"


class Sharp(PowerMean):
    """A mean of the reader's own, with an exponent."""


def clipped_sharp(log_clip):
    return PolicyObjective(Sharp(3.0), PessimisticClip.log(log_clip, log_clip))


def summed():
    return PolicyObjective(ArithmeticMean(), normalizer=LengthWeighted())


def targeted(target):
    return PolicyObjective(Sharp(target))


SHORT = ["--length", "2", "--problems", "2", "--group_size", "3"]
FAMILIES = "experiments.exact.families."
HERE = "tests.experiments.exact.test_scripts"
# Script, its variable, objectives with one of the reader's own, and options for few values.
SCRIPTS = {
    "bias_variance": (bias_variance, "distance", f"grpo,gmpo,{THIRD_PARTY}", ["--distances", "0,0.4"]),
    "gradient": (exponent, "exponent", f"holder_po,{HERE}.Sharp", ["--exponents=-1,2", "--direction", "gradient"]),
    "completion_length": (completion_length, "length", f"grpo,{THIRD_PARTY}", ["--lengths", "2,3", "--stop"]),
    "group_size": (group_size, "group_size", f"real,{THIRD_PARTY}", ["--group_sizes", "2,4"]),
    "clip_width": (clip_width, "log_clip", f"gmpo,{HERE}.clipped_sharp", ["--log_clips", "0.2,0.8"]),
    "exponent": (exponent, "exponent", f"holder_po,{HERE}.Sharp", ["--exponents=-1,2"]),
    "ess_target": (ess_target, "target", f"{HERE}.targeted,experiments.exact.families.matched", ["--targets", "0.8,1"]),
    "learning_curves": (learning_curves, "updates", f"gmpo,{THIRD_PARTY}", ["--updates", "1,2", "--rollouts", "2"]),
}


@pytest.mark.parametrize(("script", "variable", "names", "options"), SCRIPTS.values(), ids=SCRIPTS)
def test_the_table_has_every_objective_at_every_value(tmp_path, capsys, script, variable, names, options):
    script.main(["--objectives", names, *SHORT, *options, "--output", str(tmp_path)])
    path, *_ = sorted(tmp_path.glob("*.csv"))
    with path.open(newline="") as file:
        table = list(csv.DictReader(file))
    assert {row["objective"] for row in table} == set(names.split(","))
    assert len({(row["objective"], float(row[variable])) for row in table}) == 2 * len(names.split(","))
    assert all(math.isfinite(float(number)) for row in table for column, number in row.items() if column != "objective")
    own = names.split(",")[-1].removeprefix(FAMILIES)
    printed = capsys.readouterr().out
    assert own in printed
    assert str(path.with_suffix(".svg")) in printed
    picture = path.with_suffix(".svg").read_text()
    assert picture.count(own) == 1


def test_printed_columns_are_aligned_and_tables_have_titles(tmp_path, capsys):
    clip_width.main(["--objectives", f"{HERE}.clipped_sharp,gmpo", *SHORT, "--log_clips=1", "--output", str(tmp_path)])
    head, *rows = capsys.readouterr().out.splitlines()[:3]
    assert {len(row) for row in rows} == {len(head)}
    bias_variance.main(["--objectives", "grpo", *SHORT, "--distances", "0", "--output", str(tmp_path)])
    printed = capsys.readouterr().out
    first, second = (
        printed.index(f"along {direction}.") for direction in ("a random direction", "the policy gradient")
    )
    assert first < printed.index("objective") < second


@pytest.mark.parametrize(
    ("script", "arguments", "message"),
    [
        (bias_variance, ["--problems", "0"], "--problems: '0' is not a whole number from 1 on"),
        (group_size, ["--length", "two"], "--length: 'two' is not a whole number from 1 on"),
        (exponent, ["--formats", "svg,gif"], "--formats: 'gif' is unknown; pass any of svg, pdf, png"),
        (bias_variance, ["--direction", "random"], "unrecognized arguments: --direction"),  # it makes both
        (learning_curves, ["--distance", "0.3"], "unrecognized arguments: --distance"),  # it begins on policy
        (on_policy_bias, ["--objectives", "grpo"], "unrecognized arguments: --objectives"),
        (ratio_bias, ["--stop"], "unrecognized arguments: --stop"),
        (ratio_bias, ["--objectives", "grpo,real"], "--objectives: 'real' compares the completions of a group"),
        (ratio_bias, ["--objectives", "dr_grpo"], "--objectives: 'dr_grpo' cannot be made: `arguments` of 'dr_grpo'"),
        (bias_variance, ["--objectives", "gmop"], "--objectives: 'gmop' cannot be made: `name` is 'gmop'"),
        (bias_variance, ["--objectives", "gmpo,gmpo"], "--objectives: gmpo is there twice"),
        (bias_variance, ["--vocabulary", "1"], "--vocabulary: '1' is not a whole number from 2 on"),
        (clip_width, ["--objectives", "gmpo_no_clip"], "--objectives: 'gmpo_no_clip' cannot be made: `arguments`"),
        (clip_width, ["--log_clips=-0.2"], "--objectives: 'experiments.exact.families.arithmetic' cannot be made"),
        (exponent, ["--exponents", "1,2,1.0"], "--exponents: 1.0 is there twice"),
        (ess_target, ["--targets", "0.5,5"], "--targets: 5 is no share of the length; pass numbers above 0"),
        (bias_variance, ["--objectives", ","], "--objectives: ',' has no name; pass one, or several by commas"),
        (learning_curves, ["--learning_rate", "nan"], "--learning_rate: 'nan' is not a finite number"),
    ],
)
def test_arguments_that_are_wrong_or_would_be_ignored_are_refused(capsys, script, arguments, message):
    with pytest.raises(SystemExit):
        script.main(arguments)
    assert message in capsys.readouterr().err


def test_files_are_the_same_whenever_they_are_written(tmp_path):
    options = ["--objectives", "holder_po", *SHORT, "--exponents=1", "--formats", "svg,pdf"]
    for folder in ("first", "second"):
        exponent.main([*options, "--output", str(tmp_path / folder)])
    names = {path.name for path in (tmp_path / "first").iterdir()}
    assert names == {"exponent.csv", "exponent.svg", "exponent.pdf"}
    for name in names:
        assert (tmp_path / "first" / name).read_bytes() == (tmp_path / "second" / name).read_bytes()


def test_on_policy_objectives_agree(tmp_path):
    bias_variance.main(["--objectives", "grpo,gmpo", *SHORT, "--distances", "0", "--output", str(tmp_path)])
    with (tmp_path / "bias_variance_random.csv").open(newline="") as file:
        grpo_row, gmpo_row = csv.DictReader(file)
    del grpo_row["objective"], gmpo_row["objective"]
    assert grpo_row == gmpo_row
    assert (float(grpo_row["cosine"]), float(grpo_row["bias"])) == (1, 0)


@pytest.mark.parametrize("along_gradient", [False, True])
def test_distances_are_those_of_the_log_ratios(along_gradient):
    problem = random_problem(Sequences.of(3, 2, stop=True), 0.4, seed=3, along_gradient=along_gradient)
    assert problem.distance == pytest.approx(0.4, abs=1e-9)
    squares, tokens = 0.0, 0.0
    for row, probability in enumerate(problem.behavior.tolist()):
        log_ratios = (
            problem.sequences.log_probs(problem.logits)[row] - problem.sequences.log_probs(problem.old_logits)[row]
        )
        squares += probability * log_ratios.square().sum().item()
        tokens += probability * problem.sequences.mask[row].sum().item()
    assert math.sqrt(squares / tokens) == pytest.approx(0.4, abs=1e-9)
    assert 0 < problem.rewards.mean() < 1
    moved = (problem.logits - problem.old_logits).flatten()
    gradient = problem.sequences.policy_gradient(problem.old_logits, problem.rewards)
    cosine = torch.nn.functional.cosine_similarity(moved, gradient, dim=0).item()
    assert (cosine == pytest.approx(1)) == along_gradient


@pytest.mark.parametrize("objective", [grpo(), gmpo()], ids=["grpo", "gmpo"])
def test_a_policy_that_follows_the_estimate_learns(objective):
    sequences = Sequences.of(2, 3)
    rewards = torch.zeros(len(sequences), dtype=torch.float64)
    rewards[5] = 1
    curve = learning_curve(sequences, rewards, objective, GroupNormalized(), 4, 30, 2, 1.0)
    assert curve[0] == pytest.approx(1 / 8)
    assert all(later > earlier for earlier, later in itertools.pairwise(curve))
    assert curve[-1] > 0.5


def rows_of(path):
    with path.open(newline="") as file:
        return list(csv.DictReader(file))


@pytest.mark.parametrize("stop", [False, True])
def test_which_advantages_and_normalizers_are_unbiased_on_policy(tmp_path, stop):
    options = ["--vocabulary", "3", "--length", "2", "--problems", "3", "--group_sizes", "2,4"]
    on_policy_bias.main([*options, *["--stop"][:stop], "--output", str(tmp_path)])
    (path,) = tmp_path.glob("*.csv")
    bias = {(row["pair"], row["group_size"]): float(row["bias"]) for row in rows_of(path)}
    for size in ("2", "4"):
        assert bias["leave-one-out, constant length", size] == bias["centered, constant length", size] == 0
        assert bias["normalized, constant length", size] > 0.01
        assert (bias["leave-one-out, sequence mean", size] > 0.1) == stop
        assert (bias["leave-one-out, token mean", size] > 0.01) == stop
    # More completions make the advantages better, and the division by the own length as wrong as before.
    assert bias["normalized, constant length", "4"] < bias["normalized, constant length", "2"]
    sequence_means = [bias["leave-one-out, sequence mean", size] for size in ("2", "4")]
    assert sequence_means[0] == pytest.approx(sequence_means[1])


def test_which_ratios_are_unbiased_off_policy(tmp_path):
    names = f"{THIRD_PARTY},{HERE}.summed"
    options = ["--objectives", names, "--problems", "3", "--distances", "0,0.4", "--output", str(tmp_path)]
    ratio_bias.main(options)
    bias = {
        (row["ratio"], row["advantage"]): float(row["bias"])
        for row in rows_of(tmp_path / "ratio_bias.csv")
        if row["distance"] == "0.4"
    }
    unbiased = {("product of all", "reward"), ("product of the prefix", "value of the token")}
    assert {key for key, value in bias.items() if value < 1e-12} == unbiased
    assert bias["product of the prefix", "reward"] < bias["token", "reward"] < bias["none", "reward"]
    assert (THIRD_PARTY, "reward") in bias
    # The sum of the tokens is the mean without the division by the length.
    assert bias[f"{HERE}.summed", "reward"] == pytest.approx(bias["token", "reward"])
    assert {float(row["bias"]) for row in rows_of(tmp_path / "ratio_bias.csv") if row["distance"] == "0"} == {0}


@pytest.mark.parametrize(
    ("script", "arguments", "words"),
    [
        (group_size, ["--group_sizes", "2,2.5"], "'2.5' is not a whole number"),
        (completion_length, ["--lengths", "2,nan"], "'nan' is not a whole number"),
        (learning_curves, ["--updates", "1.5"], "'1.5' is not a whole number"),
        (learning_curves, ["--rollouts", "0"], "'0' is not a whole number"),
        (group_size, ["--distance", "-0.5"], "'-0.5' is below 0"),
        (bias_variance, ["--distances", "0.1,nan"], "'nan' is not a finite number"),
        (exponent, ["--exponents", "one"], "'one' is not a finite number"),
    ],
)
def test_values_that_would_be_measured_under_another_number_are_refused(script, arguments, words, tmp_path, capsys):
    with pytest.raises(SystemExit):
        script.main([*arguments, "--output", str(tmp_path)])
    assert words in capsys.readouterr().err


def test_a_policy_gradient_that_is_lost_to_rounding_is_refused():
    with pytest.raises(ValueError, match=r"`distance` is 1000\.0, where the policy gradient is 0 to rounding"):
        random_problem(Sequences.of(2, 2), 1000.0, seed=0)


@pytest.mark.parametrize("distance", [-0.5, math.nan, math.inf])
def test_no_policy_has_a_negative_or_infinite_distance(distance):
    with pytest.raises(ValueError, match="`distance` is"):
        random_problem(Sequences.of(2, 2), distance, seed=0)
