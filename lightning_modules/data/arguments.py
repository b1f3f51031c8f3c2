"""Validation of the arguments of the data module."""

from __future__ import annotations

import math
from collections.abc import Sequence
from typing import TypeVar, get_args

import torch
from lightning import Trainer
from torch import Tensor

from aggregate_po import AdvantageEstimator, PolicyObjective, SamplerCorrection, TokenWeighting
from aggregate_po.arguments import require_non_negative, require_whole
from lightning_modules.data.evaluation import EvaluationName
from lightning_modules.data.rollout import LogProbSource
from lightning_modules.data.schemes import SamplingScheme
from lightning_modules.data.spans import SpanRule
from lightning_modules.model.trained import TrainedPolicy
from lightning_modules.rewards import FailedVerdictRule, TruncationRule
from lightning_modules.rollouts import RolloutEngine
from lightning_modules.validation import require_one_of

_Policy = TypeVar("_Policy", bound=TrainedPolicy)


def require_sampling(group_size: int, temperature: float, kl_in_reward: float, evaluations: Sequence[str]) -> None:
    """Check the arguments of sampling, rewards and evaluations.

    Raises:
        ValueError: a number is out of its range.
    """
    if group_size < 2:
        raise ValueError(
            f"`group_size` is {group_size}; pass 2 or more, since an advantage compares completions of one prompt."
        )
    require_whole(2, group_size=group_size)
    if not 0 < temperature < math.inf:
        raise ValueError(f"`temperature` is {temperature}; pass a positive number, 1.0 for the policy itself.")
    require_non_negative("pass 0 for none, or a positive weight that is finite", kl_in_reward=kl_in_reward)
    names = get_args(EvaluationName)
    if isinstance(evaluations, str) or not evaluations or sorted(set(evaluations) & {*names}) != sorted(evaluations):
        raise ValueError(
            f"`evaluations` is {evaluations!r}; pass a list with {' or '.join(names)}, or both. The report decides "
            "when held-out prompts are evaluated."
        )


def require_parts(
    advantages: object,
    correction: SamplerCorrection | None,
    old_log_probs: str,
    truncated: str,
    failed_verdicts: str,
    schemes: Sequence[object],
    token_weights: object,
    spans: object,
) -> None:
    """Check the names of the rules, the types of the parts, and that corrections and weights have what they need.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: a name is unknown, or there is a correction or a rule that needs entropies, but the sampler is the
            behavior policy.
    """
    require_one_of(TruncationRule, truncated=truncated)
    require_one_of(FailedVerdictRule, failed_verdicts=failed_verdicts)
    require_one_of(LogProbSource, old_log_probs=old_log_probs)
    if correction is not None and old_log_probs == "sampler":
        raise ValueError(
            f"`correction` is {correction!r}, but `old_log_probs` is 'sampler', whose own log-probabilities need "
            "none; pass old_log_probs='trainer'."
        )
    if not isinstance(advantages, AdvantageEstimator):
        raise TypeError(
            f"`advantages` is {advantages!r}; pass an instance of a subclass of aggregate_po.AdvantageEstimator, "
            "such as aggregate_po.advantages.GroupCentered()."
        )
    if token_weights is not None and not isinstance(token_weights, TokenWeighting):
        raise TypeError(
            f"`token_weights` is {token_weights!r}; pass an instance of a subclass of aggregate_po.TokenWeighting, "
            "such as aggregate_po.TopEntropy()."
        )
    if token_weights is not None and token_weights.needs_entropies and old_log_probs == "sampler":
        raise ValueError(
            f"`token_weights` is {token_weights!r}, but `old_log_probs` is 'sampler', which returns no entropies; pass "
            "old_log_probs='trainer', whose forward pass computes them."
        )
    if spans is not None and not isinstance(spans, SpanRule):
        raise TypeError(
            f"`spans` is {spans!r}; pass an instance of a subclass of lightning_modules.SpanRule, such as "
            "lightning_modules.Sentences()."
        )
    for scheme in schemes:
        if not isinstance(scheme, SamplingScheme):
            raise TypeError(
                f"`schemes` has {scheme!r}; pass instances of subclasses of lightning_modules.SamplingScheme."
            )


def require_rewards_known(advantages: object) -> None:
    """Check that an advantage estimator needs no reward of each step, which the tokens of a language model lack.

    Raises:
        ValueError: it needs them.
    """
    if isinstance(advantages, AdvantageEstimator) and advantages.needs_step_rewards:
        raise ValueError(
            f"`advantages` is {advantages!r}, which needs a reward of each step; only FlowDataModule has them, so pass "
            "another estimator."
        )


def require_concurrent(rollouts: RolloutEngine, overlap: bool) -> None:
    """Check that an engine that generates during training is in another process.

    Raises:
        ValueError: it is in the training process.
    """
    if overlap and not rollouts.concurrent:
        raise ValueError(
            f"`overlap` is True, but {type(rollouts).__name__} generates in the training process; pass `rollouts` that "
            "generate in another one, such as VLLMServers."
        )


def require_unweighted(
    objective: PolicyObjective, estimated: Tensor, weighted: Tensor, schemes: Sequence[SamplingScheme]
) -> None:
    """Check that no sampling scheme has weighted completions that a group objective compares.

    Raises:
        ValueError: the objective has a group objective, and advantages were weighted.
    """
    if objective.group_objective is not None and not torch.equal(estimated, weighted):
        raise ValueError(
            f"`schemes` {schemes!r} weighted the advantages, which `group_objective` {objective.group_objective!r} "
            "takes for labels or scores; pass schemes that only choose groups, such as DynamicSampling."
        )


def required_policy(trainer: Trainer, kind: type[_Policy], module_name: str) -> _Policy:
    """Return the policy of the trainer's module.

    Args:
        trainer: trainer of the policy.
        kind: class of the policy.
        module_name: name of a class of modules with such a policy, for the error message.

    Raises:
        TypeError: the module has no `policy` of this class.
    """
    module = trainer.lightning_module
    policy = getattr(module, "policy", None)
    if not isinstance(policy, kind):
        raise TypeError(
            f"the trainer trains {type(module).__name__}, which has no `policy` of the class {kind.__name__}; pass a "
            f"{module_name}."
        )
    return policy
