"""Running product, geometric mean and minimum of the token ratios."""

from dataclasses import dataclass

import torch
from torch.nn.functional import pad
from typing_extensions import override

from aggregate_po.batch import PerToken
from aggregate_po.prefixes.base import PrefixAggregate
from aggregate_po.token_ratios import TokenRatios


@dataclass(frozen=True)
class PrefixProduct(PrefixAggregate):
    r"""Product of the ratios up to each token, $\sum_{k \le t} x_k$ in logs: the ratio of the prefix.

    Reference: CTPO, arXiv:2605.07331.
    """

    @override
    def log_prefix(self, tokens: TokenRatios) -> PerToken:
        return tokens.log_ratio.cumsum(dim=-1)


@dataclass(frozen=True)
class PrefixGeometricMean(PrefixAggregate):
    r"""Geometric mean of the ratios up to each token, $\frac1t \sum_{k \le t} x_k$ in logs.

    Reference: the second mode of CTPO, arXiv:2605.07331.
    """

    @override
    def log_prefix(self, tokens: TokenRatios) -> PerToken:
        return tokens.log_ratio.cumsum(dim=-1) / tokens.positions


@dataclass(frozen=True)
class PrefixMinimum(PrefixAggregate):
    r"""Ratio of each token times the smallest ratio before it, $x_t + \min_{k < t} x_k$ in logs; $x_1$ at the first.

    Reference: MinPRO, arXiv:2601.22718.
    """

    @override
    def log_prefix(self, tokens: TokenRatios) -> PerToken:
        values = torch.where(tokens.response_mask, tokens.log_ratio, torch.inf)
        before = pad(values, (1, 0), value=torch.inf)[..., :-1]
        smallest = before.cummin(dim=-1).values
        return tokens.log_ratio + torch.where(smallest == torch.inf, 0, smallest)
