"""Requests to one server: the timeout covers each request in full, and the token goes to that server only."""

import shutil
import ssl
import subprocess
import time

import pytest
from transformers import Qwen2Config

from lightning_modules.rollouts.servers.client import ServerClient, ServerFailure, ServerRefusal
from tests.lightning_modules.rollouts.servers.fake_server import (
    TOKEN,
    FakeServer,
    breaks_off,
    never_answers,
    trickles,
    trickles_headers,
)

VARIABLE = "AGGREGATE_PO_TOKEN"
REQUEST = {"prompt": [1], "n": 1, "seed": 0, "max_tokens": 2}


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv(VARIABLE, TOKEN)


@pytest.fixture
def server():
    server = FakeServer(Qwen2Config(hidden_size=8))
    yield server
    server.stop()


@pytest.mark.parametrize("behavior", [never_answers, trickles, trickles_headers])
def test_the_timeout_is_that_of_the_full_request(server, behavior):
    """Bytes that arrive one by one, each in time, do not prolong it."""
    server.script = lambda body, number: behavior
    begun = time.monotonic()
    with pytest.raises(ServerFailure, match=r"gave no answer within 0\.5 s") as failure:
        ServerClient(server.url, VARIABLE, 0.5).completions(REQUEST, "none")
    assert 0.4 < time.monotonic() - begun < 2
    assert not failure.value.transient


def test_the_state_can_be_asked_for_in_less_time(server, monkeypatch):
    monkeypatch.setattr(server, "handle", lambda handler, body: never_answers(handler))
    client = ServerClient(server.url, VARIABLE, 30.0)
    with pytest.raises(ServerFailure, match=r"gave no answer within 0\.2 s"):
        client.state(0.2)
    with pytest.raises(ServerFailure, match=r"gave no answer within 0\.3 s"):
        ServerClient(server.url, VARIABLE, 0.3).state(60.0)


def test_an_answer_that_breaks_off_may_be_asked_for_again(server):
    server.script = lambda body, number: breaks_off
    with pytest.raises(ServerFailure, match="cannot be reached") as failure:
        ServerClient(server.url, VARIABLE, 5.0).completions(REQUEST, "none")
    assert failure.value.transient


@pytest.mark.parametrize("token", ["se\ncret", "se\rcret", "sécret"])
def test_a_token_that_no_header_can_carry_is_not_repeated(server, monkeypatch, token):
    monkeypatch.setenv(VARIABLE, token)
    with pytest.raises(ServerRefusal, match=f"{VARIABLE} has characters that no request can carry") as refusal:
        ServerClient(server.url, VARIABLE, 5.0).state()
    assert "cret" not in str(refusal.value)
    assert not server.refusals


def test_the_token_is_read_for_each_request(server, monkeypatch):
    client = ServerClient(server.url, VARIABLE, 5.0)
    monkeypatch.setenv(VARIABLE, "another")
    with pytest.raises(ServerRefusal, match="refused the token"):
        client.state()
    monkeypatch.setenv(VARIABLE, TOKEN)
    assert client.state().version == "none"


@pytest.mark.skipif(shutil.which("openssl") is None, reason="makes the certificate")
def test_a_certificate_that_nobody_vouches_for_is_refused(server, tmp_path):
    key, certificate = tmp_path / "key.pem", tmp_path / "certificate.pem"
    subject = ["-subj", "/CN=127.0.0.1", "-addext", "subjectAltName=IP:127.0.0.1"]
    command = ["openssl", "req", "-x509", "-newkey", "rsa:2048", "-nodes", "-keyout", key, "-out", certificate]
    subprocess.run([*command, *subject], check=True, capture_output=True)
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.load_cert_chain(certificate, key)
    seen = []
    server.handle = lambda handler, body: seen.append(handler.path)
    server.stop()
    server.start(tls=context)
    with pytest.raises(ServerFailure, match=r"self.signed certificate"):
        ServerClient(server.url.replace("http:", "https:"), VARIABLE, 5.0).state()
    assert not seen
