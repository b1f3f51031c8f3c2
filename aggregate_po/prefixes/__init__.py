"""Prefix aggregates: each token's ratio replaced by an aggregate of the ratios up to it."""

from aggregate_po.prefixes.base import PrefixAggregate
from aggregate_po.prefixes.kalman import PrefixKalmanFilter
from aggregate_po.prefixes.running import PrefixGeometricMean, PrefixMinimum, PrefixProduct

__all__ = ["PrefixAggregate", "PrefixGeometricMean", "PrefixKalmanFilter", "PrefixMinimum", "PrefixProduct"]
