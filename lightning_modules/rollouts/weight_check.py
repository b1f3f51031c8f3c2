"""Check that an engine uses the weights of the policy, by comparing a few log-probabilities."""

from __future__ import annotations

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_modules.model.outputs import logits_only

# Maximum difference of a log-probability x between engine and policy that rounding explains, relative to 1 + |x|.
_TOLERANCE = {torch.float64: 1e-4, torch.float32: 1e-4, torch.float16: 0.02, torch.bfloat16: 0.1}
_TENSOR_FLOAT_TOLERANCE = 0.01


class WeightCheck:
    """Compares log-probabilities of the same tokens under engine and policy after each weight transfer."""

    def __init__(self) -> None:
        self._previous: tuple[Tensor, Tensor] | None = None

    def __call__(self, engine: Tensor, policy: Tensor, *dtypes: torch.dtype) -> None:
        """Compare log-probabilities that were computed in the given dtypes.

        Raises:
            RuntimeError: they differ by more than rounding explains, or those of the policy have changed since the
                last transfer and those of the engine have not.
        """
        tolerance = max(_TOLERANCE[dtype] for dtype in dtypes)
        if torch.get_float32_matmul_precision() != "highest":
            tolerance = max(tolerance, _TENSOR_FLOAT_TOLERANCE)
        if not torch.isclose(engine, policy, rtol=tolerance, atol=tolerance, equal_nan=True).all():
            difference = (engine - policy).abs().max().item()
            raise RuntimeError(
                f"after the transfer of weights a log-probability of the engine is {difference:.3g} from the policy's, "
                f"where rounding explains {tolerance:g} of 1 + its size. Either weights did not arrive (a name under "
                "which the engine does not know them, or tied embeddings that it holds apart), or engine and "
                "transformers compute this model differently. `check_weights=False` goes on regardless."
            )
        if self._previous is not None:
            engine_before, policy_before = self._previous
            moved = (policy - policy_before).abs().max().item()
            # Rounding hides a small update from the comparison above, but some engine outputs change nonetheless.
            if moved > tolerance / 10 and torch.equal(engine, engine_before):
                raise RuntimeError(
                    f"since the last transfer of weights log-probabilities of the policy moved by up to {moved:.3g}, "
                    "and those of the engine not at all: it kept its old weights. `check_weights=False` goes on "
                    "regardless."
                )
        self._previous = engine, policy


def probe_tokens(model: PreTrainedModel, longest: int = 32) -> list[int]:
    """Return a fixed sequence of a few tokens."""
    # Low ids, since the last ones of a vocabulary may be image tokens or unused.
    vocabulary = min(model.config.get_text_config().vocab_size, 1000)
    return [(37 * place + 11) % vocabulary for place in range(min(32, longest))]


@torch.no_grad()
def policy_log_probs(model: PreTrainedModel, tokens: list[int]) -> tuple[Tensor, torch.dtype]:
    """Return the policy's log-probabilities of all tokens but the first, on the CPU, and the dtype of its logits."""
    training = model.training
    model.eval()
    try:
        ids = torch.tensor([tokens], device=model.device)
        with logits_only(model):
            logits = model(input_ids=ids, use_cache=False).logits[0, :-1]
    finally:
        model.train(training)
    log_probs = torch.log_softmax(logits.float(), dim=-1)
    return log_probs.gather(-1, ids[0, 1:].unsqueeze(-1)).squeeze(-1).cpu(), logits.dtype
