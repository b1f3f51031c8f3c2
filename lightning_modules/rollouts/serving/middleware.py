"""Middleware of a vLLM server (`--middleware`): limits, authentication, and a route that loads weights.

The classes implement plain ASGI, since Starlette's `BaseHTTPMiddleware` wraps every response body and skips websockets.
"""

from __future__ import annotations

import asyncio
import hmac
import json
import os
from pathlib import Path
from typing import Any

from starlette.datastructures import Headers, MutableHeaders
from starlette.requests import ClientDisconnect, Request
from starlette.responses import JSONResponse
from starlette.types import ASGIApp, Message, Receive, Scope, Send
from starlette.websockets import WebSocketClose

from lightning_modules.rollouts.private_folder import require_private
from lightning_modules.rollouts.protocol import (
    FOLDER_VARIABLE,
    STATE_ROUTE,
    TOKEN_VARIABLE,
    VERSION_HEADER,
    WEIGHTS_ROUTE,
    model_sizes,
    weights_file,
)
from lightning_modules.rollouts.serving.connections import LimitedConnection

_MAX_HEADERS = 2**16  # bytes
_MAX_BODY = 2**16  # bytes; a request only names a version
_LOAD_TIMEOUT = 3600.0  # seconds
_BROKEN = "broken"  # the version while weights are loaded, and for good after a failure


class ConnectionLimits:
    """Has the server of vLLM use `LimitedConnection`, and take no websockets, from its start on.

    Raises:
        RuntimeError: the server started without the limits.
    """

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._in_force = False

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Set the limits at the start, and pass on everything."""
        if scope["type"] == "lifespan":
            config = scope["app"].state.server.config
            config.http_protocol_class, config.ws_protocol_class = LimitedConnection, None
            config.h11_max_incomplete_event_size = _MAX_HEADERS
            self._in_force = True
        elif not self._in_force:  # Uvicorn goes on after an error at the start
            raise RuntimeError("the limits on connections are not in force; see the error at the start of the server.")
        await self.app(scope, receive, send)


class TokenAuth:
    """Requires the token of the environment on every route; `--api-key` of vLLM protects only some routes.

    Raises:
        RuntimeError: the environment has no token.
    """

    def __init__(self, app: ASGIApp) -> None:
        token = os.environ.get(TOKEN_VARIABLE, "")
        if not token:
            raise RuntimeError(f"{TOKEN_VARIABLE} is not set; start the server with `aggregate-po serve`.")
        self.app = app
        self._expected = f"Bearer {token}".encode()

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Pass on requests with the token and lifespan messages, and refuse all other requests."""
        if scope["type"] == "lifespan" or self._is_authorized(scope):
            await self.app(scope, receive, send)
        elif scope["type"] == "websocket":
            await WebSocketClose(1008)(scope, receive, send)
        else:
            await JSONResponse({"error": "the token is missing or wrong"}, 401)(scope, receive, send)

    def _is_authorized(self, scope: Scope) -> bool:
        sent = Headers(scope=scope).getlist("authorization")
        return len(sent) == 1 and hmac.compare_digest(sent[0].encode("latin-1"), self._expected)


class PolicyWeights:
    """Loads the weights of the policy on request, and labels every response with the version of the weights."""

    def __init__(self, app: ASGIApp) -> None:
        self.app = app
        self._version = "none"
        self._loading = asyncio.Lock()
        # The router of Starlette would replace that of vLLM in the scope.
        self._endpoints = {("GET", STATE_ROUTE): self._state, ("POST", WEIGHTS_ROUTE): self._load}

    async def __call__(self, scope: Scope, receive: Receive, send: Send) -> None:
        """Handle the two routes, and pass on all other requests."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, _announcing(scope, send))
        elif endpoint := self._endpoints.get((scope.get("method", ""), scope["path"])):
            response = await endpoint(Request(scope, receive))
            await response(scope, receive, send)
        else:
            await self.app(scope, receive, self._labeling(send))

    async def _state(self, request: Request) -> JSONResponse:
        """Return the state that a client needs before it requests completions."""
        config = request.app.state.engine_client.model_config
        state = {
            "version": self._version,
            "logprobs_mode": config.logprobs_mode,
            "dtype": str(config.dtype),
            "max_model_len": config.max_model_len,
            "sizes": model_sizes(config.hf_config),
        }
        return JSONResponse(state)

    async def _load(self, request: Request) -> JSONResponse:
        """Load the weights of a version, one request at a time."""
        try:
            version = json.loads(await _limited_body(request))["version"]
            path = _existing_file(version)
        except (ValueError, TypeError, KeyError, OSError, ClientDisconnect) as error:
            return _error(400, error)
        async with self._loading:
            try:
                await self._load_file(request.app.state.engine_client, path, version)
            except Exception as error:  # any error of the engine process
                return _error(500, error)
            return await self._state(request)

    async def _load_file(self, engine: Any, path: Path, version: str) -> None:
        """Abort generation, load a file into every worker, and resume with an empty cache."""
        if self._version == _BROKEN:
            raise RuntimeError("a previous attempt to load weights failed, and vLLM cannot recover; restart the server")
        await engine.pause_generation(mode="abort", clear_cache=True)
        try:
            self._version = _BROKEN
            digests = await _loaded_by_workers(engine, path)
            self._version = "damaged"
            if any(digest != version.rpartition("-")[2] for digest in digests):
                raise RuntimeError(
                    f"the weights of version {version} have the digests {digests}; they were damaged in transit"
                )
            await engine.update_weight_version(version)
            self._version = version
        finally:
            await engine.resume_generation()

    def _labeling(self, send: Send) -> Send:
        """Add the version of the weights to a response, or "mixed" if it changed during the request."""
        before = self._version

        async def labeled(message: Message) -> None:
            if message["type"] == "http.response.start":
                message.setdefault("headers", [])
                version = before if self._version == before else "mixed"
                MutableHeaders(scope=message).append(VERSION_HEADER, version)
            await send(message)

        return labeled


async def _loaded_by_workers(engine: Any, path: Path) -> list[str]:
    """Return the digests of the weights that the workers loaded; the call of vLLM hangs if a worker is gone."""
    try:
        async with asyncio.timeout(_LOAD_TIMEOUT):
            return await engine.collective_rpc("load_policy_file", args=(str(path),))
    except TimeoutError:
        raise RuntimeError(f"the engine did not respond within {_LOAD_TIMEOUT:g} s; restart the server") from None


async def _limited_body(request: Request) -> bytes:
    body = b""
    async for chunk in request.stream():
        body += chunk
        if len(body) > _MAX_BODY:
            raise ValueError(f"the body is longer than {_MAX_BODY} bytes")
    return body


def _existing_file(version: str) -> Path:
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        raise FileNotFoundError("the server was started without `--weights_folder`; name the folder of `SharedFolder`")
    path = weights_file(Path(folder), version)
    if path.parent.is_dir():
        require_private(path.parent)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; trainer and server must share the folder")
    return path


def _error(status: int, error: Exception) -> JSONResponse:
    return JSONResponse({"error": f"{type(error).__name__}: {error}"}, status)


def _announcing(scope: Scope, send: Send) -> Send:
    """Print the address of the server when it is ready."""

    async def announced(message: Message) -> None:
        await send(message)
        if message["type"] == "lifespan.startup.complete":
            arguments = scope["app"].state.args
            scheme = "https" if arguments.ssl_certfile else "http"
            host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
            print(f"ready: {scheme}://{host}:{arguments.port}", flush=True)

    return announced
