"""Advantage estimators in the registry of verl."""

from __future__ import annotations

from collections.abc import Hashable, Mapping, Sequence
from typing import Any

import torch
from verl.trainer.ppo.core_algos import register_adv_est

from aggregate_po import advantages as estimators
from aggregate_po.advantages import AdvantageEstimator, GroupedRewards
from aggregate_po.batch import PerToken
from aggregate_po.masked import masked_sum

# Options of verl's own estimators, with their defaults and what to choose instead.
_READ_BY_VERL: Mapping[str, tuple[object, str]] = {
    "norm_adv_by_std_in_grpo": (True, "an estimator that does not divide, such as GroupCentered"),
    "gamma": (1.0, "the name of a discounted one: register_estimator(name, WhitenedReturns(discount={}))"),
    "lam": (1.0, "gae of verl if there is a critic"),
    "gdpo_reward_keys": (None, "gdpo of verl"),
    "gdpo_reward_weights": (None, "gdpo of verl"),
}


def advantages_of(
    estimator: AdvantageEstimator, token_level_rewards: PerToken, response_mask: PerToken, index: Sequence[Hashable]
) -> PerToken:
    """Return advantages per token by an estimator of this library, 0 on padding; shape `batch time`.

    Args:
        estimator: advantage estimator.
        token_level_rewards: rewards, whose sum over a completion is that of the completion; shape `batch time`.
        response_mask: True on the tokens of the completions; shape `batch time`.
        index: name of each completion's group, in any order; shape `batch`.

    Raises:
        ValueError: groups differ in size.
    """
    mask = response_mask.bool()
    names = list(dict.fromkeys(index))
    number = {name: place for place, name in enumerate(names)}
    groups = torch.tensor([number[name] for name in index])
    sizes = groups.bincount()
    if len(others := (sizes != sizes[0]).nonzero()):
        odd = int(others[0])
        raise ValueError(
            f"`index` has {int(sizes[odd])} completions of the prompt {names[odd]!r}, but {int(sizes[0])} of "
            f"{names[0]!r}; pass groups of one size, or use an estimator of verl where prompts are filtered."
        )
    order = groups.argsort(stable=True).to(mask.device)
    rollout = GroupedRewards(
        rewards=masked_sum(token_level_rewards, mask)[order], group_size=int(sizes[0]), lengths=mask.sum(dim=-1)[order]
    )
    estimated = estimator(rollout)
    if estimated.ndim == 1:
        per_token = estimated.unsqueeze(-1).expand(-1, mask.shape[1])
    else:  # of the tokens that are trained: the output of a tool between them has no advantage
        places = (mask[order].cumsum(dim=-1) - 1).clamp(0, max(estimated.shape[1] - 1, 0))
        per_token = estimated.gather(-1, places)
    found = torch.zeros_like(token_level_rewards, dtype=estimated.dtype)
    found[order] = per_token
    return torch.where(mask, found, 0)


def register_estimator(name: str, estimator: AdvantageEstimator) -> None:
    """Register an advantage estimator with verl, for `algorithm.adv_estimator`.

    Args:
        name: name in the registry of verl.
        estimator: advantage estimator, which receives rewards and lengths.

    Raises:
        ValueError: the name is taken; when the estimator is called, if an option of estimators of verl is set.
    """

    @register_adv_est(name)
    def compute(
        token_level_rewards: PerToken, response_mask: PerToken, index: Sequence[Hashable], config: Any = None, **_: Any
    ) -> tuple[PerToken, PerToken]:
        _require_defaults(name, config)
        found = advantages_of(estimator, token_level_rewards, response_mask, index)
        return found, found


def _require_defaults(name: str, config: Any) -> None:
    """Check that no option of verl's own estimators is set, which those of this library do not read."""
    for option, (default, choice) in _READ_BY_VERL.items():
        value = getattr(config, option, default)
        if value != default:
            raise ValueError(
                f"`algorithm.{option}` is {value}, but {name!r} does not read it; leave it at {default}, and choose "
                f"{choice.format(value)}."
            )


def register_estimators(prefix: str) -> None:
    """Register each estimator that needs neither arguments nor more than rewards and lengths, with its name.

    Args:
        prefix: First part of the names, before a dot.
    """
    for name in estimators.__all__:
        kind = getattr(estimators, name)
        if not (isinstance(kind, type) and issubclass(kind, AdvantageEstimator)):
            continue
        try:
            estimator = kind()
            estimator(GroupedRewards(torch.tensor([0.0, 1.0]), group_size=2, lengths=torch.ones(2).long()))
        except (TypeError, ValueError):  # it is abstract or has arguments, or it needs more than rewards and lengths
            continue
        register_estimator(f"{prefix}.{name}", estimator)
