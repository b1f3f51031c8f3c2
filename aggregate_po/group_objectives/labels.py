"""Classification of completions by their log values."""

from dataclasses import dataclass

import torch
from torch import Tensor
from typing_extensions import override

from aggregate_po.arguments import require_positive
from aggregate_po.group_objectives.base import GroupObjective, GroupValues, PerGroup, PerMember


@dataclass(frozen=True)
class LabelLogistic(GroupObjective):
    r"""Log-likelihood of a classifier of completions by their log values $\ell_i$, with advantages as labels (eq. 57).

    The value of a group is
    $-\log(1 + \sum_{A_i > 0} e^{-\ell_i / \tau}) - \log(1 + \sum_{A_i \le 0} e^{\ell_i / \tau})$. A completion is
    positive if its advantage is, and negative otherwise. A group without completions of both labels has value 0 and no
    gradient.

    Args:
        temperature: Temperature $\tau$.

    Raises:
        ValueError: the temperature is not positive.

    Reference: REAL, arXiv:2602.05630.
    """

    temperature: float = 0.5

    def __post_init__(self) -> None:
        require_positive(temperature=self.temperature)

    @override
    def __call__(self, groups: GroupValues) -> PerGroup:
        both, sides = self._sides(groups)
        costs = torch.stack([torch.logsumexp(logits, dim=-1) for _, logits in sides])
        return torch.where(both, -costs.sum(dim=0), 0)

    @override
    def derivatives(self, groups: GroupValues) -> PerMember:
        both, sides = self._sides(groups)
        pulls = [sign * torch.softmax(logits, dim=-1)[:, 1:] / self.temperature for sign, logits in sides]
        return torch.where(both.unsqueeze(-1), pulls[0] + pulls[1], 0)

    def _sides(self, groups: GroupValues) -> tuple[Tensor, list[tuple[float, Tensor]]]:
        """Return the mask of groups with both labels, and the sign and the logits of each label, a 0 in front."""
        positive, negative = groups.mask & (groups.advantages > 0), groups.mask & (groups.advantages <= 0)
        sides = []
        for sign, mask in ((1.0, positive), (-1.0, negative)):
            logits = torch.where(mask, -sign * groups.log_values / self.temperature, -torch.inf)
            sides.append((sign, torch.nn.functional.pad(logits, (1, 0))))
        return positive.any(dim=-1) & negative.any(dim=-1), sides
