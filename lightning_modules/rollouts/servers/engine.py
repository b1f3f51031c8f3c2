"""Rollout engine that uses vLLM servers, on this machine or on others."""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

from torch import Tensor
from transformers import PreTrainedModel
from typing_extensions import override

from lightning_modules.distributed import broadcast_value, gathered_on_rank_zero, rank, wait_for_ranks
from lightning_modules.memory import EngineMemory, SamplingLoad
from lightning_modules.model.weights import policy_weights
from lightning_modules.rollouts.base import Completions, RolloutEngine, SamplingParameters
from lightning_modules.rollouts.protocol import TOKEN_VARIABLE, model_sizes
from lightning_modules.rollouts.servers.client import ServerClient, ServerRefusal, ServerState
from lightning_modules.rollouts.servers.dispatch import Dispatch
from lightning_modules.rollouts.servers.fleet import Fleet
from lightning_modules.rollouts.servers.requests import (
    Completion,
    collected,
    completion_request,
    parsed_completions,
    parsed_scores,
    scoring_request,
)
from lightning_modules.rollouts.servers.verification import Probe, Verification, require_same_model
from lightning_modules.rollouts.servers.weight_channels import WeightChannel
from lightning_modules.rollouts.vllm_sampling import require_temperature
from lightning_modules.seeding import derived_seed


class VLLMServers(RolloutEngine):
    """Generates completions on vLLM servers that `aggregate-po serve` started.

    The prompts of a rollout are distributed over all servers. Failed requests are retried; a server that keeps failing,
    times out, or returns what no model returns is left out, and its prompts go to the others. `load_policy` tries lost
    servers again.

    With several ranks, every rank sends requests to all servers, and rank 0 transfers the weights. `max_model_length`
    is that of the servers, known from the first transfer on.

    Args:
        urls: Addresses of the servers, such as http://127.0.0.1:8000.
        weights: Channel that transfers the weights of the policy to the servers.
        token_variable: Environment variable that contains the token of the servers; the token itself is never part of a
            configuration.
        timeout: Timeout of a request in seconds, for completions as well as for weight updates.
        retries: Number of retries of a failed request on the same server.
        startup_timeout: Time in seconds to wait at the first weight transfer for servers that are still starting.
        prompts_per_server: Maximum number of prompts that are sent to a server at a time.
        check_weights: Whether to compare a few log-probabilities of servers and policy after each weight transfer.

    Raises:
        ValueError: an argument is out of its range.
    """

    concurrent = True

    def __init__(
        self,
        urls: Sequence[str],
        weights: WeightChannel,
        token_variable: str = TOKEN_VARIABLE,
        timeout: float = 600.0,
        retries: int = 2,
        startup_timeout: float = 0.0,
        prompts_per_server: int = 64,
        check_weights: bool = True,
    ) -> None:
        if isinstance(urls, str) or len({url.rstrip("/") for url in urls}) != len(urls) or not urls:
            raise ValueError(f"`urls` is {urls!r}; pass a list of one or more different addresses.")
        for name, number, minimum in (("retries", retries, 0), ("prompts_per_server", prompts_per_server, 1)):
            if number < minimum:
                raise ValueError(f"`{name}` is {number}; pass {minimum} or more.")
        if not 0 < timeout < math.inf:
            raise ValueError(f"`timeout` is {timeout}; pass a positive number of seconds.")
        if not 0 <= startup_timeout < math.inf:
            raise ValueError(f"`startup_timeout` is {startup_timeout}; pass 0 or more seconds, a finite number.")
        self.weights = weights
        self.prompts_per_server = prompts_per_server
        self.check_weights = check_weights
        self._fleet = Fleet([ServerClient(url, token_variable, timeout) for url in urls], retries, startup_timeout)
        self._verification = Verification()
        self._version: str | None = None
        self._vocabulary = 0  # number of tokens of the policy

    @property
    def weight_version(self) -> int:
        """Number of the current weights of the servers: 0 before the first transfer, and 1 after it."""
        return int(self._version.partition("-")[0]) if self._version else 0

    @property
    def lost_servers(self) -> dict[str, str]:
        """Addresses of the lost servers, with the reasons."""
        return dict(self._fleet.lost)

    @property
    def losses(self) -> int:
        """Number of times that a server has been lost so far; other ranks' losses count from the next transfer on."""
        return self._fleet.losses

    @override
    def metrics(self) -> dict[str, float]:
        """Return the number of the current weights, the number of lost servers, and the number of losses so far."""
        return {
            "rollout/weight_version": self.weight_version,
            "rollout/lost_servers": len(self._fleet.lost),
            "rollout/server_losses": self.losses,
        }

    @override
    def memory(self, load: SamplingLoad) -> EngineMemory:
        return EngineMemory(sentence="VLLMServers: on devices of its own, of which a plan says nothing.")

    @override
    def load_policy(self, model: PreTrainedModel) -> None:
        """Transfer the current weights of the policy to the servers; every rank must call it.

        Raises:
            RuntimeError: a server refuses, has other weights after the transfer, or all servers are lost.
        """
        wait_for_ranks(model.device)  # no other rank still samples from the previous policy
        lost = gathered_on_rank_zero(self._fleet.newly_lost)
        # Every rank takes part in gathering sharded weights and in the forward pass of the probe.
        gathered = policy_weights(model)
        weights = {name: tensor.detach().cpu() for name, tensor in gathered if rank() == 0}
        probe = Probe.of_policy(model) if self.check_weights else None
        error: Exception | None = None
        transfer: _Transfer | None = None
        if rank() == 0:
            try:
                self._fleet.newly_lost.update(*lost)
                transfer = self._transfer(weights, probe, model_sizes(model.config))
            except Exception as raised:  # the other ranks must be notified first
                error = raised
        transfer = broadcast_value(transfer, model.device)
        if error is not None:
            raise error
        if transfer is None:
            raise RuntimeError("rank 0 could not load the policy into the servers; see its error message.")
        self._version, self._vocabulary = transfer.version, model.config.get_text_config().vocab_size
        self.max_model_length = transfer.max_model_length
        self._fleet.agree(transfer.lost, transfer.losses)

    @override
    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingParameters) -> Completions:
        """Generate completions on the servers, and leave out those whose responses no model could have given.

        Raises:
            RuntimeError: no policy was loaded, a server refuses, or all servers are lost.
            ValueError: vLLM would change the temperature.
        """
        if self._version is None:
            raise RuntimeError("the engine has no policy; call `load_policy(model)` before `generate`.")
        require_temperature(sampling.temperature)
        self._require_room(max(map(len, prompts), default=0), sampling.max_completion_length)
        version, vocabulary = self._version, self._vocabulary

        def ask(server: ServerClient, index: int) -> list[Completion]:
            request = completion_request(prompts[index], sampling, derived_seed(sampling.seed, index))
            return self._fleet.attempt(
                lambda: parsed_completions(server.url, server.completions(request, version), sampling, vocabulary)
            )

        dispatch = Dispatch(ask, len(prompts), self._fleet.active, self.prompts_per_server)
        answers = dispatch.run()
        for server, failure in dispatch.lost.items():
            self._fleet.lose(server, failure)
        if len(answers) < len(prompts):
            raise self._fleet.none_left()
        return collected([completion for answer in answers for completion in answer])

    def _require_room(self, prompt_length: int, completion_length: int) -> None:
        if self.max_model_length is not None and prompt_length + completion_length > self.max_model_length:
            raise ServerRefusal(
                f"a prompt of {prompt_length} tokens and a completion of {completion_length} are more than the "
                f"{self.max_model_length} that a server has room for; start it with a higher --max-model-len, or lower "
                "`max_completion_length`."
            )

    def _transfer(self, weights: Mapping[str, Tensor], probe: Probe | None, sizes: dict[str, Any]) -> _Transfer:
        """Transfer the weights to every server that responds, lost ones included."""
        version = self.weights.publish(weights)
        states = self._fleet.on_all(lambda server: self._update(server, version, probe, sizes))
        room = min(state.max_model_len for state in states)
        return _Transfer(version, room, list(self._fleet.lost), self._fleet.losses)

    def _update(self, server: ServerClient, version: str, probe: Probe | None, sizes: dict[str, Any]) -> ServerState:
        """Transfer the weights to one server unless it has them, and check that it uses them."""
        state = self._fleet.state(server)
        require_same_model(server, state, sizes)
        if state.version != version:
            self._fleet.attempt(lambda: self.weights.deliver(server, version))
            self._verification.forget(server)
        if probe is not None and self._verification.is_due(server, version):
            token_ids = probe.token_ids[: state.max_model_len - 1]
            choices = self._fleet.attempt(lambda: server.completions(scoring_request(token_ids), version))
            log_probs = parsed_scores(server.url, choices, token_ids)
            self._verification.compare(server, version, log_probs, probe, state)
        return state


@dataclass(frozen=True)
class _Transfer:
    """Outcome of a transfer of weights by rank 0, for all ranks.

    Args:
        version: version of the weights.
        max_model_length: tokens of a prompt and its completion that every server has room for.
        lost: addresses of the lost servers.
        losses: number of losses so far, over all ranks.
    """

    version: str
    max_model_length: int
    lost: Sequence[str]
    losses: int
