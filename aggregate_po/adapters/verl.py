"""Objectives as a policy loss of verl, and advantage estimators under their names.

verl loads this module by the entry point `verl.plugins` whenever it is imported, in the driver and in all workers.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Any

import torch
from torch import Tensor
from verl.trainer.ppo.core_algos import register_policy_loss
from verl.workers.config import PolicyLossConfig

from aggregate_po.adapters.micro_batches import first, folded, require_objective, require_of_one_micro_batch
from aggregate_po.adapters.verl_estimators import register_estimators
from aggregate_po.adapters.verl_options import require_defaults_of_actor, require_defaults_of_loss
from aggregate_po.batch import PerToken, PolicyBatch
from aggregate_po.corrections import CorrectionWeights
from aggregate_po.named import objective_of
from aggregate_po.totals import StepTotals
from aggregate_po.weight_sums import GradientWeightSums

NAME = "aggregate_po"
_CORRECTIONS = ("token", "sequence")
_INFO = ("dp_size", "batch_num_tokens", "global_batch_size")


@dataclass
class ObjectiveLossConfig(PolicyLossConfig):
    """Configuration of verl's policy loss with an objective of this library, for its `_target_`.

    Args:
        loss_mode: Leave it. It becomes the name under which verl finds the loss of the objective, in place of
            `vanilla`, which is in verl's configuration.
        objective: Name of a recipe, or import path of a recipe, an objective or an aggregator; see `objective_of`. With
            a `_target_` of its own, Hydra builds the objective.
        arguments: Arguments of the recipe, function or class.
        correction: Form of the rollout correction's weights, which arrive for each token in either form: "token" if
            `rollout_is` is `token`, "sequence" if it is `sequence`.

    Raises:
        ValueError: there is no such objective, one of its parts needs what verl does not pass to a loss, or an option
            of a loss of verl is set.
    """

    loss_mode: str = NAME
    objective: Any = "grpo"
    arguments: dict[str, Any] = field(default_factory=dict)
    correction: str = "token"

    def __post_init__(self) -> None:
        if self.loss_mode not in (NAME, PolicyLossConfig().loss_mode):
            raise ValueError(f"`loss_mode` is {self.loss_mode!r}, but the objective is the loss; leave it out.")
        self.__dict__["loss_mode"] = NAME
        if self.correction not in _CORRECTIONS:
            raise ValueError(f"`correction` is {self.correction!r}; pass one of {', '.join(_CORRECTIONS)}.")
        require_defaults_of_loss(self)
        if isinstance(self.objective, str):
            self.__dict__["objective"] = objective_of(self.objective, **self.arguments)
        elif self.arguments:
            raise ValueError(f"`arguments` are {self.arguments}, but `objective` is no name; pass them to `_target_`.")
        _require_defined(self.objective)


@register_policy_loss(NAME)
def policy_loss(
    old_log_prob: PerToken,
    log_prob: PerToken,
    advantages: PerToken,
    response_mask: PerToken,
    loss_agg_mode: str = "token-mean",
    config: Any = None,
    rollout_is_weights: PerToken | None = None,
) -> tuple[Tensor, dict[str, float]]:
    """Return the negative objective of a micro-batch, and diagnostics; gradients add up over micro-batches and ranks.

    The normalizer of the objective takes the place of `loss_agg_mode`, which still applies to the terms that verl adds:
    its KL loss and its entropy bonus.

    Args:
        old_log_prob: log-probabilities under the behavior policy; shape `batch time`; nats.
        log_prob: log-probabilities under the trained policy; shape `batch time`; nats.
        advantages: advantages per token; where those of a completion are equal, they are that of the completion; shape
            `batch time`.
        response_mask: True on trained tokens; shape `batch time`.
        loss_agg_mode: reduction of the terms that verl adds.
        config: configuration of the actor, whose `policy_loss` is an `ObjectiveLossConfig`.
        rollout_is_weights: weights that correct for the sampler, 0 on tokens that are masked; shape `batch time`.

    Raises:
        TypeError: `policy_loss` of the configuration has another class.
        ValueError: the actor sets an option of a loss of verl, totals are missing, or a part has no definition for the
            advantages or the weights.
    """
    settings = getattr(config, "policy_loss", None)
    if not isinstance(settings, ObjectiveLossConfig):
        raise TypeError(
            f"`actor.policy_loss` is a {type(settings).__name__}; set its `_target_` to "
            f"{ObjectiveLossConfig.__module__}.{ObjectiveLossConfig.__name__}."
        )
    require_defaults_of_actor(config)
    totals, ranks = _totals(config.global_batch_info)
    mask = response_mask.bool()
    batch = PolicyBatch(
        old_log_probs=old_log_prob,
        response_mask=mask,
        advantages=folded(advantages, mask),
        totals=totals,
        correction=_correction(rollout_is_weights, mask, settings.correction),
    )
    evaluated = settings.objective.evaluate(log_prob, batch)
    sums = GradientWeightSums.of(evaluated.weights, log_prob.detach(), batch, evaluated.exponents)
    metrics = {f"actor/{name}": float(value) for name, value in sums.metrics().items()}
    return -ranks * evaluated.value, metrics


def _require_defined(found: object) -> None:
    """Check that an objective needs nothing that verl does not pass to a loss."""
    objective = require_objective(found)
    if objective.needs_reference:
        raise ValueError(
            f"`objective` is {objective!r}, whose penalty reads a reference, which verl does not pass to a loss; leave "
            "the penalty out and set `actor.use_kl_loss`."
        )
    require_of_one_micro_batch(objective, "verl")


def _totals(info: Any) -> tuple[StepTotals, int]:
    """Return the totals of the optimizer step, and the number of ranks over which verl averages gradients."""
    missing = [name for name in _INFO if info.get(name) is None]
    if missing:
        raise ValueError(
            f"`config.global_batch_info` has no {' and no '.join(missing)}, so the totals of the optimizer step are "
            "unknown; call the loss by verl's `ppo_loss`, which sets them."
        )
    return StepTotals(completions=info["global_batch_size"], tokens=info["batch_num_tokens"]), info["dp_size"]


def _correction(weights: PerToken | None, mask: PerToken, form: str) -> CorrectionWeights:
    """Return the correction of a micro-batch; a weight of 0 masks its token or its completion."""
    if weights is None:
        return CorrectionWeights()
    if form == "sequence":
        of_first = first(weights, mask)
        if (mask & (weights != of_first.unsqueeze(1))).any():
            raise ValueError(
                "`rollout_is_weights` differ within a completion, but `correction` is 'sequence'; pass 'token', or set "
                "`algorithm.rollout_correction.rollout_is` to sequence."
            )
        return CorrectionWeights(log_sequence=of_first.log())
    kept = weights > 0
    return CorrectionWeights(log_token=torch.where(kept, weights, 1).log(), kept=kept | ~mask)


register_estimators(NAME)
