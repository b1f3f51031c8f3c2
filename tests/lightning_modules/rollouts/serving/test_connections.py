"""Attacks by sockets on a real Uvicorn with the middleware of a server: each ends, and the others are served."""

import asyncio
import gc
import json
import socket
import threading
import time
from contextlib import suppress
from types import SimpleNamespace

import psutil
import pytest

from lightning_modules.rollouts import SharedFolder
from tests.lightning_modules.rollouts.serving.test_middleware import AUTHORIZED, TOKEN, Application

pytest.importorskip("uvicorn", reason="comes with vLLM")
import uvicorn
from starlette.responses import JSONResponse, PlainTextResponse
from starlette.routing import Route

from lightning_modules.rollouts.serving.connections import LimitedConnection
from lightning_modules.rollouts.serving.middleware import ConnectionLimits, PolicyWeights, TokenAuth

AUTHORIZATION = f"Authorization: Bearer {TOKEN}\r\n".encode()
SECONDS = 0.6  # of the limits in these tests
LARGE = 2**24  # bytes of a response that no buffer of the system holds


async def echo(request):
    return JSONResponse({"bytes": len(await request.body())})


async def slow(request):
    await asyncio.sleep(3 * SECONDS)
    return PlainTextResponse("done")


async def large(request):
    return PlainTextResponse(b"x" * LARGE)


@pytest.fixture(params=["asyncio", "uvloop"])
def server(request, monkeypatch, tmp_path):
    """As vLLM starts Uvicorn, on the event loop that vLLM uses and on that of the standard library."""
    monkeypatch.setenv("AGGREGATE_PO_TOKEN", TOKEN)
    monkeypatch.setenv("AGGREGATE_PO_WEIGHTS_FOLDER", str(tmp_path))
    monkeypatch.setattr(LimitedConnection, "request_seconds", SECONDS)
    monkeypatch.setattr(LimitedConnection, "response_seconds", 2 * SECONDS)
    monkeypatch.setattr(LimitedConnection, "request_bytes", 2**20)
    monkeypatch.setattr(LimitedConnection, "waiting", 50)
    application = Application()
    for path, endpoint in (("/echo", echo), ("/slow", slow), ("/large", large)):
        application.router.routes.append(Route(path, endpoint, methods=["GET", "POST"]))
    for middleware in (PolicyWeights, TokenAuth, ConnectionLimits):
        application.add_middleware(middleware)
    config = uvicorn.Config(application, port=0, loop=request.param, log_level="critical")
    config.h11_max_incomplete_event_size = 2**22  # as vLLM has it
    running = application.state.server = uvicorn.Server(config)
    thread = threading.Thread(target=running.run, daemon=True)
    thread.start()
    while not running.started:
        time.sleep(0.01)
    port = running.servers[0].sockets[0].getsockname()[1]
    yield SimpleNamespace(port=port, running=running, application=application)
    running.should_exit = running.force_exit = True
    thread.join(10)


def connected(server):
    client = socket.create_connection(("127.0.0.1", server.port), timeout=10)
    client.settimeout(10)
    return client


def is_served(server):
    """Whether a request with the token is answered."""
    return answer_to(server, b"GET /health HTTP/1.1\r\nHost: x\r\n" + AUTHORIZATION + b"\r\n").startswith(
        b"HTTP/1.1 200"
    )


def answer_to(server, request):
    with connected(server) as client:
        client.sendall(request)
        return client.recv(65536)


def seconds_until_closed(client, drip=b"", pause=0.05):
    """Drip bytes into a connection until it is closed; return how long that took."""
    begun, client_timeout = time.monotonic(), client.gettimeout()
    client.settimeout(pause)
    while time.monotonic() - begun < 10:
        try:
            if drip:
                client.sendall(drip)
            if not client.recv(65536):
                break
        except TimeoutError:
            continue
        except OSError:  # reset
            break
    client.settimeout(client_timeout)
    return time.monotonic() - begun


def assert_ended(server, seconds, limit=SECONDS):
    assert 0.5 * limit < seconds < limit + 2
    deadline = time.monotonic() + 2
    while server.running.server_state.connections and time.monotonic() < deadline:
        time.sleep(0.02)
    assert not server.running.server_state.connections
    assert is_served(server)


HEAD = b"POST /echo HTTP/1.1\r\nHost: x\r\n"
UNFINISHED = {
    "nothing": b"",
    "half a line": b"GET /hea",
    "half of the headers": b"GET /health HTTP/1.1\r\nHost: x\r\n",
    "half a body": HEAD + AUTHORIZATION + b"Content-Length: 100\r\n\r\n{",
    "half a chunk": HEAD + AUTHORIZATION + b"Transfer-Encoding: chunked\r\n\r\n10\r\nab",
    "half a body without the token": HEAD + b"Content-Length: 100\r\n\r\n{",
}
DRIPS = {
    "headers": (b"GET /health HTTP/1.1\r\n", b"a: b\r\n"),
    "one header": (b"GET /health HTTP/1.1\r\na: ", b"b"),
    "the line": (b"GET /", b"a"),
    "a body": (HEAD + AUTHORIZATION + b"Content-Length: 1000\r\n\r\n", b" "),
    "chunks": (HEAD + AUTHORIZATION + b"Transfer-Encoding: chunked\r\n\r\n", b"1\r\na\r\n"),
    "a body without the token": (HEAD + b"Content-Length: 1000\r\n\r\n", b" "),
}


@pytest.mark.parametrize("sent", UNFINISHED.values(), ids=UNFINISHED.keys())
def test_a_request_that_stops_is_ended(server, sent):
    with connected(server) as client:
        client.sendall(sent)
        assert_ended(server, seconds_until_closed(client))


@pytest.mark.parametrize(("sent", "drip"), DRIPS.values(), ids=DRIPS.keys())
def test_a_request_that_drips_is_ended_at_the_same_time(server, sent, drip):
    with connected(server) as client:
        client.sendall(sent)
        assert_ended(server, seconds_until_closed(client, drip))


@pytest.mark.parametrize("unit", [b"a: b\r\n", b"a"], ids=["headers", "one header"])
def test_endless_headers_end_after_a_few_bytes(server, unit):
    """They filled the memory of a server."""
    memory = psutil.Process().memory_info().rss
    with connected(server) as client:
        client.sendall(b"GET /health HTTP/1.1\r\na: ")
        sent = 0
        with suppress(OSError):
            for _ in range(200):
                client.sendall(unit * (2**18 // len(unit)))
                sent += 2**18
        assert sent < 2**23  # what the system's buffers take
    gc.collect()
    assert psutil.Process().memory_info().rss - memory < 2**25
    assert is_served(server)


def test_an_endless_body_ends(server):
    with connected(server) as client:
        client.sendall(HEAD + AUTHORIZATION + b"Transfer-Encoding: chunked\r\n\r\n")
        sent = 0
        with suppress(OSError):
            for _ in range(1000):
                client.sendall(b"10000\r\n" + b"a" * 2**16 + b"\r\n")
                sent += 2**16
        assert sent < 2**24
    assert is_served(server)


def test_a_stalled_body_keeps_nobody_from_loading_weights(server, tmp_path):
    import torch

    version = SharedFolder(str(tmp_path)).publish({"a": torch.ones(2)})
    body = json.dumps({"version": version}).encode()
    head = b"POST /aggregate_po/weights HTTP/1.1\r\nHost: x\r\n" + AUTHORIZATION
    head += b"Content-Length: %d\r\n\r\n" % len(body)
    with connected(server) as stalled:
        stalled.sendall(head + body[:-1])
        begun = time.monotonic()
        assert answer_to(server, head + body).startswith(b"HTTP/1.1 200")
        assert time.monotonic() - begun < SECONDS
        assert_ended(server, seconds_until_closed(stalled) + time.monotonic() - begun)


def test_a_response_that_nobody_reads_is_dropped(server):
    with connected(server) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\n" + AUTHORIZATION + b"\r\n")
        time.sleep(0.2)
        client.sendall(b"GET")  # the next request, which is no progress
        deadline = time.monotonic() + 2 * SECONDS + 3
        while server.running.server_state.connections and time.monotonic() < deadline:
            time.sleep(0.05)
        assert not server.running.server_state.connections
    assert is_served(server)


def test_a_response_is_read_in_full_by_who_reads_slowly(server):
    received = 0
    with connected(server) as client:
        client.sendall(b"GET /large HTTP/1.1\r\nHost: x\r\nConnection: close\r\n" + AUTHORIZATION + b"\r\n")
        time.sleep(1.4 * SECONDS)
        while data := client.recv(2**20):
            received += len(data)
    assert received > LARGE


def test_work_takes_as_long_as_it_takes(server):
    """Also on the second request of a connection, and on one that was sent before the first was answered."""
    request = b"GET /slow HTTP/1.1\r\nHost: x\r\n" + AUTHORIZATION + b"\r\n"
    with connected(server) as client:
        client.sendall(request + request)
        received = b""
        while received.count(b"done") < 2:
            data = client.recv(65536)
            assert data, received
            received += data


def test_a_connection_is_used_again_and_then_ended(server):
    request = b"POST /echo HTTP/1.1\r\nHost: x\r\n" + AUTHORIZATION + b"Content-Length: 2\r\n\r\nab"
    with connected(server) as client:
        for _ in range(5):
            client.sendall(request)
            received = b""
            while b'{"bytes":2}' not in received:
                received += client.recv(65536)
            time.sleep(SECONDS / 3)
        assert_ended(server, seconds_until_closed(client))


def test_many_idle_connections_lock_nobody_out(server):
    idle = [connected(server) for _ in range(150)]
    assert is_served(server)
    assert len(server.running.server_state.connections) <= 51
    for client in idle:
        client.close()


def test_websockets_are_not_taken(server):
    upgrade = b"Upgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Key: dGhlIHNhbXBsZSBub25jZQ==\r\n"
    request = b"GET /v1/realtime HTTP/1.1\r\nHost: x\r\nSec-WebSocket-Version: 13\r\n" + upgrade
    assert answer_to(server, request + b"\r\n").startswith(b"HTTP/1.1 401")
    assert b"101 Switching" not in answer_to(server, request + AUTHORIZATION + b"\r\n")


def test_a_server_whose_start_went_wrong_answers_nothing(monkeypatch):
    """Uvicorn goes on where the start of an application fails, and would do so without the limits."""
    monkeypatch.setenv("AGGREGATE_PO_TOKEN", TOKEN)
    limits = ConnectionLimits(Application())
    scope = {"type": "http", "method": "GET", "path": "/health", "headers": list(AUTHORIZED.items())}
    with pytest.raises(RuntimeError, match="limits on connections are not in force"):
        asyncio.run(limits(scope, None, None))
