"""Stand-in for NeMo RL, which is on no package index: its loss by hand, and the names that the adapter imports.

The signatures and the keys of the data follow NVIDIA-NeMo/RL as of autumn 2026; its code was read and not run. The loss
is written down from its formula.
"""

import sys
from dataclasses import dataclass
from types import ModuleType

import torch


@dataclass
class ClippedPGLossConfig:
    """Fields of NeMo RL's configuration that a test sets, with its defaults."""

    token_level_loss: bool = True
    sequence_level_importance_ratios: bool = False
    ratio_clip_min: float = 0.2
    ratio_clip_max: float = 0.2
    ratio_clip_c: float | None = None
    reference_policy_kl_penalty: float = 0.01
    reference_policy_kl_type: str = "k3"
    use_importance_sampling_correction: bool = False
    force_on_policy_ratio: bool = False


class ClippedPGLossFn:
    """The clipped loss of PPO, with a mean over tokens or over completions, and weights for the sampler."""

    input_type = "logprob"

    def __init__(self, cfg, use_fused_linear_logprobs=False):
        self.cfg, self.use_fused_linear_logprobs = cfg, use_fused_linear_logprobs
        self.force_on_policy_ratio = cfg.force_on_policy_ratio
        self.loss_type = "token_level" if cfg.token_level_loss else "sequence_level"

    def __call__(self, next_token_logprobs, data, global_valid_seqs, global_valid_toks):
        cfg, tokens = self.cfg, data["token_mask"][:, 1:]
        advantages, old = data["advantages"][:, 1:], data["prev_logprobs"][:, 1:]
        log_ratio = next_token_logprobs - old
        if cfg.sequence_level_importance_ratios:
            log_ratio = ((log_ratio * tokens).sum(1, keepdim=True) / tokens.sum(1, keepdim=True)).expand_as(log_ratio)
        ratio = log_ratio.exp()
        clipped = ratio.clamp(1 - cfg.ratio_clip_min, 1 + cfg.ratio_clip_max)
        losses = -torch.minimum(ratio * advantages, clipped * advantages)
        if cfg.use_importance_sampling_correction:
            losses = losses * (old - data["generation_logprobs"][:, 1:]).exp()
        valid = data["sample_mask"]
        if cfg.token_level_loss:
            loss = (losses * tokens * valid.unsqueeze(1)).sum() / global_valid_toks
        else:
            loss = ((losses * tokens).sum(1) / tokens.sum(1) * valid).sum() / global_valid_seqs
        return loss, {"loss": loss.item(), "num_valid_samples": valid.sum().item(), "token_mult_prob_error": 1.0}


def install(monkeypatch):
    """Let the adapter import this in place of NeMo RL, for one test session."""
    for name in ("nemo_rl", "nemo_rl.algorithms", "nemo_rl.algorithms.loss"):
        monkeypatch.setitem(sys.modules, name, ModuleType(name))
    module = ModuleType("nemo_rl.algorithms.loss.loss_functions")
    module.ClippedPGLossFn = ClippedPGLossFn
    monkeypatch.setitem(sys.modules, module.__name__, module)
