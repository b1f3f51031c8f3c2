"""Client of one vLLM server, with timeouts and validation of responses."""

from __future__ import annotations

import asyncio
import json
import math
import os
import reprlib
from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp
import torch

from lightning_modules.rollouts.protocol import STATE_ROUTE, VERSION_HEADER, WEIGHTS_ROUTE

COMPLETIONS_ROUTE = "/v1/completions"

_MAX_MESSAGE = 500
_BYTES = 2**20  # of a response, without its tokens
_BYTES_PER_TOKEN = 2**10  # with its text and its log-probability, and room to spare


class ServerRefusal(RuntimeError):
    """A server refused the token or the request; a retry would fail again."""


class ServerFailure(RuntimeError):
    """A server gave no usable response.

    Args:
        message: error message.
        transient: whether a retry may succeed.
    """

    def __init__(self, message: str, transient: bool = True) -> None:
        super().__init__(message)
        self.transient = transient


@dataclass(frozen=True)
class ServerState:
    """State that a server reports.

    Args:
        version: version of the weights loaded last; "none" at the start.
        logprobs_mode: kind of the returned log-probabilities.
        dtype: dtype of the weights, as torch prints it.
        max_model_len: maximum number of tokens of a prompt with its completion.
        sizes: sizes of the model, see `model_sizes`.

    Raises:
        ValueError: a field has another type, or a value that it never has.
    """

    version: str
    logprobs_mode: str
    dtype: str
    max_model_len: int
    sizes: dict[str, Any]

    def __post_init__(self) -> None:
        texts = {"version": self.version, "logprobs_mode": self.logprobs_mode, "dtype": self.dtype}
        wrong = [name for name, value in texts.items() if type(value) is not str]
        if not wrong and not isinstance(getattr(torch, self.dtype.removeprefix("torch."), None), torch.dtype):
            wrong.append("dtype")
        if type(self.max_model_len) is not int or self.max_model_len < 2:
            wrong.append("max_model_len")
        kinds = (int, str, type(None))
        if type(self.sizes) is not dict or any(type(value) not in kinds for value in self.sizes.values()):
            wrong.append("sizes")
        if wrong:
            raise ValueError(", ".join(f"`{name}` is {printable(reprlib.repr(getattr(self, name)))}" for name in wrong))


class ServerClient:
    """HTTP client of one server, for threads without an event loop.

    It ignores proxies and does not follow redirects, so the token is sent to the server only. Certificates are
    verified.

    Args:
        url: scheme, host and port of the server.
        token_variable: environment variable with the token of the server; it is read for each request and not stored.
        timeout: total timeout of a request in seconds.

    Raises:
        ValueError: `url` is not the address of a server.
    """

    def __init__(self, url: str, token_variable: str, timeout: float) -> None:
        if not _is_address(url):
            raise ValueError(f"`urls` has {url.rpartition('@')[2]!r}; pass addresses such as http://127.0.0.1:8000.")
        self.url = url.rstrip("/")
        parts = urlsplit(self.url)
        if parts.path:  # requests have routes of their own
            raise ValueError(
                f"`urls` has {url!r}, which has a path; pass '{parts.scheme}://{parts.netloc}', without it."
            )
        self._token_variable, self._timeout = token_variable, timeout

    def state(self, timeout: float = math.inf) -> ServerState:
        """Return the state of the server; `timeout` can shorten that of the client.

        Raises:
            ServerRefusal: the server refused the token, or was not started by `aggregate-po serve`.
            ServerFailure: the server gave no usable response.
        """
        answer, _ = self._call("GET", STATE_ROUTE, timeout=timeout)
        return self._parsed_state(answer)

    def load_weights(self, version: str) -> None:
        """Make the server load the weights of a version from its folder.

        Raises:
            ServerRefusal: the server refused the token, or does not find the file.
            ServerFailure: the server gave no usable response.
        """
        answer, _ = self._call("POST", WEIGHTS_ROUTE, {"version": version})
        loaded = self._parsed_state(answer).version
        if loaded != version:
            raise ServerFailure(f"{self.url} loaded version {loaded} instead of {version}")

    def completions(self, request: dict[str, Any], version: str) -> list[dict[str, Any]]:
        """Return the choices of a request for completions, in their order.

        Raises:
            ServerRefusal: the server refused the token or the request.
            ServerFailure: the server gave no usable response, or has other weights than `version`.
        """
        tokens = request.get("n", 1) * request["max_tokens"] + len(request["prompt"])
        answer, generated_with = self._call("POST", COMPLETIONS_ROUTE, request, most=_BYTES + tokens * _BYTES_PER_TOKEN)
        if generated_with != version:
            raise ServerFailure(
                f"{self.url} has weights of version {printable(generated_with)} instead of {version}; it was "
                "restarted, or another trainer uses it",
                transient=False,
            )
        choices = answer.get("choices") if isinstance(answer, dict) else None
        if not isinstance(choices, list) or not all(isinstance(choice, dict) for choice in choices):
            raise ServerFailure(f"{self.url} answered without `choices`")
        if not all(type(choice.get("index")) is int for choice in choices):
            raise ServerFailure(f"{self.url} answered with a choice whose `index` is no number")
        return sorted(choices, key=lambda choice: choice["index"])

    def _parsed_state(self, answer: Any) -> ServerState:
        try:
            return ServerState(**{name: answer[name] for name in ServerState.__dataclass_fields__})
        except (KeyError, TypeError, ValueError) as error:
            raise ServerFailure(f"{self.url} did not report its state ({printable(str(error))})") from None

    def _call(
        self, method: str, route: str, body: Any = None, timeout: float = math.inf, most: int = _BYTES
    ) -> tuple[Any, str | None]:
        """Return the parsed response of at most so many bytes, and the version of the weights that produced it."""
        timeout = min(timeout, self._timeout)
        try:
            status, version, content = asyncio.run(self._exchange(method, route, body, timeout, most))
        except TimeoutError:
            raise ServerFailure(f"{self.url} gave no answer within {timeout:g} s", transient=False) from None
        except (aiohttp.ClientError, OSError) as error:
            reason = printable(f"{type(error).__name__}: {error}")
            raise ServerFailure(f"{self.url} cannot be reached ({reason})") from None
        self._check(status, route, content)
        try:
            return json.loads(content, parse_constant=_refused), version
        except (ValueError, RecursionError):
            raise ServerFailure(f"{self.url} answered with something that is not JSON") from None

    async def _exchange(
        self, method: str, route: str, body: Any, timeout: float, most: int
    ) -> tuple[int, str | None, bytes]:
        limit = aiohttp.ClientTimeout(total=timeout)
        headers = {**self._headers(), "Accept-Encoding": "identity"}
        # Decompression is off: a few bytes could become gigabytes.
        session = aiohttp.ClientSession(timeout=limit, headers=headers, trust_env=False, auto_decompress=False)
        async with session, session.request(method, self.url + route, json=body, allow_redirects=False) as response:
            if response.status == 200:
                self._require(response.headers, "Content-Type", "application/json")
            self._require(response.headers, "Content-Encoding", "identity")
            content = bytearray()
            async for chunk in response.content.iter_any():
                content += chunk
                if len(content) > most:
                    raise ServerFailure(f"{self.url} answered with more than {most} bytes to {route}")
            return response.status, response.headers.get(VERSION_HEADER), bytes(content)

    def _require(self, headers: Mapping[str, str], name: str, right: str) -> None:
        sent = headers.get(name, right)
        if sent.partition(";")[0].strip().lower() != right:
            raise ServerFailure(f"{self.url} answered with `{name}` {printable(sent)} instead of {right}")

    def _headers(self) -> dict[str, str]:
        token = os.environ.get(self._token_variable)
        if token and not (token.isascii() and token.isprintable()):
            raise ServerRefusal(  # HTTP libraries would quote it
                f"{self._token_variable} has characters that no request can carry; set it to the token that the "
                "servers were started with."
            )
        return {"Authorization": f"Bearer {token}"} if token else {}

    def _check(self, status: int, route: str, content: bytes) -> None:
        if status == 200:
            return
        message = f"{self.url} answered {status} to {route}: {_error_message(content)}"
        if status in (401, 403) and not os.environ.get(self._token_variable):
            raise ServerRefusal(
                f"{self.url} requires a token (status {status}), and {self._token_variable} is not set here; set it to "
                "the one that the server was started with."
            )
        if status in (401, 403):
            raise ServerRefusal(
                f"{self.url} refused the token (status {status}); set {self._token_variable} to the one that the "
                "server was started with."
            )
        if status == 404 and route in (STATE_ROUTE, WEIGHTS_ROUTE):
            raise ServerRefusal(f"{self.url} takes no weights (status 404); start it with `aggregate-po serve`.")
        if 400 <= status < 500 and status not in (408, 425, 429):
            raise ServerRefusal(message)
        raise ServerFailure(message, transient=status >= 400)


def _is_address(url: str) -> bool:
    """Return whether the URL is the address of a server; credentials in it are refused, since they would be logged."""
    try:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and parts.port != 0
    except ValueError:  # the port is out of range
        return False
    return bool(known) and not ("@" in parts.netloc or parts.query or parts.fragment)


def _error_message(content: bytes) -> str:
    """Return the message of an error response, in any of the usual formats."""
    try:
        error = json.loads(content)
        error = error.get("error", error.get("detail", error))
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError, RecursionError):
        text = content.decode(errors="replace")
    return printable(text)


def printable(text: str | None) -> str:
    """Return the beginning of a text from a server, without what would control a terminal or forge a line of a log."""
    return "".join(letter if letter.isprintable() else " " for letter in str(text)[:_MAX_MESSAGE])


def _refused(constant: str) -> float:
    raise ValueError(f"{constant} is no number of JSON")
