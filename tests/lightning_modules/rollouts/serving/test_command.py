"""The command and the environment of a server: what must hold comes last, and there is no other entry point."""

import importlib
import importlib.util
import itertools
import sys

import pytest

from lightning_modules.rollouts.serving.command import serve, server_command
from lightning_modules.rollouts.serving.worker import WorkerExtension

pytest.importorskip("starlette", reason="comes with vLLM")
from lightning_modules.rollouts.serving.middleware import ConnectionLimits, PolicyWeights, TokenAuth

TOKEN = "0123456789abcdef"
ENVIRONMENT = {"AGGREGATE_PO_TOKEN": TOKEN, "PATH": "/bin"}


def last_values(command):
    """Values that vLLM's parser would take, by name."""
    pairs = zip(command, [*command[1:], ""], strict=True)
    return {name: value for name, value in pairs if name.startswith("--")}


def middleware_of(command):
    """Classes in the order in which vLLM adds them; the last one is the outermost."""
    paths = [path for name, path in itertools.pairwise(command) if name == "--middleware"]
    return [getattr(importlib.import_module(module), name) for module, _, name in (p.rpartition(".") for p in paths)]


def test_a_server_is_started_with_what_the_client_needs(tmp_path, monkeypatch):
    monkeypatch.chdir(tmp_path)
    arguments = ["some/model", "--port", "8123", "--weights_folder", "weights", "--dtype", "float32"]
    command, environment = server_command(arguments, ENVIRONMENT)
    assert command[:3] == [sys.executable, "-m", "vllm.entrypoints.openai.api_server"]
    values = last_values(command)
    expected = {"--model": "some/model", "--host": "127.0.0.1", "--port": "8123", "--dtype": "float32"}
    expected |= {
        "--worker-extension-cls": f"{WorkerExtension.__module__}.WorkerExtension",
        "--generation-config": "vllm",
        "--logprobs-mode": "processed_logprobs",
    }
    assert {name: values[name] for name in expected} == expected
    assert middleware_of(command) == [PolicyWeights, TokenAuth, ConnectionLimits]
    assert "--no-trust-remote-code" in command
    assert environment["AGGREGATE_PO_WEIGHTS_FOLDER"] == str(tmp_path / "weights")
    assert environment["AGGREGATE_PO_TOKEN"] == TOKEN
    assert not [word for word in command if TOKEN in word]  # every user of the machine can read it


def test_own_options_may_come_before_the_model():
    command, _ = server_command(["--port", "8001", "model", "--dtype", "float32"], {"AGGREGATE_PO_TOKEN": TOKEN})
    assert last_values(command)["--model"] == "model"


def test_arguments_of_vllm_cannot_undo_what_must_hold():
    extra = ["--logprobs-mode=raw_logprobs", "--generation-config=auto", "--middleware=other.Class"]
    command, _ = server_command(["model", *extra], ENVIRONMENT)
    values = last_values(command)
    assert values["--logprobs-mode"] == "processed_logprobs"
    assert values["--generation-config"] == "vllm"
    # The middleware that is added last is the outermost.
    assert middleware_of(command)[-2:] == [TokenAuth, ConnectionLimits]
    assert command.index("--middleware=other.Class") < command.index("--middleware")


def test_other_entry_points_are_closed():
    variables = {"VLLM_API_KEY": "x", "VLLM_SERVER_DEV_MODE": "1", "VLLM_ALLOW_INSECURE_SERIALIZATION": "1"}
    _, environment = server_command(["model"], {**ENVIRONMENT, **variables})
    assert not variables.keys() & environment.keys()
    assert environment["VLLM_HOST_IP"] == "127.0.0.1"
    assert environment["VLLM_NO_USAGE_STATS"] == "1"


def test_the_cache_of_a_server_on_a_cpu_is_small_unless_more_is_asked_for():
    assert server_command(["model"], ENVIRONMENT)[1]["VLLM_CPU_KVCACHE_SPACE"] == "1"
    asked = {**ENVIRONMENT, "VLLM_CPU_KVCACHE_SPACE": "8"}
    assert server_command(["model"], asked)[1]["VLLM_CPU_KVCACHE_SPACE"] == "8"


@pytest.mark.parametrize("host", ["127.0.0.1", "127.1.2.3", "localhost", "::1"])
def test_without_a_token_a_server_listens_to_its_own_machine_alone(host):
    command, environment = server_command(["model", "--insecure", "--host", host], ENVIRONMENT)
    assert middleware_of(command) == [PolicyWeights, ConnectionLimits]
    assert "AGGREGATE_PO_TOKEN" not in environment


REFUSED = [
    (["model"], None, "AGGREGATE_PO_TOKEN is not set; export AGGREGATE_PO_TOKEN="),
    (["model"], "short", "AGGREGATE_PO_TOKEN must have 16 or more letters"),
    (["model"], "with a space in the middle", "letters, digits and"),
    (["model"], "0123456789abcdef\n", "letters, digits and"),
    (["model", "--host", "0.0.0.0"], None, "AGGREGATE_PO_TOKEN is not set"),
    (["model", "--host", "0.0.0.0", "--insecure"], TOKEN, "--insecure with --host 0.0.0.0 lets anyone in"),
    (["model", "--host", "::", "--insecure"], None, "lets anyone in"),
    (["model", "--host", "node1", "--insecure"], None, "lets anyone in"),
    (["model", "--trust-remote-code"], TOKEN, "remote code is never run"),
    (["model", "--trust_remote_code=true"], TOKEN, "remote code is never run"),
    (["model", "--trust-remote"], TOKEN, "remote code is never run"),
    (["model", "--uds=/tmp/socket"], TOKEN, "--uds is not passed on"),
    (["model", "--api-key", "x"], TOKEN, "--api-key is not passed on"),
    (["model", "--config=x.yaml"], TOKEN, "--config is not passed on"),
    ([], TOKEN, "required: model"),
    (["--dtype", "float32", "model"], TOKEN, "--dtype comes before the model, which would be 'float32'"),
    (["model", "--port", "x"], TOKEN, "--port"),
]


@pytest.mark.parametrize(("arguments", "token", "message"), REFUSED)
def test_what_is_unsafe_or_wrong_is_refused(arguments, token, message, capsys):
    environment = {} if token is None else {"AGGREGATE_PO_TOKEN": token}
    with pytest.raises(SystemExit) as stop:
        server_command(arguments, environment)
    assert stop.value.code == 2
    error = capsys.readouterr().err
    assert message in error
    assert token is None or token.strip() not in error


def test_a_token_that_is_refused_is_not_repeated(capsys):
    with pytest.raises(SystemExit):
        server_command(["model"], {"AGGREGATE_PO_TOKEN": "pass word"})
    assert "pass word" not in capsys.readouterr().err


def test_without_vllm_it_says_what_to_install(monkeypatch):
    monkeypatch.setenv("AGGREGATE_PO_TOKEN", TOKEN)
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None)
    with pytest.raises(SystemExit, match=r"vLLM is not installed\. On a GPU: pip install .*\[vllm\]"):
        serve(["model"])
