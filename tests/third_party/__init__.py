"""Parts as a user would write them: values only, every derivative is left to the base class."""

from tests.third_party.huber import PseudoHuberMean
from tests.third_party.lehmer import LehmerMean
from tests.third_party.others import AsinhMean, CompletionSum, EarlierCountsMore, PrefixMaximum, Proximity, TanhLimit
from tests.third_party.self_dual import SelfDualMean

__all__ = [
    "AsinhMean",
    "CompletionSum",
    "EarlierCountsMore",
    "LehmerMean",
    "PrefixMaximum",
    "Proximity",
    "PseudoHuberMean",
    "SelfDualMean",
    "TanhLimit",
]
