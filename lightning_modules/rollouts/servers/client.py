"""Client of one vLLM server, with timeouts and validation of responses."""

from __future__ import annotations

import asyncio
import json
import math
import os
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

import aiohttp

from lightning_modules.rollouts.protocol import STATE_ROUTE, VERSION_HEADER, WEIGHTS_ROUTE

COMPLETIONS_ROUTE = "/v1/completions"

_MAX_MESSAGE = 500


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
        dtype: dtype of the weights.
        max_model_len: maximum number of tokens of a prompt with its completion.
        sizes: sizes of the model, see `model_sizes`.
    """

    version: str
    logprobs_mode: str
    dtype: str
    max_model_len: int
    sizes: dict[str, Any]


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
        answer, generated_with = self._call("POST", COMPLETIONS_ROUTE, request)
        if generated_with != version:
            raise ServerFailure(
                f"{self.url} has weights of version {generated_with} instead of {version}; it was restarted, or "
                "another trainer uses it",
                transient=False,
            )
        try:
            return sorted(answer["choices"], key=lambda choice: choice["index"])
        except (KeyError, TypeError):
            raise ServerFailure(f"{self.url} answered without `choices`") from None

    def _parsed_state(self, answer: Any) -> ServerState:
        try:
            return ServerState(**{name: answer[name] for name in ServerState.__dataclass_fields__})
        except (KeyError, TypeError):
            raise ServerFailure(f"{self.url} did not report its state") from None

    def _call(self, method: str, route: str, body: Any = None, timeout: float = math.inf) -> tuple[Any, str | None]:
        """Return the parsed response, and the version of the weights that produced it."""
        timeout = min(timeout, self._timeout)
        try:
            status, version, content = asyncio.run(self._exchange(method, route, body, timeout))
        except TimeoutError:
            raise ServerFailure(f"{self.url} gave no answer within {timeout:g} s", transient=False) from None
        except (aiohttp.ClientError, OSError) as error:
            raise ServerFailure(f"{self.url} cannot be reached ({type(error).__name__}: {error})") from None
        self._check(status, route, content)
        try:
            return json.loads(content), version
        except ValueError:
            raise ServerFailure(f"{self.url} answered with something that is not JSON") from None

    async def _exchange(self, method: str, route: str, body: Any, timeout: float) -> tuple[int, str | None, bytes]:
        limit = aiohttp.ClientTimeout(total=timeout)
        async with (
            aiohttp.ClientSession(timeout=limit, headers=self._headers(), trust_env=False) as session,
            session.request(method, self.url + route, json=body, allow_redirects=False) as response,
        ):
            return response.status, response.headers.get(VERSION_HEADER), await response.read()

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
        if status >= 500 or status in (408, 425, 429):
            raise ServerFailure(message)
        raise ServerRefusal(message)


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
    except (ValueError, AttributeError):
        text = content.decode(errors="replace")
    return text[:_MAX_MESSAGE]
