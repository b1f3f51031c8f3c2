"""Group objectives: the value of a group of completions from the log values of all of them."""

from aggregate_po.group_objectives.base import CompletionValues, GroupObjective, GroupTerms, GroupValues, group_terms
from aggregate_po.group_objectives.labels import LabelLogistic
from aggregate_po.group_objectives.target import TargetCrossEntropy

__all__ = [
    "CompletionValues",
    "GroupObjective",
    "GroupTerms",
    "GroupValues",
    "LabelLogistic",
    "TargetCrossEntropy",
    "group_terms",
]
