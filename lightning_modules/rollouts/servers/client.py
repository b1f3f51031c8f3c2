"""One vLLM server, seen from the trainer: requests with a time-out, answers that are checked."""

from __future__ import annotations

import http.client
import json
import os
import time
from dataclasses import dataclass
from typing import Any
from urllib.parse import urlsplit

from lightning_modules.rollouts.protocol import STATE_ROUTE, VERSION_HEADER, WEIGHTS_ROUTE

COMPLETIONS_ROUTE = "/v1/completions"
_LONGEST_MESSAGE = 500


class ServerRefusal(RuntimeError):
    """A server says no, and would say so again: to the token, or to what was asked."""


class ServerFailure(RuntimeError):
    """A server gave no usable answer.

    Args:
        message: what happened.
        passing: whether another try may go better.
    """

    def __init__(self, message: str, passing: bool = True) -> None:
        super().__init__(message)
        self.passing = passing


@dataclass(frozen=True)
class ServerState:
    """What a server says about itself.

    Args:
        version: of the weights that were loaded last; "none" at the start.
        logprobs_mode: which log-probabilities it returns.
        dtype: of its weights.
        max_model_len: longest prompt with completion.
        sizes: of its model, see `model_sizes`.
    """

    version: str
    logprobs_mode: str
    dtype: str
    max_model_len: int
    sizes: dict[str, Any]


class Server:
    """Makes requests to one server; proxies and redirections are not followed, so the token goes nowhere else.

    Args:
        url: scheme, host and port.
        token_variable: environment variable with the server's token; it is read for each request and kept nowhere.
        timeout: seconds that a request may take from beginning to end.

    Raises:
        ValueError: `url` is none of a server.
    """

    def __init__(self, url: str, token_variable: str, timeout: float) -> None:
        parts = urlsplit(url)
        known = parts.scheme in ("http", "https") and parts.hostname and _port(url) != 0
        if not known or parts.username or parts.query:
            raise ValueError(f"`urls` has {_without_secret(url)!r}; pass addresses such as http://127.0.0.1:8000.")
        self.url = url.rstrip("/")
        self._secure, self._host, self._port = parts.scheme == "https", parts.hostname or "", _port(url)
        self._path = parts.path.rstrip("/")
        self._token_variable, self._timeout = token_variable, timeout

    def state(self, timeout: float | None = None) -> ServerState:
        """What the server says about itself.

        Raises:
            ServerRefusal: it refused the token, or was not started by `aggregate-po serve`.
            ServerFailure: it gave no usable answer.
        """
        answer, _ = self._call("GET", STATE_ROUTE, timeout=timeout)
        return self._parsed_state(answer)

    def load_weights(self, version: str) -> None:
        """Have the server load the weights of a version from its folder.

        Raises:
            ServerRefusal: it refused the token, or does not find the file.
            ServerFailure: it gave no usable answer.
        """
        answer, _ = self._call("POST", WEIGHTS_ROUTE, {"version": version})
        loaded = self._parsed_state(answer).version
        if loaded != version:
            raise ServerFailure(f"{self.url} loaded version {loaded} instead of {version}")

    def completions(self, request: dict[str, Any], version: str) -> list[dict[str, Any]]:
        """Choices of a request for completions, in their order.

        Raises:
            ServerRefusal: the server refused the token or the request.
            ServerFailure: it gave no usable answer, or one by other weights than `version`.
        """
        answer, drawn_with = self._call("POST", COMPLETIONS_ROUTE, request)
        if drawn_with != version:
            raise ServerFailure(
                f"{self.url} has weights of version {drawn_with} instead of {version}; it was started again, or "
                "another trainer uses it",
                passing=False,
            )
        try:
            return sorted(answer["choices"], key=lambda choice: choice["index"])
        except (KeyError, TypeError):
            raise ServerFailure(f"{self.url} answered without `choices`") from None

    def _parsed_state(self, answer: Any) -> ServerState:
        try:
            fields = {name: answer[name] for name in ServerState.__dataclass_fields__}
        except (KeyError, TypeError):
            raise ServerFailure(f"{self.url} did not say what its state is") from None
        return ServerState(**fields)

    def _call(self, method: str, route: str, body: Any = None, timeout: float | None = None) -> tuple[Any, str | None]:
        """Parsed answer, and the version of the weights that it was made with."""
        try:
            status, version, content = self._exchange(method, route, body, timeout or self._timeout)
        except TimeoutError:
            seconds = timeout or self._timeout
            raise ServerFailure(f"{self.url} gave no answer within {seconds:g} s", passing=False) from None
        except (OSError, http.client.HTTPException) as error:
            raise ServerFailure(f"{self.url} cannot be reached ({type(error).__name__}: {error})") from None
        self._check(status, route, content)
        try:
            return json.loads(content), version
        except ValueError:
            raise ServerFailure(f"{self.url} answered with something that is not JSON") from None

    def _exchange(self, method: str, route: str, body: Any, timeout: float) -> tuple[int, str | None, bytes]:
        deadline = time.monotonic() + timeout
        kind = http.client.HTTPSConnection if self._secure else http.client.HTTPConnection
        connection = kind(self._host, self._port, timeout=timeout)
        try:
            connection.connect()
            socket = connection.sock
            data = None if body is None else json.dumps(body).encode()
            connection.request(method, self._path + route, body=data, headers=self._headers())
            socket.settimeout(_remaining(deadline))
            response = connection.getresponse()
            content = b""
            while chunk := response.read1():
                content += chunk
                # A socket's own time-out begins anew with every byte that arrives.
                socket.settimeout(_remaining(deadline))
            return response.status, response.headers.get(VERSION_HEADER), content
        finally:
            connection.close()

    def _headers(self) -> dict[str, str]:
        headers = {"Content-Type": "application/json", "Connection": "close"}
        if token := os.environ.get(self._token_variable):
            headers["Authorization"] = f"Bearer {token}"
        return headers

    def _check(self, status: int, route: str, content: bytes) -> None:
        if status == 200:
            return
        message = f"{self.url} answered {status} to {route}: {_error_message(content)}"
        if status in (401, 403) and not os.environ.get(self._token_variable):
            raise ServerRefusal(
                f"{self.url} wants a token (status {status}), and {self._token_variable} is not set here; set it to "
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


def _remaining(deadline: float) -> float:
    remaining = deadline - time.monotonic()
    if remaining <= 0:
        raise TimeoutError
    return remaining


def _error_message(content: bytes) -> str:
    """The text in an answer that is an error, in whichever of the usual places it stands."""
    try:
        error = json.loads(content)
        error = error.get("error", error.get("detail", error))
        text = str(error.get("message", error) if isinstance(error, dict) else error)
    except (ValueError, AttributeError):
        text = content.decode(errors="replace")
    return text[:_LONGEST_MESSAGE]


def _port(url: str) -> int | None:
    """Port of an address; None for the usual one, 0 for none that exists."""
    try:
        return urlsplit(url).port
    except ValueError:
        return 0


def _without_secret(url: str) -> str:
    return url.rpartition("@")[2]
