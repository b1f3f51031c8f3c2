"""Objectives as a loss function of NeMo RL."""

from __future__ import annotations

from typing import Any

import torch
from nemo_rl.algorithms.loss.loss_functions import ClippedPGLossFn
from torch import Tensor
from typing_extensions import override

from aggregate_po.adapters.micro_batches import folded, require_objective, require_of_one_micro_batch
from aggregate_po.batch import PerToken, PolicyBatch
from aggregate_po.corrections import CorrectionWeights, SamplerCorrection
from aggregate_po.normalizers import Normalizer
from aggregate_po.objective import PolicyObjective
from aggregate_po.totals import StepTotals

# Fields of the configuration that do not change the objective.
_ALLOWED = ("token_level_loss", "force_on_policy_ratio", "reference_policy_kl_type")


class ObjectiveLossFn(ClippedPGLossFn):
    """NeMo RL's `ClippedPGLossFn` with an objective in place of its loss, and with all its metrics.

    `force_on_policy_ratio` keeps its meaning, and `reference_policy_kl_type` is that of NeMo RL's metrics of the
    sampler. `token_level_loss` must be True if the normalizer divides by tokens, else False. All other options of the
    loss must keep their defaults, except `reference_policy_kl_penalty`, which must be 0.

    Args:
        cfg: A `ClippedPGLossConfig`.
        objective: Objective to maximize.
        correction: Correction for the difference between sampler and trainer, from `generation_logprobs`.
        use_fused_linear_logprobs: As for `ClippedPGLossFn`.

    Raises:
        TypeError: `objective` is no `PolicyObjective`.
        ValueError: an option has a value that the objective replaces, or the objective needs what NeMo RL does not pass
            to a loss.
    """

    def __init__(
        self,
        cfg: Any,
        objective: PolicyObjective,
        correction: SamplerCorrection | None = None,
        use_fused_linear_logprobs: bool = False,
    ) -> None:
        require_objective(objective)
        require_of_one_micro_batch(objective, "NeMo RL")
        for name, default in vars(type(cfg)(reference_policy_kl_penalty=0.0)).items():
            if name not in _ALLOWED and getattr(cfg, name) != default:
                raise ValueError(
                    f"`{name}` is {getattr(cfg, name)!r}, but the objective is the loss, which does not read it; set "
                    f"it to {default!r}, and pass its counterpart to `objective` or as `correction`."
                )
        by_tokens = _divides_by_tokens(objective.normalizer)
        if cfg.token_level_loss != by_tokens:
            raise ValueError(
                f"`token_level_loss` is {cfg.token_level_loss}, but the normalizer of the objective is "
                f"{objective.normalizer!r}; set it to {by_tokens}."
            )
        super().__init__(cfg, use_fused_linear_logprobs)
        self.objective, self.correction = objective, correction

    @override
    def __call__(
        self, next_token_logprobs: PerToken, data: Any, global_valid_seqs: Tensor, global_valid_toks: Tensor
    ) -> tuple[Tensor, dict[str, Any]]:
        """Return the negative objective of a micro-batch, and the metrics of NeMo RL.

        Args:
            next_token_logprobs: log-probabilities of all tokens but the first; shape `batch time-1`; nats.
            data: the micro-batch; each tensor per token has shape `batch time`.
            global_valid_seqs: completions of the optimizer step, over all ranks and micro-batches.
            global_valid_toks: tokens of the optimizer step.
        """
        with torch.no_grad():
            _, metrics = super().__call__(next_token_logprobs, data, global_valid_seqs, global_valid_toks)
        mask = data["token_mask"][:, 1:].bool() & data["sample_mask"].bool().unsqueeze(-1)
        old = next_token_logprobs.detach() if self.force_on_policy_ratio else data["prev_logprobs"][:, 1:]
        batch = PolicyBatch(
            old_log_probs=old,
            response_mask=mask,
            advantages=folded(data["advantages"][:, 1:], mask),
            totals=StepTotals(completions=global_valid_seqs, tokens=global_valid_toks),
            ref_log_probs=self._reference(data, mask),
            correction=self._correction(old, data, mask),
        )
        loss = -self.objective(next_token_logprobs, batch)
        return loss, {**metrics, "loss": loss.item()}

    def _reference(self, data: Any, mask: PerToken) -> PerToken | None:
        if not self.objective.needs_reference:
            return None
        if data.get("curr_logprobs_keep_mask") is not None:
            raise ValueError(
                f"`objective` is {self.objective!r}, whose penalty reads a reference, but the sampling parameters "
                "filter the tokens of the policy and not of the reference; set `top_p` to 1 and `top_k` to null, or "
                "leave the penalty out."
            )
        found: PerToken = data["reference_policy_logprobs"][:, 1:]
        if mask.any() and not found[mask].any():
            raise ValueError(
                "`reference_policy_logprobs` are all 0, which is what NeMo RL passes if it skips the reference, but a "
                "penalty of the objective reads it; set `grpo.skip_reference_policy_logprobs_calculation` to False."
            )
        return found

    def _correction(self, old: PerToken, data: Any, mask: PerToken) -> CorrectionWeights:
        found = CorrectionWeights()
        if self.correction is not None:
            found = self.correction(old, data["generation_logprobs"][:, 1:], mask)
        kept = data.get("curr_logprobs_keep_mask")  # of tokens that the sampling parameters allow
        return found if kept is None else found.joined(CorrectionWeights(kept=kept.bool() | ~mask))


def _divides_by_tokens(normalizer: Normalizer) -> bool:
    """Return True if the weights follow the tokens of the step, and False if they follow its completions."""
    one, two = (normalizer(torch.ones(1), StepTotals(completions=1, tokens=tokens)) for tokens in (1, 2))
    return bool(one != two)
