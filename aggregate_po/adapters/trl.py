"""Trainer of TRL whose loss is a policy objective; needs the extra `trl`."""

from __future__ import annotations

import os
from collections.abc import Mapping
from inspect import signature
from typing import Any

import torch
from torch import Tensor
from typing_extensions import override

from aggregate_po.adapters.step_diagnostics import StepDiagnostics
from aggregate_po.adapters.trl_entropy import adapt_entropy_bonus, entropy_bonus
from aggregate_po.adapters.trl_options import (
    require_defaults,
    require_supported,
    require_whole_steps,
    sampler_correction,
    with_kl,
)
from aggregate_po.batch import PerToken, PolicyBatch
from aggregate_po.corrections import CorrectionWeights
from aggregate_po.extras import install_command
from aggregate_po.objective import PolicyObjective
from aggregate_po.totals import StepTotals

try:
    from trl import GRPOTrainer
except ModuleNotFoundError as error:
    raise ModuleNotFoundError(f"{error}; run {install_command('trl')}.", name=error.name) from error

_STATE_FILE = "objective.pt"  # in a checkpoint, the state of penalties that adapt


class ObjectiveGRPOTrainer(GRPOTrainer):
    """TRL's `GRPOTrainer` with a `PolicyObjective` in place of its loss.

    Data, rewards, advantages, generation and the optimizer are TRL's. The gradient is that of the objective over the
    whole optimizer step: its totals are counted over all processes and accumulated micro-batches. Options of
    `GRPOConfig` that the loss of TRL reads keep their meaning or are refused by name:

    - `beta` adds a KL penalty with the reduction of the objective, weighted by the token's ratio unless
      `use_bias_correction_kl=False`; TRL has the completion's ratio where its loss has that;
    - `entropy_coef`, also with `use_adaptive_entropy`, adds the mean entropy over the tokens of the step;
    - `top_entropy_quantile` masks all other tokens, and the `vllm_importance_sampling_...` options correct for the
      sampler;
    - what names another loss, such as `loss_type` and `epsilon`, must keep its default.

    The log has the diagnostics of the gradient weights, and `policy_loss`, `entropy` and `kl`, each over the whole
    optimizer step.

    Args:
        model: As for `GRPOTrainer`.
        reward_funcs: As for `GRPOTrainer`.
        args: The `GRPOConfig`.
        positional: Further arguments of `GRPOTrainer`.
        objective: Objective to maximize.
        options: Further arguments of `GRPOTrainer`.

    Raises:
        TypeError: `objective` is no `PolicyObjective`.
        ValueError: an option has a value that the objective replaces or that leaves its totals unknown, or the
            objective has parts that TRL's batches do not serve.
    """

    def __init__(
        self,
        model: Any,
        reward_funcs: Any = None,
        args: Any = None,
        *positional: Any,
        objective: PolicyObjective,
        **options: Any,
    ) -> None:
        if args is None:
            raise ValueError("`args` is None; pass a GRPOConfig, which says how many completions a step has.")
        require_defaults(args)
        require_whole_steps(args)
        require_supported(objective, args)
        if getattr(args, "use_liger_kernel", False) and hasattr(GRPOTrainer, "compute_liger_loss"):
            raise ValueError(
                "`use_liger_kernel` is True, so this TRL computes a loss of its own; pass False, or install TRL 1.14."
            )
        self.policy_objective, args = with_kl(objective, args)
        super().__init__(model, reward_funcs, args, *positional, **options)
        self._correction = sampler_correction(args)
        self._reward_statistics: dict[str, dict[str, float]] = {}
        self._micro_batches: list[int] = []  # of the optimizer step, by their place in the generation
        self._step_totals: StepTotals | None = None
        self._step_diagnostics: StepDiagnostics | None = None

    @override
    def get_batch_samples(self, *arguments: Any, **options: Any) -> Any:
        """Note which micro-batches of the generation the next optimizer step consists of."""
        found = super().get_batch_samples(*arguments, **options)
        # Counted from here, because the last step of an epoch may be shorter.
        self._micro_batches = [(self._step + n) % self.args.steps_per_generation for n in range(len(found[0]))]
        self._step_totals = None
        return found

    @override
    def _calculate_rewards(self, *arguments: Any, **options: Any) -> Tensor:
        """Note mean and standard deviation of the rewards of all processes, for rules that read them."""
        by_function = super()._calculate_rewards(*arguments, **options)
        rewards = (by_function * self.reward_weights.to(by_function.device)).nansum(dim=1).double()
        scored = rewards[~by_function.isnan().all(dim=1)]
        if len(scored):  # else those of the last generation stay, since there is no mean of none
            found = {"reward_mean": float(scored.mean()), "reward_std": float(scored.std(correction=0))}
            self._reward_statistics[self._mode] = found
        return by_function

    @override
    def compute_loss(
        self, model: Any, inputs: Mapping[str, Any], return_outputs: bool = False, num_items_in_batch: Any = None
    ) -> Tensor:
        """Return the negative objective of a micro-batch, scaled so that gradients add up over the optimizer step."""
        if return_outputs:
            raise ValueError("`return_outputs` is True, but the loss of a rollout has no outputs; pass False.")
        return self._compute_loss(model, inputs)

    @override
    def _compute_loss(self, model: Any, inputs: Mapping[str, Any]) -> Tensor:
        log_probs, entropies, auxiliary = self._evaluated_tokens(model, inputs)
        batch = self._policy_batch(log_probs, entropies, inputs)
        evaluated = self.policy_objective.evaluate(log_probs, batch)
        self._count(StepDiagnostics.of(evaluated, log_probs, entropies, batch))
        # The processes average their gradients.
        loss = -self.accelerator.num_processes * (evaluated.value + entropy_bonus(self, entropies, batch))
        if auxiliary is not None:
            self._metrics[self._mode]["aux_loss"].append(self.accelerator.gather(auxiliary.detach()).mean().item())
            loss = loss + self.router_aux_loss_coef * auxiliary / max(len(self._step_micro_batches), 1)
        return loss

    @property
    def _mode(self) -> str:
        return "train" if self.model.training else "eval"

    @property
    def _step_micro_batches(self) -> list[int]:
        """Micro-batches that the optimizer step consists of; an evaluation treats each batch as a step."""
        return self._micro_batches if self._mode == "train" else []

    def _evaluated_tokens(self, model: Any, inputs: Mapping[str, Any]) -> tuple[PerToken, PerToken, Tensor | None]:
        """Return log-probabilities and entropies of the completions, and the auxiliary loss of experts, if enabled."""
        parameters = signature(self._get_per_token_logps_and_entropies).parameters
        more = {name: inputs[name] for name in parameters if name in inputs}  # images and their like
        if getattr(self, "aux_loss_enabled", False):
            more["compute_aux_loss"] = True
        log_probs, entropies, *rest = self._get_per_token_logps_and_entropies(
            model,
            torch.cat([inputs["prompt_ids"], inputs["completion_ids"]], dim=1),
            torch.cat([inputs["prompt_mask"], inputs["completion_mask"]], dim=1),
            inputs["completion_ids"].shape[1],
            compute_entropy=True,
            **more,
        )
        if torch.is_grad_enabled() and not log_probs.requires_grad:
            raise RuntimeError(
                "The log-probabilities of the completions have no gradient, so nothing would be trained; use the model "
                "and trainer of TRL without patches, and leave at least one parameter trainable."
            )
        return log_probs, entropies, rest[0] if rest else None

    def _policy_batch(self, log_probs: PerToken, entropies: PerToken, inputs: Mapping[str, Any]) -> PolicyBatch:
        old = inputs.get("old_per_token_logps")
        old = log_probs.detach() if old is None else old  # on policy, where TRL leaves them out
        mask, correction = _mask(inputs), CorrectionWeights()
        if self._correction is not None:
            correction = self._correction(old, inputs["sampling_per_token_logps"], mask)
        if self.top_entropy_quantile < 1:
            kept = self.get_high_entropy_mask(entropies.detach(), mask, 1 - self.top_entropy_quantile)
            correction = correction.joined(CorrectionWeights(kept=kept))
        return PolicyBatch(
            old_log_probs=old,
            response_mask=mask,
            advantages=inputs["advantages"],
            totals=self._totals(mask),
            ref_log_probs=inputs.get("ref_per_token_logps"),
            correction=correction,
        )

    def _totals(self, mask: PerToken) -> StepTotals:
        """Return the totals of the optimizer step, counted once in each; of this batch in an evaluation."""
        more: dict[str, Any] = dict(self._reward_statistics.get(self._mode, {}))
        if self.state.max_steps > 0:
            more["progress"] = min(self.state.global_step / self.state.max_steps, 1.0)
        if self._mode == "eval":
            return StepTotals.over([mask], sum_over_ranks=self._sum_over_ranks, **more)
        if self._step_totals is None:
            if not self._micro_batches:
                raise RuntimeError(
                    "The micro-batches of the optimizer step are unknown, because `get_batch_samples` was not called "
                    "before `compute_loss`; train by `train()`."
                )
            masks = [_mask(self._buffered_inputs[number]) for number in self._micro_batches]
            self._step_totals = StepTotals.over(masks, sum_over_ranks=self._sum_over_ranks, **more)
        return self._step_totals

    def _sum_over_ranks(self, values: Tensor) -> Tensor:
        return self.accelerator.reduce(values, reduction="sum")

    def _log_step(self, step: StepDiagnostics) -> tuple[float, list[float]]:
        """Add the metrics of a step to TRL's, and return its mean entropy and what its penalties have observed."""
        metrics, observed = step.over_ranks(self._sum_over_ranks, self.accelerator.gather)
        for name, value in metrics.items():
            self._metrics[self._mode][name].append(value)
        return metrics["entropy"], observed

    def _count(self, micro_batch: StepDiagnostics) -> None:
        """Add up the diagnostics; at the end of the optimizer step, log them and adapt what follows them."""
        if self._mode == "eval":
            self._log_step(micro_batch)
            return
        self._step_diagnostics = micro_batch if self._step_diagnostics is None else self._step_diagnostics + micro_batch
        if self.accelerator.sync_gradients:
            entropy, observed = self._log_step(self._step_diagnostics)
            self.policy_objective.adapt(observed)
            adapt_entropy_bonus(self, entropy)
            self._step_diagnostics = None

    @override
    def _save_checkpoint(self, *arguments: Any, **options: Any) -> None:
        """Save the state of the penalties too."""
        super()._save_checkpoint(*arguments, **options)
        trial = options["trial"] if "trial" in options else arguments[1]
        if self.args.should_save:
            folder = os.path.join(self._get_output_dir(trial=trial), f"checkpoint-{self.state.global_step}")
            torch.save(self.policy_objective.state_dict(), os.path.join(folder, _STATE_FILE))

    @override
    def _load_optimizer_and_scheduler(self, checkpoint: str | None) -> None:
        """Restore the state of the penalties too, unless none has any."""
        super()._load_optimizer_and_scheduler(checkpoint)
        if checkpoint is None or not any(self.policy_objective.state_dict()["penalties"]):
            return
        path = os.path.join(checkpoint, _STATE_FILE)
        if not os.path.exists(path):
            raise ValueError(
                f"{checkpoint}: there is no {_STATE_FILE} with the state of the penalties, so the checkpoint is of "
                "another trainer; train anew, or with penalties that do not adapt."
            )
        self.policy_objective.load_state_dict(torch.load(path, weights_only=True))


def _mask(inputs: Mapping[str, Any]) -> PerToken:
    """Return True on trained tokens: those of the completion that no tool has written."""
    mask: Tensor = inputs["completion_mask"].bool()
    return mask & inputs["tool_mask"].bool() if "tool_mask" in inputs else mask
