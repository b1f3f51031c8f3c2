"""The middleware of a server and the extension of its worker, on a Starlette application in the place of vLLM's."""

import asyncio
import threading
import time
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config

from lightning_modules.rollouts import SharedFolder
from lightning_modules.rollouts.protocol import weights_file
from lightning_modules.rollouts.serving.worker import WorkerExtension

pytest.importorskip("starlette", reason="comes with vLLM")
from starlette.applications import Starlette
from starlette.responses import JSONResponse, StreamingResponse
from starlette.routing import Route, WebSocketRoute
from starlette.testclient import TestClient
from starlette.websockets import WebSocketDisconnect

from lightning_modules.rollouts.serving import middleware
from lightning_modules.rollouts.serving.middleware import PolicyWeights, TokenAuth

TOKEN = "a-token-for-the-tests"
AUTHORIZED = {"Authorization": f"Bearer {TOKEN}"}


class Worker(WorkerExtension):
    """Takes the place of vLLM's worker, whose method this is."""

    def reload_weights(self, weights_iterator):
        self.weights = dict(weights_iterator)


class Engine:
    """Replaces the engine of vLLM, and records its calls."""

    def __init__(self):
        self.model_config = SimpleNamespace(
            logprobs_mode="processed_logprobs",
            dtype=torch.float32,
            max_model_len=64,
            hf_config=Qwen2Config(hidden_size=8, vocab_size=9, num_hidden_layers=2, num_attention_heads=4),
        )
        self.workers = [Worker(), Worker()]
        self.calls = []

    async def pause_generation(self, mode, clear_cache):
        self.calls.append(("pause", mode, clear_cache))

    async def collective_rpc(self, method, args):
        self.calls.append((method,))
        await asyncio.sleep(0.05)
        return [getattr(worker, method)(*args) for worker in self.workers]

    async def update_weight_version(self, version):
        self.calls.append(("version", version))

    async def resume_generation(self):
        self.calls.append(("resume",))


class Application(Starlette):
    """Takes the place of vLLM's application."""

    def __init__(self):
        routes = [Route("/v1/completions", self.complete, methods=["POST"]), Route("/health", self.complete)]
        super().__init__(routes=[*routes, WebSocketRoute("/v1/realtime", self.realtime)])
        self.served = []
        self.before_answering = lambda: asyncio.sleep(0)
        self.answer = lambda: JSONResponse({}, headers={"a": "b"})
        self.state.engine_client = Engine()
        self.state.args = SimpleNamespace(host="127.0.0.1", port=8000, ssl_certfile=None)

    async def complete(self, request):
        self.served.append(request.url.path)
        await self.before_answering()
        return self.answer()

    async def realtime(self, websocket):
        self.served.append(websocket.url.path)
        await websocket.accept()
        await websocket.send_text("hello")
        await websocket.close()


@pytest.fixture
def application(monkeypatch, tmp_path):
    """As vLLM adds the two classes, the last one outermost."""
    monkeypatch.setenv("AGGREGATE_PO_TOKEN", TOKEN)
    monkeypatch.setenv("AGGREGATE_PO_WEIGHTS_FOLDER", str(tmp_path))
    application = Application()
    application.add_middleware(PolicyWeights)
    application.add_middleware(TokenAuth)
    return application


@pytest.fixture
def client(application):
    with TestClient(application, headers=AUTHORIZED) as client:
        yield client


@pytest.fixture
def stranger(application):
    with TestClient(application) as client:
        yield client


def load(client, version):
    response = client.post("/aggregate_po/weights", json={"version": version})
    return response.status_code, response.json()


def version_label(client):
    return client.post("/v1/completions").headers["x-policy-version"]


# Authentication


ROUTES = ["/v1/completions", "/health", "/collective_rpc", "/metrics", "/", "/aggregate_po/weights"]
WRONG = {
    "none": [],
    "another": [("Authorization", "Bearer another")],
    "shorter": [("Authorization", f"Bearer {TOKEN[:-1]}")],
    "longer": [("Authorization", f"Bearer {TOKEN}x")],
    "no scheme": [("Authorization", TOKEN)],
    "two": [*AUTHORIZED.items(), ("Authorization", "Bearer another")],
    "bytes": [(b"Authorization", b"Bearer \xff\xfe")],
}


@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG.keys())
def test_nothing_passes_without_the_token(application, stranger, headers):
    stranger.headers = headers
    for path in [*ROUTES, "/aggregate_po/state"]:
        for method in ("GET", "POST", "OPTIONS", "HEAD"):
            response = stranger.request(method, path)
            assert response.status_code == 401
            assert TOKEN not in response.text
    with pytest.raises(WebSocketDisconnect) as refusal, stranger.websocket_connect("/v1/realtime"):
        pass
    assert refusal.value.code == 1008
    assert not application.served
    assert not application.state.engine_client.calls


def test_with_the_token_a_request_goes_through(application, client):
    response = client.post("/v1/completions")
    assert (response.status_code, response.json(), response.headers["a"]) == (200, {}, "b")
    assert client.get("/nothing").status_code == 404
    with client.websocket_connect("/v1/realtime") as websocket:
        assert websocket.receive_text() == "hello"
    assert application.served == ["/v1/completions", "/v1/realtime"]


@pytest.mark.parametrize("token", [None, ""])
def test_without_a_token_the_server_does_not_start(application, monkeypatch, token):
    monkeypatch.delenv("AGGREGATE_PO_TOKEN")
    if token is not None:
        monkeypatch.setenv("AGGREGATE_PO_TOKEN", token)
    with pytest.raises(RuntimeError, match="AGGREGATE_PO_TOKEN is not set"):
        TokenAuth(application)


def test_an_insecure_server_has_the_other_middleware_alone(monkeypatch, tmp_path):
    monkeypatch.delenv("AGGREGATE_PO_TOKEN", raising=False)
    application = Application()
    application.add_middleware(PolicyWeights)
    assert version_label(TestClient(application)) == "none"


def test_tokens_are_compared_in_constant_time(client, monkeypatch):
    compared = []
    monkeypatch.setattr(middleware.hmac, "compare_digest", lambda *both: bool(compared.append(both)))
    assert client.get("/health").status_code == 401
    assert compared == [(f"Bearer {TOKEN}".encode(),) * 2]


@pytest.mark.parametrize(
    ("host", "certificate", "address"),
    [
        ("127.0.0.1", None, "http://127.0.0.1:8000"),
        ("::1", None, "http://[::1]:8000"),
        ("node", "c.pem", "https://node:8000"),
    ],
)
def test_the_server_says_when_it_is_ready(application, capsys, host, certificate, address):
    application.state.args.host, application.state.args.ssl_certfile = host, certificate
    with TestClient(application):
        assert capsys.readouterr().out == f"ready: {address}\n"


def test_a_streamed_answer_passes_piece_by_piece(application):
    """The second piece is not made before the first has arrived."""
    arrived = asyncio.Event()

    async def pieces():
        yield b"first"
        await asyncio.wait_for(arrived.wait(), 5)
        yield b"second"

    application.answer = lambda: StreamingResponse(pieces())
    received = []

    async def send(message):
        received.append(message)
        if message.get("body") == b"first":
            arrived.set()

    async def receive():
        if received and received[-1].get("more_body") is False:
            return {"type": "http.disconnect"}
        await asyncio.sleep(0 if not received else 10)
        return {"type": "http.request", "body": b"", "more_body": False}

    headers = [(b"authorization", AUTHORIZED["Authorization"].encode())]
    scope = {"type": "http", "method": "POST", "path": "/v1/completions", "headers": headers, "query_string": b""}
    asyncio.run(application(scope, receive, send))
    assert [message["body"] for message in received[1:]] == [b"first", b"second", b""]
    assert (b"x-policy-version", b"none") in received[0]["headers"]


# Weights


@pytest.fixture
def published(tmp_path):
    """Weights in a folder, with their version: two types, a number alone, and two names for one tensor."""
    weights = {"embedding": torch.randn(3, 4), "scale": torch.tensor(2.0), "half": torch.randn(5).bfloat16()}
    weights["head"] = weights["embedding"]
    return weights, SharedFolder(str(tmp_path)).publish(weights)


def test_weights_are_loaded_while_nothing_is_generated(application, client, published):
    weights, version = published
    status, answer = load(client, version)
    assert (status, answer["version"]) == (200, version)
    engine = application.state.engine_client
    assert engine.calls == [("pause", "abort", True), ("load_policy_file",), ("version", version), ("resume",)]
    for worker in engine.workers:
        assert worker.weights.keys() == weights.keys()
        for name, tensor in weights.items():
            assert torch.equal(worker.weights[name], tensor)
            assert worker.weights[name].dtype == tensor.dtype
    assert version_label(client) == version
    sizes = {"hidden_size": 8, "num_hidden_layers": 2, "num_attention_heads": 4, "vocab_size": 9}
    assert client.get("/aggregate_po/state").json() == {
        "version": version,
        "logprobs_mode": "processed_logprobs",
        "dtype": "torch.float32",
        "max_model_len": 64,
        "sizes": {"model_type": "qwen2", **sizes},
    }


def test_one_request_at_a_time_loads(application, client, published, tmp_path):
    versions = [published[1], SharedFolder(str(tmp_path / "b")).publish({"a": torch.ones(2)})]
    (tmp_path / "b" / f"policy-{versions[1]}.safetensors").rename(weights_file(tmp_path, versions[1]))

    with ThreadPoolExecutor() as pool:
        answers = list(pool.map(load, [client, client], versions))
    assert [(status, answer["version"]) for status, answer in answers] == [(200, version) for version in versions]
    steps = [call[0] for call in application.state.engine_client.calls]
    assert steps == ["pause", "load_policy_file", "version", "resume"] * 2


def test_a_damaged_file_is_noticed_and_the_weights_are_no_version(application, client, published, tmp_path):
    _, version = published
    path = weights_file(tmp_path, version)
    weights = load_file(path)
    weights["scale"] += 1
    save_file(weights, path)
    status, answer = load(client, version)
    assert status == 500
    assert "damaged" in answer["error"]
    assert application.state.engine_client.calls[-1] == ("resume",)
    assert version_label(client) == "damaged"
    # The next file may be complete.
    status, answer = load(client, SharedFolder(str(tmp_path)).publish({"a": torch.ones(2)}))
    assert status == 200


def test_after_a_failed_load_the_server_asks_to_be_started_again(application, client, published):
    """vLLM keeps the tensors that did not fit, and fails at every later load."""
    engine = application.state.engine_client
    engine.workers[0].reload_weights = None
    status, answer = load(client, published[1])
    assert status == 500
    assert "not callable" in answer["error"]
    assert engine.calls[-1] == ("resume",)
    del engine.workers[0].reload_weights
    status, answer = load(client, published[1])
    assert status == 500
    assert "restart the server" in answer["error"]
    assert version_label(client) == "broken"


def test_an_engine_that_is_gone_keeps_no_request_waiting(application, client, published, monkeypatch):
    """vLLM's own call would never return, and the server would not end before it."""

    async def never(method, args):
        await asyncio.sleep(30)

    monkeypatch.setattr(middleware, "_LOAD_TIMEOUT", 0.2)
    monkeypatch.setattr(application.state.engine_client, "collective_rpc", never)
    started = time.monotonic()
    status, answer = load(client, published[1])
    assert status == 500
    assert "the engine did not respond within 0.2 s" in answer["error"]
    assert time.monotonic() - started < 5
    assert version_label(client) == "broken"


@pytest.mark.parametrize(
    "version", ["000009-00000000", "../secret", "000001-0000000g", "/etc/passwd", "000001-00000000/../x", "", None, 3]
)
def test_a_request_names_a_version_and_nothing_else(application, client, version):
    status, _ = load(client, version)
    assert status == 400
    assert not application.state.engine_client.calls


def test_weights_from_a_folder_that_others_can_write_are_not_loaded(application, client, published, tmp_path):
    tmp_path.chmod(0o777)
    status, answer = load(client, published[1])
    tmp_path.chmod(0o700)
    assert status == 400
    assert f"chmod go-w {tmp_path}" in answer["error"]
    assert not application.state.engine_client.calls


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b"{}", b" " * (2**16 + 1)])
def test_a_malformed_request_loads_nothing(application, client, body):
    assert client.post("/aggregate_po/weights", content=body).status_code == 400
    assert not application.state.engine_client.calls


def test_a_body_is_not_read_beyond_its_limit(application):
    pieces, sent = [], []

    async def receive():
        pieces.append(b" " * 2**14)
        return {"type": "http.request", "body": pieces[-1], "more_body": len(pieces) < 1000}

    async def send(message):
        sent.append(message)

    scope = {"type": "http", "method": "POST", "path": "/aggregate_po/weights", "headers": [], "app": application}
    asyncio.run(PolicyWeights(application)(scope, receive, send))
    assert sent[0]["status"] == 400
    assert b"longer than 65536 bytes" in sent[1]["body"]
    assert len(pieces) == 5


def test_without_a_folder_it_says_how_to_name_one(client, published, monkeypatch):
    monkeypatch.delenv("AGGREGATE_PO_WEIGHTS_FOLDER")
    status, answer = load(client, published[1])
    assert status == 400
    assert "without `--weights_folder`" in answer["error"]


def test_an_answer_that_saw_two_versions_has_neither(application, client, published):
    asked, loaded = threading.Event(), threading.Event()

    async def until_loaded():
        asked.set()
        while not loaded.is_set():
            await asyncio.sleep(0.01)

    application.before_answering = until_loaded
    with ThreadPoolExecutor() as pool:
        answer = pool.submit(version_label, client)
        assert asked.wait(10)
        assert load(client, published[1])[0] == 200
        loaded.set()
        assert answer.result() == "mixed"
