"""Rollouts by vLLM servers, on this machine or on others."""

from __future__ import annotations

import logging
import math
import time
from collections.abc import Callable, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.nn.utils.rnn import pad_sequence
from transformers import PreTrainedModel

from lightning_modules.distributed import agreed_text, rank, wait_for_ranks
from lightning_modules.memory import EngineMemory, SamplingLoad
from lightning_modules.model.weights import policy_weights
from lightning_modules.rollouts.base import Completions, RolloutEngine, SamplingParameters
from lightning_modules.rollouts.servers.client import Server, ServerFailure, ServerRefusal, ServerState, model_sizes
from lightning_modules.rollouts.servers.dispatch import Dispatch
from lightning_modules.rollouts.servers.weight_channels import WeightChannel
from lightning_modules.rollouts.weight_check import WeightCheck, policy_log_probs, probe_tokens
from lightning_modules.seeding import derived_seed

logger = logging.getLogger(__name__)

_FIRST_PAUSE = 0.1  # seconds before the first retry; each later pause is twice as long
_COLDEST = 0.01  # vLLM raises lower temperatures to this one
_RETURN_TIMEOUT = 5.0  # seconds that a lost server has to answer when it is looked for again


class VLLMServers(RolloutEngine):
    """Draws completions from vLLM servers that `aggregate-po serve` started.

    A rollout is spread over all of them. A request that fails is tried again; a server that goes on failing, or gives
    no answer in time, is left out, and the others take its prompts. `load_policy` looks for lost servers again.

    On several ranks each asks all servers, and rank 0 sends the weights.

    Args:
        urls: of the servers, such as http://127.0.0.1:8000.
        weights: how the weights of the policy reach them.
        token_variable: environment variable that holds the servers' token; the token itself is part of no
            configuration.
        timeout: seconds that a request may take, be it for completions or for new weights.
        retries: how often a request is tried again on its server.
        startup_timeout: seconds to wait at the first `load_policy` for servers that are still starting.
        prompts_per_server: prompts that one server is given at a time.
        check_weights: whether a few log-probabilities of servers and policy are compared after each transfer.

    Raises:
        ValueError: an argument is out of its range.
    """

    concurrent = True

    def __init__(
        self,
        urls: Sequence[str],
        weights: WeightChannel,
        token_variable: str = "AGGREGATE_PO_TOKEN",
        timeout: float = 600.0,
        retries: int = 2,
        startup_timeout: float = 0.0,
        prompts_per_server: int = 64,
        check_weights: bool = True,
    ) -> None:
        if isinstance(urls, str) or len({url.rstrip("/") for url in urls}) != len(urls) or not urls:
            raise ValueError(f"`urls` is {urls!r}; pass a list of one or more different addresses.")
        for name, number, least in (("retries", retries, 0), ("prompts_per_server", prompts_per_server, 1)):
            if number < least:
                raise ValueError(f"`{name}` is {number}; pass {least} or more.")
        if not 0 < timeout < math.inf:
            raise ValueError(f"`timeout` is {timeout}; pass a positive number of seconds.")
        if not startup_timeout >= 0:
            raise ValueError(f"`startup_timeout` is {startup_timeout}; pass 0 or more seconds.")
        self.weights = weights
        self.timeout = timeout
        self.retries = retries
        self.startup_timeout = startup_timeout
        self.prompts_per_server = prompts_per_server
        self.check_weights = check_weights
        self._servers = [Server(url, token_variable, timeout) for url in urls]
        self._checks = {server.url: WeightCheck() for server in self._servers}
        self._checked: dict[str, str] = {}  # version by address
        self._lost: dict[str, str] = {}  # reason by address
        self._room = math.inf  # tokens of a prompt and its completion
        self._other_precision: set[str] = set()  # addresses that were warned of
        self._version: str | None = None
        self.losses = 0

    @property
    def weight_version(self) -> int:
        """Number of the weights that completions are drawn with now: 1 for the first, 0 before them."""
        return int(self._version.partition("-")[0]) if self._version else 0

    @property
    def lost_servers(self) -> dict[str, str]:
        """Addresses of the servers that are left out at present, each with the reason."""
        return dict(self._lost)

    def figures(self) -> dict[str, float]:
        """Number of the weights in use, servers that are left out at present, and how often one was lost so far."""
        return {
            "rollout/weight_version": self.weight_version,
            "rollout/lost_servers": len(self._lost),
            "rollout/server_losses": self.losses,
        }

    def memory(self, load: SamplingLoad) -> EngineMemory:
        """See `RolloutEngine`."""
        return EngineMemory(sentence="VLLMServers: on devices of its own, of which a plan says nothing.")

    def load_policy(self, model: PreTrainedModel) -> None:
        """See `RolloutEngine`; every rank must call it.

        Raises:
            RuntimeError: a server refuses, has other weights afterwards, or none is left.
        """
        wait_for_ranks(model.device)  # no other rank is still drawing from the policy before
        # Sharded weights are gathered, and the policy reads its text, on every rank.
        gathered = policy_weights(model)
        weights = {name: tensor.detach().cpu() for name, tensor in gathered if rank() == 0}
        text = _Text.read_by(model) if self.check_weights else None
        sizes = model_sizes(model.config)
        error: Exception | None = None
        outcome = ""
        if rank() == 0:
            try:
                version = self.weights.publish(weights)
                self._deliver(version, text, sizes)
                outcome = "\n".join([version, *self._lost])
            except Exception as raised:  # the other ranks wait, and must hear of it
                error, outcome = raised, ""
        version, *lost = agreed_text(outcome, model.device).split("\n")
        if error is not None:
            raise error
        if not version:
            raise RuntimeError("rank 0 could not load the policy into the servers; see its message.")
        self._version = version
        self._lost = {url: self._lost.get(url, "lost to rank 0") for url in lost}

    def generate(self, prompts: Sequence[Sequence[int]], sampling: SamplingParameters) -> Completions:
        """See `RolloutEngine`; log-probabilities that a server does not give are NaN.

        Raises:
            RuntimeError: no policy was loaded, a server refuses, or none is left.
            ValueError: the temperature is one that vLLM would change.
        """
        if self._version is None:
            raise RuntimeError("the engine has no policy; call `load_policy(model)` before `generate`.")
        if 0 < sampling.temperature < _COLDEST:
            raise ValueError(
                f"`temperature` is {sampling.temperature}, which vLLM would raise to {_COLDEST}; pass 0, or {_COLDEST} "
                "or more."
            )
        version, longest = self._version, max(map(len, prompts), default=0)
        if longest + sampling.max_completion_length > self._room:
            raise ServerRefusal(
                f"a prompt of {longest} tokens and a completion of {sampling.max_completion_length} are more than the "
                f"{self._room} that a server has room for; start it with a higher --max-model-len, or lower "
                "`max_completion_length`."
            )

        def ask(server: Server, index: int) -> list[_Completion]:
            request = _request(prompts[index], sampling, derived_seed(sampling.seed, index))
            return self._tried(server, lambda: _parsed(server, server.completions(request, version), sampling))

        servers = [server for server in self._servers if server.url not in self._lost]
        dispatch = Dispatch(ask, len(prompts), servers, self.prompts_per_server)
        answers = dispatch.run()
        for server, failure in dispatch.lost.items():
            self._lose(server, failure)
        if len(answers) < len(prompts):
            raise self._none_left()
        return _collected([completion for answer in answers for completion in answer])

    def _deliver(self, version: str, text: _Text | None, sizes: dict[str, Any]) -> None:
        """Bring the weights to every server that answers, lost ones included."""

        def deliver(server: Server) -> ServerFailure | None:
            try:
                self._update(server, version, text, sizes)
            except ServerFailure as failure:
                return failure
            return None

        self._room = math.inf
        with ThreadPoolExecutor(max_workers=len(self._servers)) as pool:
            failures = list(pool.map(deliver, self._servers))
        for server, failure in zip(self._servers, failures, strict=True):
            if failure is not None:
                self._lose(server, failure)
            elif self._lost.pop(server.url, None):
                logger.warning("%s is back and takes part again.", server.url)
        if len(self._lost) == len(self._servers):
            raise self._none_left()

    def _update(self, server: Server, version: str, text: _Text | None, sizes: dict[str, Any]) -> None:
        """Have one server load the weights, unless it has them, and check that it uses them."""
        state = self._first_state(server)
        if state.logprobs_mode != "processed_logprobs":
            raise ServerRefusal(
                f"{server.url} returns {state.logprobs_mode}, which leave the temperature out; start it with "
                "`aggregate-po serve`, or with `--logprobs-mode processed_logprobs`."
            )
        if state.sizes != sizes:
            different = {name: state.sizes.get(name) for name in sizes if state.sizes.get(name) != sizes[name]}
            raise ServerRefusal(
                f"{server.url} serves a model with {different}, and the one that is trained has "
                f"{ {name: sizes[name] for name in different} }; start it with the model that is trained."
            )
        self._room = min(self._room, state.max_model_len)
        if state.version != version:
            self._tried(server, lambda: self.weights.deliver(server, version))
            self._checked.pop(server.url, None)
        # A server may have these weights from a run before, which ended because they failed the check.
        if text is not None and self._checked.get(server.url) != version:
            self._check(server, version, text, state)
            self._checked[server.url] = version

    def _check(self, server: Server, version: str, text: _Text, state: ServerState) -> None:
        token_ids = text.token_ids[: state.max_model_len - 1]
        request = {"prompt": token_ids, "max_tokens": 1, "temperature": 0.0, "prompt_logprobs": 0}
        choices = self._tried(server, lambda: server.completions(request, version))
        read = torch.tensor(_prompt_log_probs(server, choices, token_ids))
        dtype = getattr(torch, state.dtype.removeprefix("torch."))
        if dtype.itemsize < text.dtype.itemsize and server.url not in self._other_precision:
            self._other_precision.add(server.url)
            logger.warning(
                "%s computes in %s and the trainer in %s, so ratios are away from 1 before the first update; start it "
                "with --dtype %s, or have `old_log_probs: trainer`.",
                *(server.url, *(str(one).removeprefix("torch.") for one in (dtype, text.dtype))),
                "float32" if text.dtype.itemsize > 2 else str(text.dtype).removeprefix("torch."),
            )
        try:
            self._checks[server.url](read, text.log_probs[: len(read)], text.dtype, dtype)
        except RuntimeError as error:
            raise RuntimeError(f"{server.url} does not have the weights of the policy: {error}") from None

    def _first_state(self, server: Server) -> ServerState:
        """State of a server, for which a run that has just begun waits."""
        if self._version is not None:
            lost = server.url in self._lost
            return server.state(min(_RETURN_TIMEOUT, self.timeout)) if lost else self._tried(server, server.state)
        deadline = time.monotonic() + self.startup_timeout
        while True:
            try:
                return server.state()
            except ServerFailure:
                if time.monotonic() > deadline:
                    raise
            time.sleep(1.0)

    def _tried(self, server: Server, request: Callable[[], Any]) -> Any:
        """Result of a request, after as many tries as are allowed."""
        for attempt in range(self.retries + 1):
            try:
                return request()
            except ServerFailure as failure:
                if attempt == self.retries or not failure.passing:
                    raise
            time.sleep(_FIRST_PAUSE * 2**attempt)
        raise AssertionError("unreachable")

    def _lose(self, server: Server, failure: ServerFailure) -> None:
        if server.url not in self._lost:
            self.losses += 1
            logger.warning("%s; it is left out until it answers again.", failure)
        self._lost[server.url] = str(failure)

    def _none_left(self) -> RuntimeError:
        reasons = "\n".join(f"  {reason}" for reason in self._lost.values())
        return RuntimeError(
            f"none of the {len(self._servers)} servers is left:\n{reasons}\nLook at their logs, and start them with "
            f"`aggregate-po serve`{' again; the run resumes from its last checkpoint' if self._version else ''}."
        )


@dataclass(frozen=True)
class _Text:
    """A text that both sides read, its log-probabilities under the policy, and the precision of these."""

    token_ids: list[int]
    log_probs: Tensor
    dtype: torch.dtype

    @classmethod
    def read_by(cls, model: PreTrainedModel) -> _Text:
        token_ids = probe_tokens(model)
        return cls(token_ids, *policy_log_probs(model, token_ids))


@dataclass(frozen=True)
class _Completion:
    token_ids: list[int]
    log_probs: list[float]
    finished: bool


def _request(prompt: Sequence[int], sampling: SamplingParameters, seed: int) -> dict[str, Any]:
    """One prompt to a request: with several, completion i of each would be drawn with the same random numbers."""
    greedy = sampling.temperature == 0
    return {
        "prompt": list(prompt),
        "n": 1 if greedy else sampling.samples_per_prompt,
        "max_tokens": sampling.max_completion_length,
        "temperature": sampling.temperature,
        "seed": seed % 2**62,  # completion i has the seed plus i, within 64 bits
        "stop_token_ids": list(sampling.stop_token_ids),
        "ignore_eos": True,  # nothing stops a completion but the tokens above
        "logprobs": 0,
        "return_token_ids": True,
        "return_tokens_as_token_ids": True,
        # Said, because a server may take other values from the folder of its model.
        "top_p": 1.0,
        "top_k": 0,
        "min_p": 0.0,
        "repetition_penalty": 1.0,
        "presence_penalty": 0.0,
        "frequency_penalty": 0.0,
    }


def _parsed(server: Server, choices: list[dict[str, Any]], sampling: SamplingParameters) -> list[_Completion]:
    greedy = sampling.temperature == 0
    expected = 1 if greedy else sampling.samples_per_prompt
    if [choice.get("index") for choice in choices] != list(range(expected)):
        raise ServerFailure(f"{server.url} answered with {len(choices)} completions instead of {expected}")
    try:
        completions = [_completion(server, choice, sampling) for choice in choices]
    except (KeyError, TypeError, ValueError) as error:
        raise ServerFailure(f"{server.url} answered with a malformed completion ({error})") from None
    return completions * (sampling.samples_per_prompt if greedy else 1)


def _completion(server: Server, choice: dict[str, Any], sampling: SamplingParameters) -> _Completion:
    token_ids = choice["token_ids"]
    if not token_ids or len(token_ids) > sampling.max_completion_length or not all(type(i) is int for i in token_ids):
        raise ValueError(f"token ids {str(token_ids)[:80]}")
    finished = token_ids[-1] in sampling.stop_token_ids
    if not finished and len(token_ids) < sampling.max_completion_length:
        if choice.get("finish_reason") == "length":  # vLLM lowers `max_tokens` to the room that a prompt leaves
            raise ServerRefusal(
                f"{server.url} cut a completion off after {len(token_ids)} of {sampling.max_completion_length} tokens; "
                "start it with a higher --max-model-len, or lower `max_completion_length`."
            )
        raise ValueError(f"it ended early, by {choice.get('finish_reason')!r}")
    noted = (choice.get("logprobs") or {}).get("token_logprobs") or [None] * len(token_ids)
    if len(noted) != len(token_ids):
        raise ValueError(f"{len(noted)} log-probabilities for {len(token_ids)} tokens")
    log_probs = [math.nan if value is None else float(value) for value in noted]
    return _Completion(token_ids, log_probs, finished)


def _prompt_log_probs(server: Server, choices: list[dict[str, Any]], token_ids: Sequence[int]) -> list[float]:
    """Log-probabilities of a prompt's tokens after the first."""
    try:
        entries = choices[0]["prompt_logprobs"][1:]
        return [float(entry[str(token)]["logprob"]) for entry, token in zip(entries, token_ids[1:], strict=True)]
    except (IndexError, KeyError, TypeError, ValueError) as error:
        raise ServerFailure(f"{server.url} answered without log-probabilities of the prompt ({error!r})") from None


def _collected(completions: Sequence[_Completion]) -> Completions:
    columns = {
        "token_ids": [torch.tensor(completion.token_ids) for completion in completions],
        "mask": [torch.ones(len(completion.token_ids), dtype=torch.bool) for completion in completions],
        "log_probs": [torch.tensor(completion.log_probs, dtype=torch.float32) for completion in completions],
    }
    padded = {name: pad_sequence(rows, batch_first=True) for name, rows in columns.items()}
    return Completions(finished=torch.tensor([completion.finished for completion in completions]), **padded)
