"""Verification that a server serves the model of the policy and uses its weights."""

from __future__ import annotations

import logging
from collections import defaultdict
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from transformers import PreTrainedModel

from lightning_modules.rollouts.servers.client import ServerClient, ServerRefusal, ServerState
from lightning_modules.rollouts.weight_check import WeightCheck, policy_log_probs, probe_tokens

logger = logging.getLogger(__name__)


@dataclass(frozen=True)
class Probe:
    """Tokens to score, their log-probabilities under the policy, and the dtype of its logits."""

    token_ids: list[int]
    log_probs: Tensor
    dtype: torch.dtype

    @classmethod
    def of_policy(cls, model: PreTrainedModel) -> Probe:
        """Return the probe with log-probabilities under the policy."""
        token_ids = probe_tokens(model)
        return cls(token_ids, *policy_log_probs(model, token_ids))


def require_same_model(server: ServerClient, state: ServerState, sizes: dict[str, Any]) -> None:
    """Refuse a server that serves another model, or returns log-probabilities without the temperature.

    Raises:
        ServerRefusal: the server returns another kind of log-probabilities, or its model has other sizes.
    """
    if state.logprobs_mode != "processed_logprobs":
        raise ServerRefusal(
            f"{server.url} returns {state.logprobs_mode}, which leave the temperature out; start it with "
            "`aggregate-po serve`, or with `--logprobs-mode processed_logprobs`."
        )
    if state.sizes != sizes:
        different = {name: state.sizes.get(name) for name in sizes if state.sizes.get(name) != sizes[name]}
        raise ServerRefusal(
            f"{server.url} serves a model with {different}, and the trained model has "
            f"{ {name: sizes[name] for name in different} }; start it with the trained model."
        )


class Verification:
    """Compares log-probabilities of servers and policy, once per server and version of the weights."""

    def __init__(self) -> None:
        self._checks: defaultdict[str, WeightCheck] = defaultdict(WeightCheck)  # by address
        self._verified: dict[str, str] = {}
        self._warned: set[str] = set()

    def is_due(self, server: ServerClient, version: str) -> bool:
        """Return whether the server has not been compared with these weights in this run.

        A server may have the weights from a previous run that failed the comparison.
        """
        return self._verified.get(server.url) != version

    def forget(self, server: ServerClient) -> None:
        """Mark the server for another comparison, after it has loaded weights."""
        self._verified.pop(server.url, None)

    def compare(
        self, server: ServerClient, version: str, log_probs: list[float], probe: Probe, state: ServerState
    ) -> None:
        """Compare the log-probabilities of the server with those of the policy.

        Raises:
            RuntimeError: they differ by more than rounding explains.
        """
        dtype = getattr(torch, _name(state.dtype))
        if dtype.itemsize < probe.dtype.itemsize and server.url not in self._warned:
            self._warned.add(server.url)
            logger.warning(
                "%s computes in %s and the trainer in %s, so ratios differ from 1 before the first update; start it "
                "with --dtype %s, or set `old_log_probs: trainer`.",
                *(server.url, _name(dtype), _name(probe.dtype)),
                "float32" if probe.dtype.itemsize > 2 else _name(probe.dtype),
            )
        try:
            self._checks[server.url](torch.tensor(log_probs), probe.log_probs[: len(log_probs)], probe.dtype, dtype)
        except RuntimeError as error:
            raise RuntimeError(f"{server.url} does not have the weights of the policy: {error}") from None
        self._verified[server.url] = version


def _name(dtype: torch.dtype | str) -> str:
    return str(dtype).removeprefix("torch.")
