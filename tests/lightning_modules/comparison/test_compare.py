"""Comparison on recordings made by hand: three tokens worked out, and what cannot be compared."""

import math
from dataclasses import replace

import pytest
import torch

from aggregate_po import (
    ArithmeticMean,
    GeometricMean,
    K3Penalty,
    NestedMean,
    PessimisticClip,
    PolicyObjective,
    PowerMean,
)
from aggregate_po.recipes import gmpo, grpo, pmpo, real, tpo
from lightning_modules.comparison import compare_objectives
from lightning_modules.comparison.evaluation import evaluated_step
from tests.lightning_modules.recordings.hand_made import recorded_step, write

# One completion of three tokens with the ratios 1.25, 0.8 and 1, and the advantage 2.
LOG_RATIOS, ADVANTAGES = [[math.log(1.25), math.log(0.8), 0.0]], [2.0]
ARITHMETIC = PolicyObjective(ArithmeticMean())
PENALIZED = PolicyObjective(GeometricMean(), penalties=[K3Penalty(0.1)])
CLIPPED = PolicyObjective(ArithmeticMean(), PessimisticClip(0.2, 0.2))


def all_rows(comparison):
    return {row["objective"]: row for row in comparison.objectives if row["update"] == "all"}


@pytest.fixture
def three_tokens(tmp_path):
    return write(tmp_path / "recording", ARITHMETIC, recorded_step(ARITHMETIC, (LOG_RATIOS, ADVANTAGES)))


def test_three_tokens_by_hand(three_tokens):
    objectives = {"mean": ARITHMETIC, "clipped": CLIPPED, "geometric": PolicyObjective(GeometricMean())}
    rows = all_rows(compare_objectives(three_tokens, objectives, gradients="none"))
    # Arithmetic mean: weights A r / n = 2.5 / 3, 1.6 / 3, 2 / 3, which sum to 6.1 / 3.
    mean = rows["mean"]
    assert (mean["steps"], mean["completions"], mean["tokens"]) == (1, 1, 3)
    assert mean["value"] == pytest.approx(2 * 3.05 / 3)
    assert mean["total_weight"] == pytest.approx(6.1 / 3)
    assert mean["positive_share"] == 1
    assert mean["lowest_tenth_share"] == pytest.approx(0.3 * 1.6 / 6.1)  # a tenth is 0.3 of a token
    assert mean["highest_tenth_share"] == pytest.approx(0.3 * 2.5 / 6.1)
    assert mean["largest_percent_share"] == pytest.approx(2.5 / 6.1)
    effective = 6.1**2 / (3 * (2.5**2 + 1.6**2 + 2**2))
    assert mean["tokens_effective_fraction"] == pytest.approx(effective)
    assert mean["concentration_effective_fraction"] == pytest.approx(effective)
    assert (mean["clipped"], mean["overflow"], mean["largest_difference"]) == (0, 0, 0)
    assert math.isnan(mean["exponent"])
    # The clip at 1.2 is above the first token: its weight is 0, and its value counts as 1.2.
    clipped = rows["clipped"]
    assert clipped["value"] == pytest.approx(2 * 3 / 3)
    assert clipped["total_weight"] == pytest.approx(3.6 / 3)
    assert clipped["highest_tenth_share"] == 0
    assert (clipped["clipped"], clipped["clipped_high"], clipped["clipped_low"]) == pytest.approx((1 / 3, 1 / 3, 0))
    assert clipped["tokens_effective_fraction"] == pytest.approx(3.6**2 / (3 * (1.6**2 + 2**2)))
    assert clipped["largest_difference"] == pytest.approx(2.5 / 3)
    # The geometric mean of 1.25, 0.8 and 1 is 1, and every token has a third of 2.
    geometric = rows["geometric"]
    assert geometric["value"] == pytest.approx(2)
    assert geometric["tokens_effective_fraction"] == pytest.approx(1)
    assert geometric["largest_difference"] == pytest.approx(0.5 / 3)


def test_curves_of_three_tokens_by_hand(tmp_path):
    # Five times the same completion, since a bin needs five tokens.
    step = recorded_step(ARITHMETIC, (LOG_RATIOS * 5, ADVANTAGES * 5))
    folder = write(tmp_path / "recording", ARITHMETIC, step)
    objectives = {"mean": ARITHMETIC, "clipped": CLIPPED}
    comparison = compare_objectives(folder, objectives, gradients="none")
    relative = {
        (row["objective"], round(math.exp(row["log_ratio"]), 1)): row["mean"] for row in comparison.by_log_ratio
    }
    assert {row["advantage"] for row in comparison.by_log_ratio} == {"positive"}
    assert relative[("mean", 1.0)] == pytest.approx(1.0)
    assert sorted(value for (name, _), value in relative.items() if name == "mean") == pytest.approx([0.8, 1.0, 1.25])
    assert sorted(value for (name, _), value in relative.items() if name == "clipped") == pytest.approx([0.0, 0.8, 1.0])
    by_position = [row for row in comparison.by_position if row["objective"] == "clipped"]
    # Tokens 1, 2 and 3 of 3 are in the tenths that begin at 0, 0.3 and 0.6.
    assert [row["position"] for row in by_position] == pytest.approx([0.05, 0.35, 0.65])
    assert [row["clipped"] for row in by_position] == [1, 0, 0]
    assert [row["relative_share"] for row in by_position] == pytest.approx([0, 3 * 1.6 / 3.6, 3 * 2 / 3.6])
    shares = [row["share"] for row in comparison.by_quantile if row["objective"] == "mean"]
    assert sum(shares) == pytest.approx(1)
    assert shares[0] == pytest.approx(0.3 * 1.6 / 6.1)


def test_overlap_of_clipped_sets_by_hand(three_tokens):
    wide = PolicyObjective(ArithmeticMean(), PessimisticClip(0.2, 0.3))
    below = PolicyObjective(ArithmeticMean(), PessimisticClip(0.2, -0.01 + 0.01))  # clips above a ratio of 1
    objectives = {"clipped": CLIPPED, "wide": wide, "below": below}
    comparison = compare_objectives(three_tokens, objectives, gradients="none")
    found = {(row["objective"], row["other"]): row["jaccard"] for row in comparison.overlap}
    assert found["clipped", "clipped"] == 1
    assert found["clipped", "below"] == found["below", "clipped"] == 1
    assert found["clipped", "wide"] == 0
    assert math.isnan(found["wide", "wide"])


def test_rows_by_update_are_of_their_steps(tmp_path):
    first = recorded_step(ARITHMETIC, ([[0.0, 0.0]], [1.0]), step=1, update=1)
    second = recorded_step(ARITHMETIC, (LOG_RATIOS, ADVANTAGES), step=2, update=2)
    third = recorded_step(ARITHMETIC, ([[0.0, 0.0]], [-1.0]), step=3, update=1, rollout=2)
    folder = write(tmp_path / "recording", ARITHMETIC, first, second, third)
    rows = compare_objectives(folder, {"mean": ARITHMETIC}, gradients="none").objectives
    own = {row["update"]: row for row in rows if row["objective"] == "mean"}
    assert list(own) == ["all", 1, 2]
    assert (own[1]["steps"], own[1]["tokens"], own[1]["value"]) == (2, 4, 0)
    assert own[1]["positive_share"] == 0.5
    assert own[2]["value"] == pytest.approx(2 * 3.05 / 3)
    assert [own[update]["total_weight"] for update in (1, 2, "all")] == pytest.approx([1, 6.1 / 3, (2 + 6.1 / 3) / 3])
    assert own["all"]["value"] == pytest.approx(own[2]["value"] / 3)


TRAINED = {"gmpo": gmpo(), "pmpo": pmpo(), "penalty": PENALIZED, "real": real(), "tpo": tpo()}


@pytest.mark.parametrize("objective", TRAINED.values(), ids=TRAINED.keys())
def test_micro_batches_of_a_step_give_its_weights_to_the_bit(tmp_path, objective):
    """A group objective reads the whole step, whatever its micro-batches are."""
    generator = torch.Generator().manual_seed(0)
    drift = (0.3 * torch.randn(4, 5, generator=generator, dtype=torch.double)).tolist()
    advantages = [1.0, -1.0, 1.0, -1.0]
    fields = {"ref_log_probs": torch.full((4, 5), -0.6, dtype=torch.double)}
    together = recorded_step(objective, (drift, advantages), **fields)
    halves = {"ref_log_probs": fields["ref_log_probs"][:2]}
    apart = recorded_step(grpo(), (drift[:2], advantages[:2]), (drift[2:], advantages[2:]), **halves)
    once = torch.cat([result.weights.total for result in evaluated_step(objective, together)])
    split = torch.cat([result.weights.total for result in evaluated_step(objective, apart)])
    assert torch.equal(once, split)
    folder = write(tmp_path / "recording", objective, together)
    row = all_rows(compare_objectives(folder, {"own": objective}, gradients="none"))["own"]
    assert row["largest_difference"] == 0


def test_exponents_are_means_over_completions(tmp_path):
    objective = PolicyObjective(PowerMean(pmpo().aggregator.exponent))
    step = recorded_step(objective, ([[0.5, -0.5, 0.1], [0.0, 0.2]], [1.0, -1.0]))
    folder = write(tmp_path / "recording", objective, step)
    row = all_rows(compare_objectives(folder, {"own": objective}, gradients="none"))["own"]
    assert row["exponent"] == pytest.approx(float(step.batches[0].evaluated.exponents.mean()))


def test_an_aggregator_of_the_user_appears_by_its_import_path(three_tokens):
    comparison = compare_objectives(three_tokens, "grpo,tests.third_party.lehmer.LehmerMean", gradients="none")
    assert list(all_rows(comparison)) == ["recorded", "grpo", "tests.third_party.lehmer.LehmerMean"]


@pytest.mark.parametrize(
    ("objectives", "message"),
    [
        ({"own": PENALIZED}, "'own'.*reference.*--reference true"),
        ({"nested": PolicyObjective(NestedMean(GeometricMean(), ArithmeticMean()))}, "'nested'.*span_ids"),
        ({"recorded": ARITHMETIC}, "'recorded', the name of what was recorded"),
    ],
)
def test_what_the_recording_lacks_is_refused_by_name(three_tokens, objectives, message):
    with pytest.raises(ValueError, match=message):
        compare_objectives(three_tokens, objectives, gradients="none")


def test_completions_that_were_left_out_are_not_missed_silently(tmp_path):
    step = recorded_step(ARITHMETIC, (LOG_RATIOS, ADVANTAGES))
    folder = write(tmp_path / "recording", ARITHMETIC, step, every_completion=False)
    with pytest.raises(ValueError, match=r"'tpo'.*left out.*--every_completion true"):
        compare_objectives(folder, "tpo", gradients="none")


def test_gradients_need_a_model(three_tokens):
    with pytest.raises(ValueError, match="has no model; record again, or pass `--gradients none`"):
        compare_objectives(three_tokens, "grpo")


def test_steps_without_trained_tokens_count_in_means_over_steps(tmp_path):
    steps = [recorded_step(ARITHMETIC, (LOG_RATIOS, ADVANTAGES), step=number) for number in (1, 2)]
    part = steps[1].batches[0]
    policy = replace(part.batch.policy, response_mask=torch.zeros_like(part.batch.policy.response_mask))
    part.batch.policy = policy
    folder = write(tmp_path / "recording", ARITHMETIC, *steps)
    row = all_rows(compare_objectives(folder, {"mean": ARITHMETIC}, gradients="none"))["mean"]
    assert (row["steps"], row["completions"]) == (2, 1)
    assert row["value"] == pytest.approx(2 * 3.05 / 3 / 2)
    assert row["total_weight"] == pytest.approx(6.1 / 3 / 2)


def test_a_recording_without_trained_tokens_is_refused(tmp_path):
    step = recorded_step(ARITHMETIC, (LOG_RATIOS, ADVANTAGES))
    policy = step.batches[0].batch.policy
    step.batches[0].batch.policy = replace(policy, response_mask=torch.zeros_like(policy.response_mask))
    folder = write(tmp_path / "recording", ARITHMETIC, step)
    with pytest.raises(ValueError, match="1 steps train no token"):
        compare_objectives(folder, {"mean": ARITHMETIC}, gradients="none")


class NotFinite(GeometricMean):
    """A mean whose weights are wrong above a log ratio."""

    def token_weights(self, tokens):
        return torch.where(tokens.log_ratio > 0.2, torch.nan, super().token_weights(tokens))


def test_an_objective_whose_gradient_is_not_finite_is_refused(three_tokens):
    words = r"'mine', whose gradient is not finite on 1 of 3 tokens, first in step 1 at a log ratio of 0.223"
    with pytest.raises(ValueError, match=words):
        compare_objectives(three_tokens, {"mine": PolicyObjective(NotFinite())}, gradients="none")
