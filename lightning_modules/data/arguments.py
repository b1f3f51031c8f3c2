"""Validation of the arguments of the data module."""

from __future__ import annotations

import math
from collections.abc import Sequence

from aggregate_po import AdvantageEstimator, SamplerCorrection
from aggregate_po.arguments import require_non_negative
from lightning_modules.data.schemes import SamplingScheme


def require_sampling(group_size: int, temperature: float, kl_in_reward: float) -> None:
    """Check the numeric arguments of sampling and rewards.

    Raises:
        ValueError: a number is out of its range.
    """
    if group_size < 2:
        raise ValueError(
            f"`group_size` is {group_size}; pass 2 or more, since an advantage compares completions of one prompt."
        )
    if not 0 < temperature < math.inf:
        raise ValueError(f"`temperature` is {temperature}; pass a positive number, 1.0 for the policy itself.")
    require_non_negative("pass 0 for none, or a positive weight that is finite", kl_in_reward=kl_in_reward)


def require_parts(
    advantages: object, correction: SamplerCorrection | None, old_log_probs: str, schemes: Sequence[object]
) -> None:
    """Check the types of the estimator and the schemes, and that a correction has log-probabilities to correct.

    Raises:
        TypeError: an argument has the wrong type.
        ValueError: there is a correction, but the sampler is the behavior policy.
    """
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
    for scheme in schemes:
        if not isinstance(scheme, SamplingScheme):
            raise TypeError(
                f"`schemes` has {scheme!r}; pass instances of subclasses of lightning_modules.SamplingScheme."
            )
