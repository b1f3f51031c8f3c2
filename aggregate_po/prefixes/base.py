"""Interface of prefix aggregates."""

from abc import ABC, abstractmethod
from dataclasses import replace

import torch

from aggregate_po.batch import PerToken
from aggregate_po.shapes import require_shape
from aggregate_po.token_ratios import TokenRatios
from aggregate_po.transforms.compose import carried


class PrefixAggregate(ABC):
    """Replaces the log ratio of each token by an aggregate of the log ratios of its prefix, the token included.

    The past is a constant to the gradient: the aggregate has derivative one with respect to the token's own log ratio
    and zero with respect to all others.

    Subclass requirements:

    - Implement `log_prefix`. It must be causal: the result at a token depends on the response tokens up to it and on
      nothing after it, such as `tokens.lengths`. It must be finite for log ratios within +-80. No gradient is needed.
    - Masked tokens, such as tool output in the middle of a completion, must have no effect: `tokens.positions` counts
      response tokens only.
    - Override `takes_mean_weights` to return True if there is a definition for tokens that count by weights, and read
      `tokens.mean_weights`.
    - Leave `__call__` as it is. It fills masked tokens with zero, calls `log_prefix` outside any graph, and gives the
      result its derivative.

    `aggregate_po.testing.check_prefix_aggregate` checks these requirements.
    """

    @property
    def takes_mean_weights(self) -> bool:
        """Whether the aggregate reads `tokens.mean_weights`; an objective refuses weights otherwise."""
        return False

    @abstractmethod
    def log_prefix(self, tokens: TokenRatios) -> PerToken:
        """Return the log of the aggregate of each prefix, arbitrary on masked tokens; shape `batch time`.

        Args:
            tokens: Context before any transform; `log_ratio` is detached and 0 on masked tokens.
        """

    def __call__(self, tokens: TokenRatios) -> PerToken:
        """Return the log aggregates with derivative one in the token's own log ratio, 0 on masked tokens.

        Raises:
            ValueError: `log_prefix` returned another shape.
        """
        mask = tokens.response_mask
        with torch.no_grad():
            values = self.log_prefix(replace(tokens, log_ratio=torch.where(mask, tokens.log_ratio, 0)))
        require_shape(self, "log_prefix", values, "`batch time`", mask.shape)
        return torch.where(mask, carried(values, tokens.log_ratio), 0)
