"""Options of TRL's `GRPOConfig` that the loss reads: what an objective replaces, and the parts that others name."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from copy import copy
from dataclasses import MISSING, fields
from typing import Any

import torch

from aggregate_po.adapters.micro_batches import require_passed
from aggregate_po.batch import PolicyBatch
from aggregate_po.corrections import CorrectionWeights, SamplerCorrection, SequenceCorrection, TokenCorrection
from aggregate_po.objective import PolicyObjective
from aggregate_po.penalties import ImportanceWeighted, K3Penalty
from aggregate_po.totals import StepTotals
from aggregate_po.transforms import GammaKernel, RatioTransform

_RECIPE = "pass it to the recipe of `objective` under the name that docs/from-trl-and-verl.md gives"
REPLACED: Mapping[str, str] = {
    "loss_type": "pass the recipe of this loss as `objective`",
    "importance_sampling_level": "pass a recipe with ratios of completions, such as gspo(), as `objective`",
    **dict.fromkeys(("epsilon", "epsilon_high"), f"{_RECIPE}, `clip_low` and `clip_high` for most"),
    "delta": "pass grpo_dual_clip(max_ratio=...) as `objective`, or a NegativeCap after its clip",
    **dict.fromkeys(("sapo_temperature_pos", "sapo_temperature_neg"), _RECIPE),
    **dict.fromkeys(("vespo_k_pos", "vespo_lambda_pos", "vespo_k_neg", "vespo_lambda_neg"), _RECIPE),
    "off_policy_mask_threshold": "pass grpo_off_policy_mask(max_divergence=...) as `objective`, or a "
    "StaleCompletionMask in its token transform",
}
HONORED = (
    "beta",
    "use_bias_correction_kl",
    "top_entropy_quantile",
    "entropy_coef",
    "use_adaptive_entropy",
    "entropy_coef_min",
    "entropy_coef_max",
    "entropy_coef_delta",
    "entropy_target",
    "router_aux_loss_coef",
    "use_vllm",
    "vllm_importance_sampling_correction",
    "vllm_importance_sampling_mode",
    "vllm_importance_sampling_cap",
    "vllm_importance_sampling_clip_max",
    "vllm_importance_sampling_clip_min",
    "steps_per_generation",
    "num_iterations",
)
_MODES = ("token_mask", "token_truncate", "sequence_mask", "sequence_truncate")
_UPPER = ("vllm_importance_sampling_clip_max", "vllm_importance_sampling_cap")
_LOWER = "vllm_importance_sampling_clip_min"
WITHOUT_EFFECT = ("max_completion_length",)  # a normalizer of the objective has a length of its own


def require_defaults(args: Any) -> None:
    """Raise for an option that the objective replaces.

    Raises:
        ValueError: such an option differs from its default.
    """
    defaults = {field.name: field.default for field in fields(args) if field.default is not MISSING}
    for name, remedy in REPLACED.items():
        if name in defaults and getattr(args, name) != defaults[name]:
            raise ValueError(
                f"`{name}` is {getattr(args, name)!r}, but the objective is the loss, which does not read it; leave it "
                f"at {defaults[name]!r} and {remedy}."
            )


def require_whole_steps(args: Any) -> None:
    """Raise where the micro-batches of an optimizer step are not all of one generation, so that nobody can count them.

    Raises:
        ValueError: `steps_per_generation` is no multiple of `gradient_accumulation_steps`.
    """
    micro_batches, accumulated = args.steps_per_generation, args.gradient_accumulation_steps
    if micro_batches % accumulated:
        raise ValueError(
            f"`steps_per_generation` is {micro_batches} and `gradient_accumulation_steps` {accumulated}, so an "
            "optimizer step has micro-batches that are not generated yet when its first is trained; pass a "
            f"`steps_per_generation` that is a multiple of {accumulated}."
        )


def require_supported(objective: PolicyObjective, args: Any) -> None:
    """Raise for parts of the objective that TRL's batches cannot serve.

    Raises:
        TypeError: the objective is no `PolicyObjective`.
        ValueError: the objective has a group objective, or acts on completions where the correction is per token, or
            has the correction inside its kernel, or reads what a batch has not; or an entropy bonus is over tokens that
            only the micro-batches select.
    """
    if not isinstance(objective, PolicyObjective):
        raise TypeError(f"`objective` is {objective!r}; pass a PolicyObjective, such as aggregate_po.recipes.gmpo().")
    if objective.group_objective is not None:
        raise ValueError(
            f"`objective` has the group objective {objective.group_objective!r}, which compares the completions of a "
            "prompt, but TRL shuffles them over the micro-batches; pass an objective without, or train with "
            "lightning_modules."
        )
    if args.top_entropy_quantile < 1 and (getattr(args, "entropy_coef", 0) or getattr(args, "use_adaptive_entropy", 0)):
        raise ValueError(
            f"`entropy_coef` is {args.entropy_coef} and `top_entropy_quantile` {args.top_entropy_quantile}, so the "
            "bonus would be a mean over tokens that each micro-batch selects, whose number in the optimizer step is "
            "unknown; pass `penalties=[EntropyBonus(...)]` to the recipe of `objective` instead."
        )
    correction = sampler_correction(args)
    if objective.sequence_transform is not None and isinstance(correction, TokenCorrection):
        raise ValueError(
            f"`vllm_importance_sampling_mode` is {args.vllm_importance_sampling_mode!r}, but the sequence transform "
            f"{objective.sequence_transform!r} acts on completions; pass 'sequence_mask' or 'sequence_truncate'."
        )
    if correction is not None and _contains(objective.token_transform, GammaKernel):
        raise ValueError(
            "`vllm_importance_sampling_correction` is True, but the token transform of `objective` has GammaKernel, "
            "and TRL's weight of the sampler is a factor of the ratio inside this kernel, where a correction here is a "
            "factor of its value; pass False."
        )
    require_passed(objective, _batch(correction), "TRL")


def _contains(part: object, kind: type) -> bool:
    """Return True if a part is of this kind, or is made of one."""
    if isinstance(part, Sequence):
        return any(_contains(each, kind) for each in part)
    inside = vars(part).values() if isinstance(part, RatioTransform) else ()
    return isinstance(part, kind) or any(_contains(each, kind) for each in inside)


def _batch(correction: SamplerCorrection | None) -> PolicyBatch:
    """Return a batch with all that the trainer passes to an objective."""
    zeros, mask = torch.zeros(1, 2), torch.ones(1, 2, dtype=torch.bool)
    return PolicyBatch(
        old_log_probs=zeros,
        response_mask=mask,
        advantages=torch.ones(1),
        totals=StepTotals(completions=1, tokens=2, progress=0.0, reward_mean=0.0, reward_std=0.0),
        ref_log_probs=zeros,
        correction=CorrectionWeights() if correction is None else correction(zeros, zeros, mask),
    )


def sampler_correction(args: Any) -> SamplerCorrection | None:
    """Return the correction for vLLM's log-probabilities that the options name; None without vLLM or without it.

    Raises:
        ValueError: there is no such mode, or the bounds are out of order.
    """
    if not (args.use_vllm and args.vllm_importance_sampling_correction):
        return None
    mode, bounds = args.vllm_importance_sampling_mode, vars(args)
    if mode not in _MODES:
        raise ValueError(f"`vllm_importance_sampling_mode` is {mode!r}; pass one of {', '.join(_MODES)}.")
    level, _, outside = mode.partition("_")
    # Before TRL 1.6 there is only an upper bound, under another name.
    upper = next(name for name in _UPPER if name in bounds)
    largest, smallest = bounds[upper], bounds.get(_LOWER)
    kinds = {"token": TokenCorrection, "sequence": SequenceCorrection}
    try:
        return kinds[level](
            max_weight=math.inf if largest is None else largest,
            min_weight=0.0 if smallest is None else smallest,
            outside=outside,
        )
    except ValueError as error:
        raise ValueError(
            f"`{upper}` is {largest} and `{_LOWER}` {smallest}, but they are the bounds of a weight; pass a positive "
            "number, and one between 0 and it, or None for no bound."
        ) from error


def with_kl(objective: PolicyObjective, args: Any) -> tuple[PolicyObjective, Any]:
    """Return the objective with the penalty of `beta`, and options by which TRL evaluates a reference if needed.

    TRL reduces its KL as its loss, so the penalty has the reduction of the objective. Penalties that are adapted are
    those of the objective that was given.

    Raises:
        ValueError: `beta` is negative or not finite, or it is not 0 and the objective has a penalty that reads the
            reference.
    """
    if not 0 <= args.beta < math.inf:
        raise ValueError(f"`beta` is {args.beta}; pass a finite number, 0 or more, 0 for no penalty.")
    readers = [penalty for penalty in objective.penalties if penalty.needs_reference]
    if args.beta and readers:
        raise ValueError(
            f"`beta` is {args.beta}, but `objective` has penalties of its own for the distance from the reference, "
            f"{readers}; leave `beta` at 0 or leave them out."
        )
    if readers:
        args = copy(args)
        args.beta = 1.0  # any number but 0 makes TRL evaluate the reference; the loss does not read it
    elif args.beta:
        weighted = getattr(args, "use_bias_correction_kl", False)
        cost = ImportanceWeighted(K3Penalty(args.beta)) if weighted else K3Penalty(args.beta)
        objective = copy(objective)
        objective.penalties = (*objective.penalties, cost)
    return objective, args
