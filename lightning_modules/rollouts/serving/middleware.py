"""What a vLLM server gains (`--middleware`): a token on every route, and a route that loads the policy's weights."""

from __future__ import annotations

import asyncio
import hmac
import json
import os
from collections.abc import Awaitable, Callable, MutableMapping
from pathlib import Path
from typing import Any

from lightning_modules.rollouts.protocol import (
    FOLDER_VARIABLE,
    STATE_ROUTE,
    TOKEN_VARIABLE,
    VERSION_HEADER,
    WEIGHTS_ROUTE,
    model_sizes,
    weights_file,
)

Message = MutableMapping[str, Any]
Receive = Callable[[], Awaitable[Message]]
Send = Callable[[Message], Awaitable[None]]
Application = Callable[[Message, Receive, Send], Awaitable[None]]

_LONGEST_BODY = 2**24
_LONGEST_LOAD = 3600.0  # seconds
_BROKEN = "broken"  # the version while weights are loaded, and for ever where that fails


class OpenGate:
    """Loads weights on request, and says in every answer which ones it was made with; asks for no token."""

    def __init__(self, app: Application) -> None:
        self.app = app
        self._loading = asyncio.Lock()

    async def __call__(self, scope: Message, receive: Receive, send: Send) -> None:
        """Serve one connection, or the start and the end of the server."""
        if scope["type"] == "lifespan":
            await self.app(scope, receive, _announcing(scope, send))
        elif not self._admits(scope):
            await _refuse(scope, send)
        elif (scope.get("method"), scope["path"]) == ("GET", STATE_ROUTE):
            await _answer(send, 200, _state(scope))
        elif (scope.get("method"), scope["path"]) == ("POST", WEIGHTS_ROUTE):
            await self._load(scope, receive, send)
        else:
            await self.app(scope, receive, _labelling(scope, send))

    def _admits(self, scope: Message) -> bool:
        return True

    async def _load(self, scope: Message, receive: Receive, send: Send) -> None:
        """Answer a request to load weights; one at a time."""
        state = scope["app"].state
        async with self._loading:
            try:
                await _load(state, json.loads(await _body(receive)))
            except (ValueError, TypeError, KeyError, OSError) as error:
                await _answer(send, 400, {"error": f"{type(error).__name__}: {error}"})
            except Exception as error:  # whatever the engine's process reports
                await _answer(send, 500, {"error": f"{type(error).__name__}: {error}"})
            else:
                await _answer(send, 200, _state(scope))


class TokenGate(OpenGate):
    """Demands the token of the environment on every route; vLLM's `--api-key` guards some only.

    Raises:
        RuntimeError: the environment has none.
    """

    def __init__(self, app: Application) -> None:
        super().__init__(app)
        token = os.environ.get(TOKEN_VARIABLE, "")
        if not token:
            raise RuntimeError(f"{TOKEN_VARIABLE} is not set; start the server with `aggregate-po serve`.")
        self._expected = f"Bearer {token}".encode()

    def _admits(self, scope: Message) -> bool:
        sent = [value for name, value in scope["headers"] if name == b"authorization"]
        return len(sent) == 1 and hmac.compare_digest(sent[0], self._expected)


async def _load(state: Any, request: Any) -> None:
    """Stop what is being generated, load the weights of a version and start afresh."""
    version = request["version"]
    path = _existing(version)
    if getattr(state, "policy_version", "none") == _BROKEN:
        raise RuntimeError(
            "weights could not be loaded before, which vLLM does not recover from; start the server again"
        )
    engine = state.engine_client
    await engine.pause_generation(mode="abort", clear_cache=True)
    try:
        digests = await _told(engine, state, path)
        state.policy_version = "damaged"
        if any(digest != version.rpartition("-")[2] for digest in digests):
            raise RuntimeError(
                f"the weights of version {version} have the digests {digests}; they were damaged on their way"
            )
        await engine.update_weight_version(version)
        state.policy_version = version
    finally:
        await engine.resume_generation()


async def _told(engine: Any, state: Any, path: Path) -> Any:
    """Digests of what the workers loaded; while they do, and where they fail, the server has no weights."""
    state.policy_version = _BROKEN
    try:
        return await _answer_of(engine.collective_rpc("load_policy_file", args=(str(path),)), _LONGEST_LOAD)
    except Exception as error:
        raise RuntimeError(str(error)) from error  # also where it looks like a mistake in the request


async def _answer_of(call: Awaitable[Any], seconds: float) -> Any:
    """Result of a call of the engine; one that is gone never answers, and the server would wait for it to the end."""
    try:
        return await asyncio.wait_for(call, seconds)
    except TimeoutError:
        raise RuntimeError(f"the engine gave no answer within {seconds:g} s; start the server again") from None


def _existing(version: str) -> Path:
    folder = os.environ.get(FOLDER_VARIABLE)
    if not folder:
        raise FileNotFoundError("the server was started without `--weights_folder`; name the folder of `SharedFolder`")
    path = weights_file(Path(folder), version)
    if not path.is_file():
        raise FileNotFoundError(f"{path} does not exist; trainer and server must share the folder")
    return path


def _state(scope: Message) -> dict[str, Any]:
    """What a client must know before it asks for completions."""
    state = scope["app"].state
    config = state.engine_client.model_config
    return {
        "version": _version(scope),
        "logprobs_mode": config.logprobs_mode,
        "dtype": str(config.dtype),
        "max_model_len": config.max_model_len,
        "sizes": model_sizes(config.hf_config),
    }


def _version(scope: Message) -> str:
    return getattr(scope["app"].state, "policy_version", "none")


def _labelling(scope: Message, send: Send) -> Send:
    """Add the version of the weights to an answer; one that saw two versions gets neither."""
    before = _version(scope)

    async def labelled(message: Message) -> None:
        if message["type"] == "http.response.start":
            version = before if _version(scope) == before else "mixed"
            header = (VERSION_HEADER.encode(), version.encode())
            message = {**message, "headers": [*message.get("headers", []), header]}
        await send(message)

    return labelled


def _announcing(scope: Message, send: Send) -> Send:
    """Say on the terminal when the server is ready."""

    async def announced(message: Message) -> None:
        await send(message)
        if message["type"] == "lifespan.startup.complete":
            arguments = scope["app"].state.args
            scheme = "https" if arguments.ssl_certfile else "http"
            host = f"[{arguments.host}]" if ":" in arguments.host else arguments.host
            print(f"ready: {scheme}://{host}:{arguments.port}", flush=True)

    return announced


async def _body(receive: Receive) -> bytes:
    body, more = b"", True
    while more:
        message = await receive()
        body += message.get("body", b"")
        more = message.get("more_body", False)
        if len(body) > _LONGEST_BODY:
            raise ValueError(f"the body is longer than {_LONGEST_BODY} bytes")
    return body


async def _refuse(scope: Message, send: Send) -> None:
    if scope["type"] == "websocket":
        await send({"type": "websocket.close", "code": 1008})
    else:
        await _answer(send, 401, {"error": "the token is missing or wrong"})


async def _answer(send: Send, status: int, content: dict[str, Any]) -> None:
    body = json.dumps(content).encode()
    headers = [(b"content-type", b"application/json"), (b"content-length", str(len(body)).encode())]
    await send({"type": "http.response.start", "status": status, "headers": headers})
    await send({"type": "http.response.body", "body": body})
