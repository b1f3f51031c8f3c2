"""Gradients of the parameters under several objectives: angles, norms, and their variance over completions."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from aggregate_po import PerToken
from lightning_modules.batch import RolloutBatch
from lightning_modules.model.policy import Policy
from lightning_modules.progress import progress_bar
from lightning_modules.recordings.recording import Recording
from lightning_modules.recordings.steps import RecordedStep

_LARGEST_MEAN_DIFFERENCE = 0.05  # nats per token; between two forward passes of one model it is rounding


@dataclass(frozen=True)
class ParameterGradients:
    """Gradients of several objectives with respect to the parameters, on one optimizer step; shapes `objective`.

    Args:
        labels: names of the objectives.
        step: number of the optimizer step.
        products: inner products of the gradients; shape `objective objective`; float64.
        squares: sum of the squared norms of the completions' own gradients; None if they were not computed.
        completions: number of completions of the step, with those that have no gradient.
        log_prob_difference: largest difference between the log-probabilities here and in training; nats.
    """

    labels: tuple[str, ...]
    step: int
    products: Tensor
    squares: Tensor | None
    completions: float
    log_prob_difference: float

    @property
    def norms(self) -> Tensor:
        """Norms of the gradients."""
        return self.products.diagonal().sqrt()

    @property
    def cosines(self) -> Tensor:
        """Cosines of the angles between the gradients; NaN with a gradient of 0; shape `objective objective`."""
        scale = self.norms.unsqueeze(0) * self.norms.unsqueeze(1)
        return torch.where(scale > 0, self.products / scale, torch.nan).clamp(-1, 1)

    @property
    def noise_to_signal(self) -> Tensor:
        r"""Standard deviation of the gradient of a step over its norm.

        The gradient is a sum $g = \sum_i g_i$ over $n$ completions. Their sample variance gives
        $\mathrm{Var}(g) = \frac{n}{n - 1} (\sum_i |g_i|^2 - |g|^2 / n)$, as if they were independent.
        """
        if self.squares is None or self.completions <= 1:
            return torch.full_like(self.norms, math.nan)
        size = self.completions
        variance = size / (size - 1) * (self.squares - self.products.diagonal() / size)
        return torch.where(self.norms > 0, variance.clamp(min=0).sqrt() / self.norms, torch.nan)


def parameter_gradients(
    weights: Mapping[str, Sequence[PerToken]], step: RecordedStep, policy: Policy, per_completion: bool = True
) -> ParameterGradients:
    """Return the gradients of objectives with respect to the parameters, on one optimizer step.

    A backward pass is made for each objective and micro-batch or, with `per_completion`, each completion, and a forward
    pass for each of these. Memory holds one gradient for each objective.

    Args:
        weights: gradient weights of each objective on each micro-batch of the step, by name; shape `batch time`.
        step: recorded optimizer step.
        policy: policy before the update of the step.
        per_completion: whether to compute the gradient of each completion, from which the variance follows.

    Raises:
        ValueError: the policy is not the one that was recorded.
    """
    parameters = [parameter for parameter in policy.model.parameters() if parameter.requires_grad]
    size = sum(parameter.numel() for parameter in parameters)
    sums = torch.zeros(len(weights), size, device=policy.device)
    squares = torch.zeros(len(weights), dtype=torch.double)
    with progress_bar(total=len(step.batches), desc="gradients", unit="micro-batch", leave=False) as progress:
        for number, part in enumerate(step.batches):
            own = [by_batch[number] for by_batch in weights.values()]
            for rows in _rows(part.batch, per_completion):
                selected = part.batch.select(rows).to(policy.device)
                time = selected.completion_ids.shape[1]
                chosen = [w[rows, :time].to(policy.device) for w in own]
                log_probs = policy.log_probs(selected)
                for place, gradient in enumerate(_gradients(log_probs, chosen, parameters)):
                    sums[place] += gradient
                    squares[place] += float(gradient.double().square().sum())
            progress.update()
    return ParameterGradients(
        labels=tuple(weights),
        step=step.step,
        products=_products(sums),
        squares=squares if per_completion else None,
        completions=step.completions,
        log_prob_difference=_log_prob_difference(step, policy),
    )


def _rows(batch: RolloutBatch, per_completion: bool) -> list[Tensor]:
    """Return the completions of each forward pass, those without a trained token left out."""
    trained = batch.policy.response_mask.any(dim=-1).nonzero().flatten()
    if not len(trained):  # which `split` would not divide into no parts, but return as one
        return []
    return list(trained.split(1)) if per_completion else [trained]


def _gradients(log_probs: PerToken, weights: Sequence[PerToken], parameters: Sequence[nn.Parameter]) -> list[Tensor]:
    """Return the gradient of each weighted sum of the log-probabilities, flattened; shape `parameter`."""
    results = []
    for number, chosen in enumerate(weights):
        keep = number < len(weights) - 1
        weighted = (chosen.to(log_probs.dtype) * log_probs).sum()
        found = torch.autograd.grad(weighted, parameters, retain_graph=keep, materialize_grads=True)
        results.append(torch.cat([gradient.flatten() for gradient in found]))
    return results


def _products(gradients: Tensor) -> Tensor:
    """Return the inner products of the rows in float64, a block of columns at a time; shape `row row`."""
    products = torch.zeros(len(gradients), len(gradients), dtype=torch.double)
    for block in gradients.split(2**20, dim=1):
        products += (block.double() @ block.double().T).cpu()
    return products


def _log_prob_difference(step: RecordedStep, policy: Policy) -> float:
    differences = []
    for part in step.batches:
        mask = part.batch.policy.response_mask
        here = policy.current_log_probs(part.batch.to(policy.device)).cpu()
        differences.append((here.double() - part.log_probs.double())[mask].abs())
    every = torch.cat(differences)
    if len(every) and float(every.mean()) > _LARGEST_MEAN_DIFFERENCE:
        raise ValueError(
            f"the recorded model gives log-probabilities that differ by {float(every.mean()):.3g} nats per token from "
            "those of the training step, so it is another model or computed in another precision; record again, or "
            "pass `--gradients none`."
        )
    return float(every.max()) if len(every) else 0.0


def _usable(device: str) -> torch.device:
    try:
        found = torch.device(device)
        torch.empty(0, device=found)
    except (RuntimeError, AssertionError) as error:  # the latter without support for the device
        reason = str(error).splitlines()[0]
        raise ValueError(
            f"`device` is {device!r}, which cannot be used here ({reason}); pass another, as cpu."
        ) from None
    return found


def recorded_policy(recording: Recording, device: str = "cpu") -> Policy:
    """Return the policy of a recording, before the update of `manifest.model_step`.

    Args:
        recording: the recording.
        device: device to load the model on.

    Raises:
        ValueError: the recording has no model, or the device cannot be used.
    """
    target, folder = _usable(device), recording.model_folder
    if folder is None:
        raise ValueError(f"{str(recording.folder)!r} has no model; record again, or pass `--gradients none`.")
    policy = Policy(str(folder), attn_implementation=recording.manifest.attn_implementation)
    policy.load().to(target)  # type: ignore[arg-type]  # a wrong annotation of transformers
    policy.choose_layout()
    return policy
