"""The gate in front of a server, and the worker behind it, without vLLM: a token on every route, one way to load."""

import asyncio
import json
import time
from types import SimpleNamespace

import pytest
import torch
from safetensors.torch import load_file, save_file
from transformers import Qwen2Config

from lightning_modules.rollouts import SharedFolder
from lightning_modules.rollouts.protocol import weights_file
from lightning_modules.rollouts.serving import middleware as gate_module
from lightning_modules.rollouts.serving.middleware import OpenGate, TokenGate
from lightning_modules.rollouts.serving.worker import WeightsReader

TOKEN = "a-token-for-the-tests"
AUTHORIZED = [(b"authorization", f"Bearer {TOKEN}".encode())]


class Worker(WeightsReader):
    """Takes the place of vLLM's worker, whose method this is."""

    def reload_weights(self, weights_iterator):
        self.weights = dict(weights_iterator)


class Engine:
    """Takes the place of vLLM's engine, and notes what it is told."""

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
        return [getattr(worker, method)(*args) for worker in self.workers]

    async def update_weight_version(self, version):
        self.calls.append(("version", version))

    async def resume_generation(self):
        self.calls.append(("resume",))


class Application:
    """Takes the place of vLLM's routes."""

    def __init__(self):
        self.paths = []
        self.state = SimpleNamespace(
            engine_client=Engine(), args=SimpleNamespace(host="127.0.0.1", port=8000, ssl_certfile=None)
        )
        self.while_answering = None

    async def __call__(self, scope, receive, send):
        if scope["type"] == "lifespan":
            await send({"type": "lifespan.startup.complete"})
            return
        self.paths.append(scope["path"])
        if self.while_answering:
            self.while_answering()
        await send({"type": "http.response.start", "status": 200, "headers": [(b"a", b"b")]})
        await send({"type": "http.response.body", "body": b"{}"})


@pytest.fixture
def application(monkeypatch, tmp_path):
    monkeypatch.setenv("AGGREGATE_PO_TOKEN", TOKEN)
    monkeypatch.setenv("AGGREGATE_PO_WEIGHTS_FOLDER", str(tmp_path))
    return Application()


def called(gate, application, path, headers=AUTHORIZED, method="POST", body=b"", kind="http"):
    """Messages that a request is answered with."""
    sent = []

    async def send(message):
        sent.append(message)

    async def receive():
        return {"type": "http.request", "body": body, "more_body": False}

    scope = {"type": kind, "method": method, "path": path, "headers": headers, "app": application}
    asyncio.run(gate(scope, receive, send))
    return sent


def load(gate, application, version):
    start, body = called(gate, application, "/aggregate_po/weights", body=json.dumps({"version": version}).encode())
    return start["status"], json.loads(body["body"])


ROUTES = [
    "/v1/completions",
    "/health",
    "/collective_rpc",
    "/invocations",
    "/metrics",
    "/",
    "/aggregate_po/weights",
]
WRONG = {
    "none": [],
    "another": [(b"authorization", b"Bearer another")],
    "shorter": [(b"authorization", f"Bearer {TOKEN[:-1]}".encode())],
    "no scheme": [(b"authorization", TOKEN.encode())],
    "two": [*AUTHORIZED, (b"authorization", b"Bearer another")],
    "bytes": [(b"authorization", b"Bearer \xff\xfe")],
}


@pytest.mark.parametrize("headers", WRONG.values(), ids=WRONG.keys())
def test_nothing_passes_without_the_token(application, headers):
    gate = TokenGate(application)
    for path in [*ROUTES, "/aggregate_po/state"]:
        for method in ("GET", "POST", "OPTIONS", "HEAD"):
            start, body = called(gate, application, path, headers, method)
            assert start["status"] == 401
            assert TOKEN.encode() not in body["body"]
    assert called(gate, application, "/v1/realtime", headers, kind="websocket") == [
        {"type": "websocket.close", "code": 1008}
    ]
    assert not application.paths
    assert not application.state.engine_client.calls


def test_with_the_token_a_request_goes_through_and_its_answer_says_by_which_weights(application):
    gate = TokenGate(application)
    start, body = called(gate, application, "/v1/completions")
    assert application.paths == ["/v1/completions"]
    assert start["headers"] == [(b"a", b"b"), (b"x-policy-version", b"none")]
    assert body["body"] == b"{}"


@pytest.mark.parametrize("token", [None, ""])
def test_without_a_token_the_server_does_not_start(application, monkeypatch, token):
    monkeypatch.delenv("AGGREGATE_PO_TOKEN")
    if token is not None:
        monkeypatch.setenv("AGGREGATE_PO_TOKEN", token)
    with pytest.raises(RuntimeError, match="AGGREGATE_PO_TOKEN is not set"):
        TokenGate(application)
    assert called(OpenGate(application), application, "/v1/completions", headers=[])[0]["status"] == 200


def test_the_server_says_when_it_is_ready(application, capsys):
    called(TokenGate(application), application, None, kind="lifespan")
    assert capsys.readouterr().out == "ready: http://127.0.0.1:8000\n"


@pytest.fixture
def published(tmp_path):
    """Weights in a folder, with their version: two types, a number alone, and two names for one tensor."""
    weights = {"embedding": torch.randn(3, 4), "scale": torch.tensor(2.0), "half": torch.randn(5).bfloat16()}
    weights["head"] = weights["embedding"]
    return weights, SharedFolder(str(tmp_path)).publish(weights)


def test_weights_are_loaded_while_nothing_is_generated(application, published):
    weights, version = published
    gate = TokenGate(application)
    status, answer = load(gate, application, version)
    assert (status, answer["version"]) == (200, version)
    engine = application.state.engine_client
    assert engine.calls == [
        ("pause", "abort", True),
        ("load_policy_file",),
        ("version", version),
        ("resume",),
    ]
    for worker in engine.workers:
        assert worker.weights.keys() == weights.keys()
        for name, tensor in weights.items():
            assert torch.equal(worker.weights[name], tensor)
            assert worker.weights[name].dtype == tensor.dtype
    assert called(gate, application, "/v1/completions")[0]["headers"][-1] == (b"x-policy-version", version.encode())
    state = json.loads(called(gate, application, "/aggregate_po/state", method="GET")[1]["body"])
    assert state == {
        "version": version,
        "logprobs_mode": "processed_logprobs",
        "dtype": "torch.float32",
        "max_model_len": 64,
        "sizes": {
            "model_type": "qwen2",
            "hidden_size": 8,
            "num_hidden_layers": 2,
            "num_attention_heads": 4,
            "vocab_size": 9,
        },
    }


def test_a_damaged_file_is_noticed_and_the_weights_are_no_version(application, published, tmp_path):
    _, version = published
    path = weights_file(tmp_path, version)
    weights = load_file(path)
    weights["scale"] += 1
    save_file(weights, path)
    gate = TokenGate(application)
    status, answer = load(gate, application, version)
    assert status == 500
    assert "damaged" in answer["error"]
    assert application.state.engine_client.calls[-1] == ("resume",)
    assert called(gate, application, "/v1/completions")[0]["headers"][-1] == (b"x-policy-version", b"damaged")
    # The next file may be whole.
    status, answer = load(gate, application, SharedFolder(str(tmp_path)).publish({"a": torch.ones(2)}))
    assert status == 200


def test_after_a_failed_load_the_server_asks_to_be_started_again(application, published):
    """vLLM keeps the tensors that did not fit, and fails at every later load."""
    gate = TokenGate(application)
    engine = application.state.engine_client
    engine.workers[0].reload_weights = None
    status, answer = load(gate, application, published[1])
    assert status == 500
    assert "not callable" in answer["error"]
    del engine.workers[0].reload_weights
    status, answer = load(gate, application, published[1])
    assert status == 500
    assert "start the server again" in answer["error"]
    assert called(gate, application, "/v1/completions")[0]["headers"][-1] == (b"x-policy-version", b"broken")


@pytest.mark.parametrize(
    "version", ["000009-00000000", "../secret", "000001-0000000g", "/etc/passwd", "000001-00000000/../x", "", None, 3]
)
def test_a_request_names_a_version_and_nothing_else(application, version):
    status, _ = load(TokenGate(application), application, version)
    assert status == 400
    assert not application.state.engine_client.calls


@pytest.mark.parametrize("body", [b"", b"no json", b"[]", b"{}", b" " * (2**24 + 1)])
def test_a_malformed_request_loads_nothing(application, body):
    start, _ = called(TokenGate(application), application, "/aggregate_po/weights", body=body)
    assert start["status"] == 400
    assert not application.state.engine_client.calls


def test_without_a_folder_it_says_how_to_name_one(application, published, monkeypatch):
    monkeypatch.delenv("AGGREGATE_PO_WEIGHTS_FOLDER")
    status, answer = load(TokenGate(application), application, published[1])
    assert status == 400
    assert "without `--weights_folder`" in answer["error"]


def test_an_engine_that_is_gone_keeps_no_request_waiting(application, published, monkeypatch):
    """vLLM's own call would never return, and the server would not end before it."""

    async def never(method, args):
        await asyncio.sleep(3600)

    monkeypatch.setattr(gate_module, "_LONGEST_LOAD", 0.2)
    monkeypatch.setattr(application.state.engine_client, "collective_rpc", never)
    started = time.monotonic()
    status, answer = load(TokenGate(application), application, published[1])
    assert status == 500
    assert "the engine gave no answer within 0.2 s" in answer["error"]
    assert time.monotonic() - started < 5


def test_an_answer_that_saw_two_versions_has_neither(application, published):
    gate = TokenGate(application)
    application.while_answering = lambda: setattr(application.state, "policy_version", published[1])
    assert called(gate, application, "/v1/completions")[0]["headers"][-1] == (b"x-policy-version", b"mixed")
