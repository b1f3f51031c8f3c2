"""Published objectives as short compositions of the parts."""

from aggregate_po.recipes.dapo import dapo
from aggregate_po.recipes.dr_grpo import dr_grpo
from aggregate_po.recipes.gmpo import gmpo, gmpo_no_clip, gmpo_sequence_clip, gmpo_without_length_norm
from aggregate_po.recipes.grpo import grpo, grpo_wide_clip
from aggregate_po.recipes.gspo import gspo
from aggregate_po.recipes.hmpo import hmpo
from aggregate_po.recipes.holder_po import holder_po
from aggregate_po.recipes.pmpo import pmpo

__all__ = [
    "dapo",
    "dr_grpo",
    "gmpo",
    "gmpo_no_clip",
    "gmpo_sequence_clip",
    "gmpo_without_length_norm",
    "grpo",
    "grpo_wide_clip",
    "gspo",
    "hmpo",
    "holder_po",
    "pmpo",
]
