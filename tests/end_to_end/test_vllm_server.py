"""Real servers, as `aggregate-po serve` starts them: log-probabilities, new weights, access control, and failures.

The tests share two servers and run in the order of the file; the last ones kill them.
"""

import contextlib
import copy
import http.client
import json
import os
import signal
import socket
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest
import torch
from lightning import Callback
from transformers import AutoModelForCausalLM, AutoTokenizer

from aggregate_po import TokenCorrection
from lightning_modules import PolicyModule, RunCheckpoint
from lightning_modules.addition.warm_start import make_model, make_tokenizer
from lightning_modules.model.log_probs import log_probs_and_entropy
from lightning_modules.model.policy import Policy
from lightning_modules.rollouts import SamplingParameters, SharedFolder, TransformersEngine, VLLMServers
from lightning_modules.rollouts.servers.client import ServerRefusal
from tests.lightning_modules.training import (
    BatchRecorder,
    copied,
    fitted,
    gmpo,
    plain_log_prob_matrix,
    small_data,
    tokens_of,
)
from tests.peers import require_peers

require_peers("vllm")
pytestmark = pytest.mark.vllm

TOKEN = "0123456789abcdef0123456789abcdef"
STOPS = tuple(range(1, 271, 8))
QUESTIONS = ["What is 12 + 345?", "2", "What is 9 + 8? What is 7?", "boxed 47", "What is 472 + 96?"]
TOLERANCE = 5e-5


@pytest.fixture(scope="module")
def folders(tmp_path_factory):
    """Two models of one size, with tied embeddings and without; vLLM's attention needs heads of 32 numbers."""
    tokenizer = make_tokenizer()
    folders = {}
    for tied in (True, False):
        with torch.random.fork_rng(devices=[]):
            torch.manual_seed(0)
            model = make_model(tokenizer, hidden_size=128, layers=2)
            if not tied:
                config = copy.deepcopy(model.config)
                config.tie_word_embeddings = False
                model = type(model)(config)
        model.model.norm.weight.data.fill_(4.0)  # a distribution that is far from uniform
        model.generation_config.eos_token_id = list(STOPS)
        model.generation_config.top_k = 2  # a server must not take these from the folder
        model.generation_config.do_sample = True
        folders[tied] = str(tmp_path_factory.mktemp("tied" if tied else "untied"))
        model.save_pretrained(folders[tied])
        tokenizer.save_pretrained(folders[tied])
    return folders


class ServerProcess:
    """A server that was started from the command line."""

    def __init__(self, model, weights, log):
        with socket.socket() as free:
            free.bind(("127.0.0.1", 0))
            self.port = free.getsockname()[1]
        self.url, self.log = f"http://127.0.0.1:{self.port}", log
        command = [Path(sys.executable).with_name("aggregate-po"), "serve", model, "--port", self.port]
        command += ["--weights_folder", weights, "--dtype", "float32", "--max-model-len", 256, "--enforce-eager"]
        environment = {**os.environ, "AGGREGATE_PO_TOKEN": TOKEN, "HF_HUB_OFFLINE": "1", "OMP_NUM_THREADS": "1"}
        environment |= {"VLLM_CPU_KVCACHE_SPACE": "1"}
        with log.open("wb") as output:
            self.process = subprocess.Popen(
                [str(word) for word in command],
                env=environment,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,
            )

    def wait(self, seconds=240):
        deadline = time.monotonic() + seconds
        while f"ready: {self.url}" not in self.log.read_text(errors="replace"):
            assert self.process.poll() is None, self.log.read_text(errors="replace")[-4000:]
            assert time.monotonic() < deadline, self.log.read_text(errors="replace")[-4000:]
            time.sleep(0.2)

    def kill(self):
        """Stop the server with its child processes, which would outlive it."""
        if self.process.returncode is None:
            os.killpg(self.process.pid, signal.SIGKILL)
            self.process.wait()

    def request(self, method, path, token=TOKEN, body=None):
        """Return status and content of a response."""
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=30)
        headers = {"Content-Type": "application/json"} | ({"Authorization": f"Bearer {token}"} if token else {})
        connection.request(method, path, body=None if body is None else json.dumps(body), headers=headers)
        response = connection.getresponse()
        content = response.read()
        connection.close()
        return response.status, content


@pytest.fixture(scope="module")
def weights(tmp_path_factory):
    return tmp_path_factory.mktemp("weights")


@pytest.fixture(scope="module")
def servers(folders, weights, tmp_path_factory):
    """One server with tied embeddings and one without, which can take a tied policy too."""
    logs = tmp_path_factory.mktemp("logs")
    servers = [ServerProcess(folders[tied], weights, logs / f"{tied}.log") for tied in (True, False)]
    try:
        for server in servers:
            server.wait()
        yield servers
    finally:
        for server in servers:
            server.kill()


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("AGGREGATE_PO_TOKEN", TOKEN)


@pytest.fixture
def policies(folders):
    return {tied: AutoModelForCausalLM.from_pretrained(folder, dtype=torch.float32) for tied, folder in folders.items()}


@pytest.fixture
def prompts(folders):
    tokenizer = AutoTokenizer.from_pretrained(folders[True])
    return [tokenizer.encode(text) for text in QUESTIONS]


def engine_of(servers, weights, model=None, kind=VLLMServers, **options):
    engine = kind([server.url for server in servers], SharedFolder(str(weights)), **{"timeout": 120.0, **options})
    if model is not None:
        engine.load_policy(model)
    return engine


def sampling_of(**options):
    defaults = {"max_completion_length": 24, "stop_token_ids": STOPS, "seed": 3, "samples_per_prompt": 4}
    return SamplingParameters(**{**defaults, **options})


def largest_error(model, prompts, sampled, temperature=1.0):
    with torch.no_grad():
        expected = plain_log_prob_matrix(model, prompts, sampled, temperature or 1.0)
    return (sampled.log_probs - expected)[sampled.mask].abs().max().item()


def trained_a_little(model):
    """Change every weight, as some optimizer steps would."""
    generator = torch.Generator().manual_seed(1)
    with torch.no_grad():
        for parameter in model.parameters():
            parameter += 0.02 * torch.randn(parameter.shape, generator=generator) * parameter.std().nan_to_num(1)


# Closed doors


def listening(process_group):
    """Addresses on which the processes of a group listen, as the kernel writes them."""
    members = [int(entry.name) for entry in Path("/proc").iterdir() if entry.name.isdigit()]
    sockets = set()
    for process in members:
        try:
            if os.getpgid(process) != process_group:
                continue
            sockets |= {os.readlink(entry) for entry in Path(f"/proc/{process}/fd").iterdir()}
        except (ProcessLookupError, FileNotFoundError):
            continue
    found = []
    for table in ("tcp", "tcp6"):
        for line in Path(f"/proc/net/{table}").read_text().splitlines()[1:]:
            _, local, _, state, *_, inode = line.split()[:10]
            if state == "0A" and f"socket:[{inode}]" in sockets:
                found.append(local)
    return found


def assert_only_this_machine_is_listened_to(servers):
    loopback = {"0100007F", "00000000000000000000000001000000", "0000000000000000FFFF00000100007F"}
    for server in servers:
        addresses = listening(server.process.pid)
        assert f"0100007F:{server.port:04X}" in addresses
        assert {address.partition(":")[0] for address in addresses} <= loopback


def test_servers_listen_to_their_own_machine_alone(servers):
    assert_only_this_machine_is_listened_to(servers)


def test_every_route_requires_the_token(servers):
    server = servers[0]
    _, content = server.request("GET", "/openapi.json")
    routes = {(method.upper(), path) for path, methods in json.loads(content)["paths"].items() for method in methods}
    assert len(routes) > 10
    routes |= {("POST", "/v1/completions"), ("POST", "/aggregate_po/weights"), ("GET", "/aggregate_po/state")}
    # The routes that change weights or run methods of the worker; vLLM's own token guards none of these.
    hidden = ("collective_rpc", "update_weights", "init_weight_transfer_engine", "pause", "sleep", "reset_prefix_cache")
    routes |= {("POST", f"/{name}") for name in hidden}
    for method, path in sorted(routes | {("GET", "/metrics"), ("GET", "/docs"), ("OPTIONS", "/v1/completions")}):
        for wrong in (None, "wrong", TOKEN[:-1], TOKEN.upper()):
            status, content = server.request(method, path, wrong, {} if method == "POST" else None)
            assert status == 401, (method, path, wrong)
            assert TOKEN.encode() not in content
    # Some of them are not there at all, whoever asks.
    assert [server.request("POST", f"/{name}", body={})[0] for name in hidden] == [404] * len(hidden)
    assert server.request("GET", "/health")[0] == 200


def test_connections_are_limited_before_the_token(servers):
    """Endless headers, and connections with half a request; the tests of connections have the times."""
    server = servers[0]
    with socket.create_connection(("127.0.0.1", server.port)) as client, contextlib.suppress(OSError):
        client.sendall(b"GET /health HTTP/1.1\r\n")
        sent = 0
        for _ in range(400):
            client.sendall(b"a: " + b"b" * 2**16 + b"\r\n")
            sent += 2**16
    assert sent < 2**24
    idle = [socket.create_connection(("127.0.0.1", server.port)) for _ in range(100)]
    for client in idle:
        client.sendall(b"POST /v1/completions HTTP/1.1\r\nContent-Length: 100\r\n")
    assert server.request("GET", "/health")[0] == 200
    for client in idle:
        client.close()


def test_a_wrong_token_ends_the_run_at_once(servers, weights, policies, monkeypatch):
    engine = engine_of(servers, weights, policies[True])
    monkeypatch.setenv("AGGREGATE_PO_TOKEN", "wrong")
    with pytest.raises(ServerRefusal, match="refused the token"):
        engine.generate([[5]], sampling_of())
    with pytest.raises(ServerRefusal, match="refused the token"):
        engine.load_policy(policies[True])


def test_the_token_is_in_no_log_and_no_command(servers):
    for server in servers:
        assert TOKEN not in server.log.read_text(errors="replace")
        assert TOKEN.encode() not in Path(f"/proc/{server.process.pid}/cmdline").read_bytes()


# Log-probabilities


@pytest.mark.parametrize("temperature", [1.0, 0.7, 0.0])
def test_log_probs_are_those_of_the_trainer(servers, weights, policies, prompts, temperature):
    engine = engine_of(servers, weights, policies[True])
    sampled = engine.generate(prompts, sampling_of(temperature=temperature))
    assert largest_error(policies[True], prompts, sampled, temperature) < TOLERANCE
    lengths = sampled.mask.sum(dim=-1)
    assert len(lengths) == 4 * len(prompts)
    for row, finished in enumerate(sampled.finished.tolist()):
        tokens = tokens_of(sampled, row)
        assert not set(tokens[:-1]) & set(STOPS)
        assert (tokens[-1] in STOPS) == finished
        assert finished or len(tokens) == 24


def test_the_likeliest_tokens_are_those_of_the_transformers_engine(servers, weights, policies, prompts):
    here = TransformersEngine()
    here.load_policy(policies[True])
    greedy = sampling_of(temperature=0.0)
    expected, sampled = (e.generate(prompts, greedy) for e in (here, engine_of(servers, weights, policies[True])))
    assert torch.equal(sampled.token_ids, expected.token_ids)
    assert torch.equal(sampled.mask, expected.mask)
    assert torch.equal(sampled.finished, expected.finished)


def test_the_seed_decides_the_sample_and_completions_differ(servers, weights, policies, prompts):
    engine = engine_of(servers, weights, policies[True])
    same = [prompts[0]] * 4
    first, again, other = (
        engine.generate(same, sampling_of(seed=seed, samples_per_prompt=8)).token_ids[:, 0].tolist()
        for seed in (5, 5, 6)
    )
    assert first == again != other
    # The same prompt four times: the samples of one are not those of the next.
    rows = [tuple(first[start : start + 8]) for start in range(0, 32, 8)]
    assert len(set(rows)) == 4
    assert len(set(first)) > 2  # more than the generation config of the folder would allow


@pytest.mark.parametrize("temperature", [1.0, 0.5])
def test_first_tokens_come_as_often_as_the_model_says(servers, weights, policies, prompts, temperature):
    """A chi-square test on 3000 samples."""
    engine = engine_of(servers, weights, policies[True])
    sampling = sampling_of(temperature=temperature, samples_per_prompt=250, max_completion_length=1)
    sampled = engine.generate([prompts[0]] * 12, sampling)
    with torch.no_grad():
        logits = policies[True](torch.tensor([prompts[0]])).logits[0, -1] / temperature
    expected = 3000 * torch.softmax(logits.double(), dim=-1)
    counts = torch.bincount(sampled.token_ids[:, 0], minlength=len(expected)).double()
    common = expected >= 5
    observed = torch.cat([counts[common], counts[~common].sum().unsqueeze(0)])
    expected = torch.cat([expected[common], expected[~common].sum().unsqueeze(0)])
    freedom = len(expected) - 1
    assert freedom > 3
    assert ((observed - expected).square() / expected).sum() < freedom + 4 * (2 * freedom) ** 0.5


@pytest.mark.parametrize("length", [250, 300])
def test_a_prompt_that_is_too_long_ends_the_run(servers, weights, policies, length):
    """One leaves no room for the completion, which vLLM would then truncate; the other is longer than all."""
    engine = engine_of(servers, weights, policies[True])
    with pytest.raises(ServerRefusal, match=r"max-model-len|answered 400 to /v1/completions: .*256"):
        engine.generate([[5] * length], sampling_of(stop_token_ids=()))


# Weights


@pytest.mark.parametrize("tied", [True, False])
def test_servers_sample_from_the_weights_that_were_loaded_last(servers, weights, policies, prompts, tied):
    model = policies[tied]
    engine = engine_of(servers if tied else servers[1:], weights, model)
    assert largest_error(model, prompts, engine.generate(prompts, sampling_of())) < TOLERANCE
    for version in (2, 3):
        trained_a_little(model)
        assert largest_error(model, prompts, engine.generate(prompts, sampling_of())) > 0.01
        engine.load_policy(model)
        assert engine.weight_version == version
        assert largest_error(model, prompts, engine.generate(prompts, sampling_of())) < TOLERANCE
    assert_only_this_machine_is_listened_to(servers)


class StaleFolder(SharedFolder):
    """Writes the first weights again and again, as if they were new."""

    def publish(self, weights):
        version = super().publish(weights)
        if version.startswith("000001"):
            self._first = {name: tensor.clone() for name, tensor in weights.items()}
            return version
        self._versions.current = ""
        return super().publish(self._first)


def test_weights_that_did_not_arrive_end_the_run(servers, weights, policies):
    engine = VLLMServers([servers[0].url], StaleFolder(str(weights)), timeout=120.0)
    engine.load_policy(policies[True])
    trained_a_little(policies[True])
    with pytest.raises(RuntimeError, match="does not have the weights of the policy"):
        engine.load_policy(policies[True])


def test_an_output_layer_that_the_server_ties_ends_the_run(servers, weights, policies):
    with pytest.raises(RuntimeError, match=rf"{servers[0].url} does not have the weights of the policy"):
        engine_of(servers[:1], weights, policies[False])


def test_weights_of_another_model_end_the_run(servers, weights):
    with torch.random.fork_rng(devices=[]):
        other = make_model(make_tokenizer(), hidden_size=64, layers=2)
    message = r"serves a model with {'hidden_size': 128}, and the trained model has {'hidden_size': 64}"
    with pytest.raises(ServerRefusal, match=message):
        engine_of(servers[:1], weights, other)


# Training


class Recorder(BatchRecorder):
    """Recomputes the log-probabilities of each micro-batch with the parameters that it was sampled with."""

    def __init__(self):
        super().__init__()
        self.errors = []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        super().on_train_batch_start(trainer, pl_module, batch, batch_idx)
        with torch.no_grad():
            log_probs, _ = log_probs_and_entropy(pl_module.model, batch)
        difference = (log_probs - batch.policy.old_log_probs)[batch.completion_mask]
        self.errors.append(difference.abs().max().item())


class NotedServers(VLLMServers):
    """Kills a server a moment after the rollout with this number has begun."""

    victim, fatal_rollout = None, 0

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.sampled, self.lost_after = [], []

    def generate(self, prompts, sampling):
        if len(self.sampled) + 1 == self.fatal_rollout:
            threading.Timer(0.05, self.victim.kill).start()  # long before the completions are finished
        sampled = super().generate(prompts, sampling)
        self.sampled.append((prompts, sampled))
        self.lost_after.append(list(self.lost_servers))
        return sampled


def data_of(engine, **options):
    return small_data(rollouts=engine, **{"max_completion_length": 24, **options})


def test_a_run_trains_on_completions_of_servers(servers, weights, folders, tmp_path):
    engine, recorder = engine_of(servers, weights, kind=NotedServers), Recorder()
    run = fitted(tmp_path, folders[True], data=data_of(engine), max_steps=3, callbacks=[recorder])
    assert run.trainer.global_step == 3
    assert len(recorder.errors) == 3
    assert max(recorder.errors) < TOLERANCE
    assert engine.weight_version == 3
    assert run.metrics["rollout/server_losses"] == run.metrics["rollout/lost_servers"] == 0
    assert [len(sampled.token_ids) for _, sampled in engine.sampled] == [16] * 3


class Trail(Callback):
    """The parameters before each update, which begins while the next rollout, if there is one, is sampled."""

    def __init__(self, engine):
        self.engine, self.parameters = engine, []

    def on_train_batch_start(self, trainer, pl_module, batch, batch_idx):
        self.parameters.append(copied(pl_module.model))
        if trainer.global_step + 1 < trainer.max_steps:
            self.engine.meeting.wait()


class MetServers(NotedServers):
    """Samples ahead once an update has begun."""

    def __init__(self, *arguments, **options):
        super().__init__(*arguments, **options)
        self.meeting = threading.Barrier(2, timeout=60)

    def generate(self, prompts, sampling):
        if threading.current_thread() is not threading.main_thread():
            self.meeting.wait()
        return super().generate(prompts, sampling)


def test_the_next_rollout_is_sampled_while_the_run_trains(servers, weights, folders, tmp_path):
    engine = engine_of(servers, weights, kind=MetServers)
    trail = Trail(engine)
    data = data_of(engine, overlap=True, old_log_probs="trainer", correction=TokenCorrection(2.0))
    run = fitted(tmp_path, folders[True], data=data, max_steps=4, callbacks=[trail])
    assert len(trail.parameters) == len(engine.sampled) == 4
    policy = AutoModelForCausalLM.from_pretrained(folders[True], dtype=torch.float32)
    for rollout, step in enumerate([0, 0, 1, 2]):
        policy.load_state_dict(trail.parameters[step], strict=False)
        assert largest_error(policy, *engine.sampled[rollout]) < TOLERANCE
        policy.load_state_dict(trail.parameters[rollout], strict=False)
        assert (largest_error(policy, *engine.sampled[rollout]) > 1e-3) == (rollout > 0)
    assert run.metrics["rollout/staleness"] == 1
    assert run.metrics["rollout/weight_version"] == 3
    assert run.metrics["sampling/sampling_logp_difference/max"] > 1e-3


def test_a_server_that_is_killed_in_a_rollout_costs_no_completion(servers, weights, folders, tmp_path, monkeypatch):
    """The second rollout: long completions, so that the server is still at work."""
    engine, recorder = engine_of(servers, weights, kind=NotedServers), Recorder()
    engine.victim, engine.fatal_rollout = servers[1], 2
    data = data_of(engine, prompts_per_rollout=16, group_size=8, max_completion_length=200)
    module = PolicyModule(folders[True], gmpo(), learning_rate=1e-3)
    monkeypatch.setattr(Policy, "stop_token_ids", (0,))  # a rare one, so that completions run on
    run = fitted(tmp_path, folders[True], data=data, module=module, max_steps=3, callbacks=[recorder])
    assert run.trainer.global_step == 3
    # It was lost while it worked, not found dead before the third rollout.
    assert engine.lost_after == [[], [servers[1].url], [servers[1].url]]
    assert engine.losses == run.metrics["rollout/server_losses"] == run.metrics["rollout/lost_servers"] == 1
    assert max(recorder.errors) < TOLERANCE
    for prompts, sampled in engine.sampled:
        assert len(sampled.token_ids) == 8 * len(prompts) == 128
        # Each completion under its own prompt, and no two the same.
        assert len({tuple(tokens_of(sampled, row)) for row in range(128)}) > 120


def test_when_all_servers_are_dead_the_run_ends_and_can_be_resumed(servers, weights, folders, tmp_path, monkeypatch):
    monkeypatch.setattr(Policy, "stop_token_ids", (0,))
    engine = engine_of(servers[:1], weights, kind=NotedServers)
    engine.victim, engine.fatal_rollout = servers[0], 3
    data = data_of(engine, prompts_per_rollout=16, group_size=8, max_completion_length=200)
    checkpoint = RunCheckpoint(str(tmp_path / "checkpoints"), every_n_train_steps=1)
    options = {"max_steps": 4, "enable_checkpointing": True}
    with pytest.raises(RuntimeError, match="none of the 1 servers is left") as error:
        fitted(tmp_path, folders[True], data=data, callbacks=[checkpoint], **options)
    assert servers[0].url in str(error.value)
    assert "cannot be reached" in str(error.value)

    last = tmp_path / "checkpoints" / "last.ckpt"
    assert torch.load(last, weights_only=False)["global_step"] == 2
    data = data_of(TransformersEngine(), prompts_per_rollout=16, group_size=8, max_completion_length=200)
    module = PolicyModule(folders[True], gmpo(), learning_rate=1e-3, resume_with_changes=True)  # another engine
    run = fitted(tmp_path, folders[True], data=data, module=module, ckpt_path=str(last), **options)
    assert run.trainer.global_step == 4
