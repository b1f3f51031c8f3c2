"""Cross-entropy between a target distribution over the completions of a group and the policy's."""

from dataclasses import dataclass

from typing_extensions import override

from aggregate_po.arguments import require_positive
from aggregate_po.group_objectives.base import GroupObjective, GroupValues, PerGroup, PerMember
from aggregate_po.masked import masked_logsumexp, masked_softmax, masked_sum


@dataclass(frozen=True)
class TargetCrossEntropy(GroupObjective):
    r"""Log-likelihood of a target distribution over the completions of a group (eq. 58).

    The value is $\sum_i q_i \log p_i$. The policy's distribution $p$ is the softmax of the log-probabilities of the
    completions, $\log \mu_i + \ell_i$, where the log value $\ell_i$ is the log ratio of the whole completion; the
    target $q_i \propto \mu_i e^{A_i / \eta}$ is that of the behavior policy, tilted by the advantages. Its gradient is
    $q_i - p_i$.

    Args:
        temperature: Temperature $\eta$ of the tilt.

    Raises:
        ValueError: the temperature is not positive.

    Reference: TPO, arXiv:2604.06159, where advantages are z-scores by the standard deviation of the population,
    `GroupNormalized(ddof=0, delta=0)`.
    """

    temperature: float = 1.0

    def __post_init__(self) -> None:
        require_positive(temperature=self.temperature)

    @override
    def __call__(self, groups: GroupValues) -> PerGroup:
        log_probs = groups.old_log_probs + groups.log_values
        log_policy = log_probs - masked_logsumexp(log_probs, groups.mask).unsqueeze(-1)
        return masked_sum(self._target(groups) * log_policy, groups.mask)

    @override
    def derivatives(self, groups: GroupValues) -> PerMember:
        return self._target(groups) - masked_softmax(groups.old_log_probs + groups.log_values, groups.mask)

    def _target(self, groups: GroupValues) -> PerMember:
        return masked_softmax(groups.old_log_probs + groups.advantages / self.temperature, groups.mask)
