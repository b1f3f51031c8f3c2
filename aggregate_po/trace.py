"""One pass through the parts of an objective, from log-probabilities to the log value of each completion."""

from dataclasses import dataclass

import torch
from einops import rearrange
from torch import Tensor

from aggregate_po.batch import PerCompletion, PerToken, TokenRatios
from aggregate_po.bounds import MAX_LOG_RATIO
from aggregate_po.masked import masked_sum
from aggregate_po.transforms.base import EvaluatedTransform


@dataclass(frozen=True)
class Trace:
    """What value and gradient weights of an objective have in common.

    Args:
        log_probs: under the policy that is trained, in working precision, 0 on padding; shape `batch time`.
        within: True on log ratios inside the bound; shape `batch time`.
        entering: what the token transform sees.
        token_transform: what the token transform gives; the identity where there is none.
        tokens: what the aggregator sees.
        sequence_transform: what the sequence transform gives; the identity where there is none.
        log_values: log value of each completion; shape `batch`.
        log_terms: terms of that value, where each token has an advantage of its own; shape `batch time`.
        completion: weight of each completion; shape `batch`.
    """

    log_probs: PerToken
    within: PerToken
    entering: TokenRatios
    token_transform: EvaluatedTransform
    tokens: TokenRatios
    sequence_transform: EvaluatedTransform
    log_values: PerCompletion
    log_terms: PerToken | None
    completion: PerCompletion

    @property
    def shares(self) -> Tensor:
        """Weight of the cost of one token: the completion's, over its length; shape `(batch, 1)`."""
        return rearrange(self.completion / self.entering.lengths.clamp(min=1), "batch -> batch 1")

    def average(self, per_token: PerToken) -> Tensor:
        """This batch's part of a cost's average over the optimiser step."""
        return masked_sum(self.shares * per_token, self.entering.response_mask).sum()

    def advantage_weighted(self) -> PerCompletion:
        """Value of each completion times its advantage, or the sum of its tokens' terms times theirs (eq. 19)."""
        advantages, terms = self.entering.advantages, self.log_terms
        if terms is None:
            return advantages.squeeze(-1) * self.log_values.clamp(max=MAX_LOG_RATIO).exp()
        # The bound is on the completion's value, so all its terms shrink, and stop, together.
        excess = rearrange((self.log_values - MAX_LOG_RATIO).clamp(min=0), "batch -> batch 1").detach()
        terms = torch.where(excess > 0, terms.detach() - excess, terms)
        return masked_sum(advantages * terms.exp(), self.entering.response_mask)
