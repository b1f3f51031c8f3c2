"""Property tests for every kind of part: inherit one class and set one instance.

    from aggregate_po.testing import AggregatorContract

    class TestLehmerMean(AggregatorContract):
        aggregator = LehmerMean(2.0)

In a notebook, `check_aggregator(LehmerMean(2.0))` does the same. A failure report states the property, the part and
the smallest counterexample that was found.

In code a property is called a `law`, because `property` is a builtin of Python.
"""

from aggregate_po.extras import install_command

try:
    import hypothesis  # noqa: F401
except ImportError as error:
    raise ImportError(
        "`aggregate_po.testing` generates its inputs with hypothesis, which is not installed; "
        f"run {install_command('testing')}."
    ) from error

from aggregate_po.testing.advantages import AdvantageContract, check_advantage
from aggregate_po.testing.aggregators import AggregatorContract, check_aggregator
from aggregate_po.testing.exponents import ExponentRuleContract, check_exponent_rule
from aggregate_po.testing.group_objectives import GroupObjectiveContract, check_group_objective
from aggregate_po.testing.laws import Contract, KeptLaws, law
from aggregate_po.testing.normalizers import NormalizerContract, check_normalizer
from aggregate_po.testing.penalties import PenaltyContract, check_penalty
from aggregate_po.testing.prefixes import PrefixAggregateContract, check_prefix_aggregate
from aggregate_po.testing.suffixes import SuffixWeightContract, check_suffix_weight
from aggregate_po.testing.transforms import TransformContract, check_transform
from aggregate_po.testing.weightings import TokenWeightingContract, check_token_weighting

__all__ = [
    "AdvantageContract",
    "AggregatorContract",
    "Contract",
    "ExponentRuleContract",
    "GroupObjectiveContract",
    "KeptLaws",
    "NormalizerContract",
    "PenaltyContract",
    "PrefixAggregateContract",
    "SuffixWeightContract",
    "TokenWeightingContract",
    "TransformContract",
    "check_advantage",
    "check_aggregator",
    "check_exponent_rule",
    "check_group_objective",
    "check_normalizer",
    "check_penalty",
    "check_prefix_aggregate",
    "check_suffix_weight",
    "check_token_weighting",
    "check_transform",
    "law",
]
