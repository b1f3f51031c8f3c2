"""Estimator that bounds the advantages of another one."""

from dataclasses import dataclass

from typing_extensions import override

from aggregate_po.advantages.base import AdvantageEstimator, GroupedRewards
from aggregate_po.advantages.shaping import require_estimator
from aggregate_po.arguments import require_positive
from aggregate_po.batch import PerCompletion, PerToken


@dataclass(frozen=True)
class Clamped(AdvantageEstimator):
    r"""Advantages of another estimator between two bounds: $\min(\max(A, -b), b)$.

    Args:
        estimator: Estimator whose advantages are bounded.
        largest: Bound $b$ on the absolute advantage.

    Raises:
        TypeError: `estimator` is not an AdvantageEstimator.
        ValueError: `largest` is not positive.

    Example:
        >>> import torch
        >>> from aggregate_po.advantages import GroupCentered
        >>> Clamped(GroupCentered(), largest=0.5)(GroupedRewards(torch.tensor([1.0, 0.0, 0.0, 0.0]), group_size=4))
        tensor([ 0.5000, -0.2500, -0.2500, -0.2500])

    Reference: the official code of Flow-GRPO, arXiv:2505.05470, with a bound of 5.
    """

    estimator: AdvantageEstimator
    largest: float = 5.0

    def __post_init__(self) -> None:
        require_estimator(self.estimator)
        require_positive(largest=self.largest)

    @property
    @override
    def needs_step_rewards(self) -> bool:
        return self.estimator.needs_step_rewards

    @override
    def __call__(self, rollout: GroupedRewards) -> PerCompletion | PerToken:
        return self.estimator(rollout).clamp(-self.largest, self.largest)
