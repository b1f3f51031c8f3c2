"""Options of verl's actor that its losses read, and what takes their place in an objective."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import MISSING, fields
from typing import Any

from verl.workers.config import ActorConfig, PolicyLossConfig

_CLIP = "pass the recipe its bounds, `clip_low` and `clip_high` for most"
_OF_ACTOR: Mapping[str, str] = {
    **dict.fromkeys(("clip_ratio", "clip_ratio_low", "clip_ratio_high"), _CLIP),
    "clip_ratio_c": "pass grpo_dual_clip with `max_ratio`, or a NegativeCap after the clip of another recipe",
    "tau_pos": "pass sapo with `tau_positive`",
    "tau_neg": "pass sapo with `tau_negative`",
    "loss_scale_factor": "pass dr_grpo with `max_completion_length`, or a ConstantLength as the normalizer",
}
_OF_ADDED_TERMS = ("loss_scale_factor",)  # which verl's KL loss and entropy bonus read too
_NO_COUNTERPART = "pass nothing in its place, because its loss selects tokens of a micro-batch as no objective does"
_OF_LOSS: Mapping[str, str] = {
    **dict.fromkeys(("clip_cov_ratio", "clip_cov_lb", "clip_cov_ub", "kl_cov_ratio", "ppo_kl_coef"), _NO_COUNTERPART),
    "dro_beta": "pass dro with `coefficient`",
    "rollout_correction": "set `algorithm.rollout_correction`, whose weights reach the objective without `bypass_mode`",
}
# Fields of the policy loss that are read here.
_READ = ("loss_mode",)


def require_defaults_of_loss(settings: PolicyLossConfig) -> None:
    """Raise for an option of the policy loss that the objective replaces.

    Raises:
        ValueError: such an option differs from its default.
    """
    for name, default in vars(PolicyLossConfig()).items():
        if not name.startswith("_") and name not in _READ and getattr(settings, name) != default:
            _refuse(name, getattr(settings, name), default, _OF_LOSS.get(name, "pass its counterpart to the objective"))


def require_defaults_of_actor(actor: Any) -> None:
    """Raise for an option of the actor that the objective replaces; None is none.

    Raises:
        ValueError: such an option differs from its default.
    """
    defaults = {field.name: field.default for field in fields(ActorConfig) if field.default is not MISSING}
    adds_terms = bool(getattr(actor, "use_kl_loss", False) or getattr(actor, "entropy_coeff", 0))
    for name, remedy in _OF_ACTOR.items():
        value, default = getattr(actor, name, None), defaults.get(name)
        if value not in (None, default) and not (adds_terms and name in _OF_ADDED_TERMS):
            _refuse(f"actor.{name}", value, default, remedy)


def _refuse(name: str, value: object, default: object, remedy: str) -> None:
    raise ValueError(
        f"`{name}` is {value!r}; {remedy}, and leave it at {default}: the objective replaces the losses of verl that "
        "read it."
    )
