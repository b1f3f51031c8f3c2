"""Token aggregators: from the token ratios of a completion to one ratio."""

from aggregate_po.aggregators.base import EvaluatedAggregator, HomogeneousMean, Mean, TokenAggregator
from aggregate_po.aggregators.kolmogorov import KolmogorovMean
from aggregate_po.aggregators.lehmer import LehmerMean
from aggregate_po.aggregators.nested import NestedMean
from aggregate_po.aggregators.power import ArithmeticMean, GeometricMean, PowerMean
from aggregate_po.aggregators.product import LengthScaledProduct, Product

__all__ = [
    "ArithmeticMean",
    "EvaluatedAggregator",
    "GeometricMean",
    "HomogeneousMean",
    "KolmogorovMean",
    "LehmerMean",
    "LengthScaledProduct",
    "Mean",
    "NestedMean",
    "PowerMean",
    "Product",
    "TokenAggregator",
]
