"""Published objectives as short compositions of the parts."""

from aggregate_po.recipes.apmpo import apmpo
from aggregate_po.recipes.cispo import cispo
from aggregate_po.recipes.ctpo import ctpo, ctpo_geometric
from aggregate_po.recipes.dapo import dapo
from aggregate_po.recipes.dppo import dppo_kl, dppo_tv
from aggregate_po.recipes.dr_grpo import dr_grpo
from aggregate_po.recipes.dro import dro
from aggregate_po.recipes.drpo import drpo
from aggregate_po.recipes.espo import espo
from aggregate_po.recipes.fipo import fipo
from aggregate_po.recipes.flow_dppo import flow_dppo
from aggregate_po.recipes.flow_grpo import flow_grpo
from aggregate_po.recipes.fspo import fspo
from aggregate_po.recipes.gmpo import gmpo, gmpo_no_clip, gmpo_sequence_clip, gmpo_without_length_norm
from aggregate_po.recipes.gpg import gpg
from aggregate_po.recipes.grpo import grpo, grpo_dual_clip, grpo_off_policy_mask, grpo_wide_clip
from aggregate_po.recipes.grpo_guard import grpo_guard
from aggregate_po.recipes.gspo import gspo, gspo_token
from aggregate_po.recipes.hmpo import hmpo
from aggregate_po.recipes.holder_po import holder_po
from aggregate_po.recipes.kpo import kpo
from aggregate_po.recipes.luspo import luspo
from aggregate_po.recipes.minpro import minpro
from aggregate_po.recipes.p_gspo import p_gspo
from aggregate_po.recipes.pmpo import pmpo
from aggregate_po.recipes.r2vpo import r2vpo
from aggregate_po.recipes.real import real
from aggregate_po.recipes.sapo import sapo
from aggregate_po.recipes.spo import spo
from aggregate_po.recipes.sspo import sspo, sspo_arctan
from aggregate_po.recipes.tic_grpo import tic_grpo
from aggregate_po.recipes.tpo import tpo
from aggregate_po.recipes.vespo import vespo
from aggregate_po.recipes.vgpo import vgpo

__all__ = [
    "apmpo",
    "cispo",
    "ctpo",
    "ctpo_geometric",
    "dapo",
    "dppo_kl",
    "dppo_tv",
    "dr_grpo",
    "dro",
    "drpo",
    "espo",
    "fipo",
    "flow_dppo",
    "flow_grpo",
    "fspo",
    "gmpo",
    "gmpo_no_clip",
    "gmpo_sequence_clip",
    "gmpo_without_length_norm",
    "gpg",
    "grpo",
    "grpo_dual_clip",
    "grpo_guard",
    "grpo_off_policy_mask",
    "grpo_wide_clip",
    "gspo",
    "gspo_token",
    "hmpo",
    "holder_po",
    "kpo",
    "luspo",
    "minpro",
    "p_gspo",
    "pmpo",
    "r2vpo",
    "real",
    "sapo",
    "spo",
    "sspo",
    "sspo_arctan",
    "tic_grpo",
    "tpo",
    "vespo",
    "vgpo",
]
