"""Settings that TRL and Liger have in common, and what they are called here."""

from dataclasses import dataclass

from aggregate_po import ConstantLength, GeometricMean, K3Penalty, PolicyObjective, TokenMean
from aggregate_po.normalizers import LengthWeighted
from aggregate_po.recipes import (
    cispo,
    dapo,
    dr_grpo,
    grpo,
    grpo_dual_clip,
    gspo,
    luspo,
    sapo,
    vespo,
)
from aggregate_po.transforms import Chain, NegativeCap, PessimisticClip, SigmoidGate, StraightThrough, TwoSidedClip
from tests.parity.cases import replaced


@dataclass(frozen=True)
class Pair:
    """A peer's settings and the objective that they stand for.

    `values` is False where the peer's loss contains the log-probability itself: its gradient is that of a weighted
    ratio, its value is not.
    """

    settings: dict
    objective: PolicyObjective
    values: bool = True


def _pair(loss_type, objective, values=True, **settings):
    return Pair({"loss_type": loss_type, **settings}, objective, values)


def _sequence_pair(loss_type, objective, values=True, **settings):
    return _pair(loss_type, objective, values, importance_sampling_level="sequence", **settings)


WIDE = {"epsilon_low": 0.2, "epsilon_high": 0.28}
NARROW = {"epsilon_low": 3e-4, "epsilon_high": 4e-4}
CAPPED = Chain([PessimisticClip(0.2, 0.28), NegativeCap(2.0)])
K3 = [K3Penalty(0.04)]
PLAIN_KL = {"beta": 0.04, "use_bias_correction_kl": False}

TOKEN_PAIRS = {
    "grpo": _pair("grpo", grpo(0.2, 0.28), **WIDE),
    "bnpo": _pair("bnpo", dapo(0.2, 0.28), **WIDE),
    "dr_grpo": _pair("dr_grpo", dr_grpo(40, 0.2, 0.28), max_completion_length=40, **WIDE),
    "dapo": _pair("dapo", dapo(), **WIDE),
    "cispo": _pair("cispo", cispo(), values=False, epsilon_high=5.0),
    "cispo, low bound": _pair("cispo", cispo(max_ratio=1.1), values=False, epsilon_high=1.1),
    "sapo": _pair("sapo", sapo(1.0, 1.25), sapo_temperature_pos=1.0, sapo_temperature_neg=1.25),
    "vespo": _pair("vespo", vespo(), values=False),
    "vespo, other kernels": _pair(
        "vespo",
        vespo(1.5, 2.5, 2.0, 1.0),
        values=False,
        vespo_k_pos=1.5,
        vespo_lambda_pos=2.5,
        vespo_k_neg=2.0,
        vespo_lambda_neg=1.0,
    ),
}

SEQUENCE_PAIRS = {
    "grpo, sequence": _sequence_pair("grpo", gspo(), **NARROW),
    "grpo, sequence, wide": _sequence_pair("grpo", gspo(0.2, 0.28), **WIDE),
    "bnpo, sequence": _sequence_pair("bnpo", replaced(gspo(), normalizer=TokenMean()), **NARROW),
    "dr_grpo, sequence": _sequence_pair(
        "dr_grpo", replaced(gspo(0.2, 0.28), normalizer=ConstantLength(40)), max_completion_length=40, **WIDE
    ),
    "dapo, sequence": _sequence_pair("dapo", replaced(gspo(), normalizer=TokenMean()), **NARROW),
    "luspo": _sequence_pair("luspo", luspo(), epsilon_low=2e-3, epsilon_high=2.5e-3),
}

# With an upper bound on the ratio of negative advantages, which both call `delta`.
DUAL_CLIP_PAIRS = {
    "grpo, delta": _pair("grpo", grpo_dual_clip(0.2, 0.28, 2.0), delta=2.0, **WIDE),
    "dapo, delta": _pair("dapo", replaced(dapo(), token_transform=CAPPED), delta=2.0, **WIDE),
    "dr_grpo, delta": _pair(
        "dr_grpo", replaced(dr_grpo(40), token_transform=CAPPED), delta=2.0, max_completion_length=40, **WIDE
    ),
    "grpo, sequence, delta": _sequence_pair("grpo", replaced(gspo(), sequence_transform=CAPPED), delta=2.0, **WIDE),
}

KL_PAIRS = {
    "grpo, KL": _pair("grpo", grpo(penalties=K3), **PLAIN_KL),
    "bnpo, KL": _pair("bnpo", dapo(0.2, 0.2, penalties=K3), **PLAIN_KL),
    "dr_grpo, KL": _pair("dr_grpo", dr_grpo(40, penalties=K3), max_completion_length=40, **PLAIN_KL),
    "dapo, KL": _pair("dapo", dapo(penalties=K3), **PLAIN_KL, **WIDE),
    "cispo, KL": _pair("cispo", cispo(penalties=K3), values=False, epsilon_high=5.0, **PLAIN_KL),
    "grpo, sequence, KL": _sequence_pair("grpo", gspo(penalties=K3), **PLAIN_KL, **NARROW),
}

SHARED_PAIRS = {**TOKEN_PAIRS, **SEQUENCE_PAIRS, **DUAL_CLIP_PAIRS, **KL_PAIRS}

# Combinations that Liger refuses or reduces otherwise.
TRL_PAIRS = {
    "cispo, sequence": _sequence_pair(
        "cispo",
        PolicyObjective(
            GeometricMean(), sequence_transform=StraightThrough(TwoSidedClip(0.0, 1.1)), normalizer=TokenMean()
        ),
        values=False,
        epsilon_high=1.1,
    ),
    "sapo, sequence": _sequence_pair(
        "sapo", PolicyObjective(GeometricMean(), sequence_transform=SigmoidGate(1.0, 1.25)), sapo_temperature_neg=1.25
    ),
    "luspo, token": _pair("luspo", replaced(grpo(0.2, 0.28), normalizer=LengthWeighted()), **WIDE),
    "luspo, KL": _sequence_pair("luspo", luspo(0.2, 0.2, penalties=K3), **PLAIN_KL),
}
