"""The engine of vLLM servers, against fake servers in this process."""

import logging
import multiprocessing
import os
import pickle
import threading
import time

import pytest
import torch
import torch.distributed as dist
from jsonargparse import ArgumentParser
from safetensors import safe_open

from lightning_modules.rollouts import RolloutEngine, SamplingParameters, SharedFolder, VLLMServers
from lightning_modules.rollouts.protocol import under_all_names, weights_file
from lightning_modules.rollouts.servers.client import ServerRefusal
from lightning_modules.rollouts.weight_check import policy_log_probs, probe_tokens
from tests.lightning_modules.rollouts.servers.fake_server import (
    STOP,
    TOKEN,
    breaks_off,
    never_answers,
    sampled_tokens,
    trickles,
    trickles_headers,
)
from tests.lightning_modules.training import tokens_of

URL = "http://127.0.0.1:8000"
PROMPTS = [[number, number + 1, number + 2][: 1 + number % 3] for number in range(3, 15)]
SAMPLING = SamplingParameters(max_completion_length=5, stop_token_ids=(STOP,), seed=11, samples_per_prompt=3)


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("AGGREGATE_PO_TOKEN", TOKEN)


@pytest.fixture
def engine_of(tmp_path, model):
    """An engine of these servers that has a policy."""

    def build(servers, loaded=True, **options):
        defaults = {"timeout": 5.0, "check_weights": False}
        engine = VLLMServers([server.url for server in servers], SharedFolder(str(tmp_path)), **{**defaults, **options})
        if loaded:
            engine.load_policy(model)
        return engine

    return build


def prompts_asked(*servers):
    return sorted(request["prompt"] for server in servers for request in server.requests)


def assert_complete(sampled, *servers):
    """Every prompt has its completions, those of one prompt stand together, and in the order of the prompts."""
    seeds = {tuple(request["prompt"]): request["seed"] for server in servers for request in server.requests}
    group = SAMPLING.samples_per_prompt
    assert len(sampled.token_ids) == group * len(PROMPTS)
    for row in range(len(sampled.token_ids)):
        prompt = PROMPTS[row // group]
        expected = sampled_tokens(prompt, seeds[tuple(prompt)], row % group, 5)
        assert tokens_of(sampled, row) == expected
        assert sampled.finished[row] == (expected[-1] == STOP)
        width = len(expected)
        assert torch.allclose(sampled.log_probs[row, :width], torch.tensor(expected) / -100)
    assert sampled.token_ids[~sampled.mask].eq(0).all()
    assert sampled.log_probs[~sampled.mask].eq(0).all()
    assert sampled.mask.shape[1] == sampled.mask.sum(dim=-1).max()


@pytest.mark.parametrize("count", [1, 2, 5])
def test_prompts_are_shared_out_and_come_back_in_order(started, engine_of, count):
    servers = started(*[lambda body, number: time.sleep(0.1)] * count)
    sampled = engine_of(servers).generate(PROMPTS, SAMPLING)
    assert_complete(sampled, *servers)
    assert prompts_asked(*servers) == sorted(PROMPTS)
    assert all(server.requests for server in servers)


def test_a_slow_server_gets_fewer_prompts(started, engine_of):
    slow, fast = started(lambda body, number: time.sleep(0.3), None)
    sampled = engine_of([slow, fast], prompts_per_server=1).generate(PROMPTS, SAMPLING)
    assert_complete(sampled, slow, fast)
    assert len(slow.requests) < 4 < len(fast.requests)


def test_a_server_is_given_so_many_prompts_at_a_time(started, engine_of):
    together, most, lock = [0], [0], threading.Lock()

    def count(body, number):
        with lock:
            together[0] += 1
            most[0] = max(most[0], together[0])
        time.sleep(0.05)
        with lock:
            together[0] -= 1

    (server,) = started(count)
    engine_of([server], prompts_per_server=3).generate(PROMPTS, SAMPLING)
    assert most[0] == 3


def test_a_request_says_all_that_matters(started, engine_of):
    """A server takes sampling parameters that a request leaves out from the folder of its model."""
    (server,) = started(None)
    engine_of([server]).generate(PROMPTS, SAMPLING)
    for request in server.requests:
        expected = {"n": 3, "max_tokens": 5, "temperature": 1.0, "stop_token_ids": [STOP], "logprobs": 0}
        expected |= {"ignore_eos": True, "return_token_ids": True, "top_p": 1.0, "top_k": 0, "min_p": 0.0}
        expected |= {"repetition_penalty": 1.0, "presence_penalty": 0.0, "frequency_penalty": 0.0}
        assert {name: request[name] for name in expected} == expected


def seeds_of(engine, server, seed):
    server.requests.clear()
    engine.generate(PROMPTS, SamplingParameters(5, (STOP,), seed=seed, samples_per_prompt=3))
    return {tuple(request["prompt"]): request["seed"] for request in server.requests}


def test_every_prompt_has_a_seed_of_its_own(started, engine_of):
    """vLLM samples completion i of every prompt of a request with the seed plus i."""
    (server,) = started(None)
    engine = engine_of([server])
    first, again, other = (seeds_of(engine, server, seed) for seed in (1, 1, 2))
    assert first == again
    assert not set(first.values()) & set(other.values())
    sampled_with = {seed + index for seed in first.values() for index in range(3)}
    assert len(sampled_with) == 3 * len(PROMPTS)
    assert all(0 <= seed < 2**62 for seed in first.values())


def test_the_likeliest_tokens_are_asked_for_once(started, engine_of):
    (server,) = started(None)
    sampling = SamplingParameters(5, (STOP,), temperature=0.0, samples_per_prompt=2)
    sampled = engine_of([server]).generate(PROMPTS[:2], sampling)
    assert {request["n"] for request in server.requests} == {1}
    assert torch.equal(sampled.token_ids[0], sampled.token_ids[1])
    assert len(sampled.token_ids) == 4


# Failures


@pytest.mark.parametrize(
    "failure", [500, 503, 429, "not JSON", breaks_off], ids=lambda failure: getattr(failure, "__name__", str(failure))
)
def test_a_failed_request_is_tried_again(started, engine_of, failure):
    """The first two answers fail, whichever prompts they are for; the server stays."""
    (server,) = started(lambda body, number: failure if number <= 2 else None)
    engine = engine_of([server])
    assert_complete(engine.generate(PROMPTS, SAMPLING), server)
    assert len(server.requests) == len(PROMPTS) + 2
    assert engine.losses == 0


def test_a_server_that_goes_on_failing_is_left_out_until_it_is_back(started, engine_of, model, caplog):
    bad, good = started(lambda body, number: 500, None)
    engine = engine_of([bad, good])
    with caplog.at_level(logging.WARNING):
        assert_complete(engine.generate(PROMPTS, SAMPLING), good)
        asked = len(bad.requests)
        assert_complete(engine.generate(PROMPTS, SAMPLING), good)
    assert len(bad.requests) == asked  # left alone
    assert engine.losses == 1
    assert [record.message.count(bad.url) for record in caplog.records] == [1]

    bad.script = None
    with torch.no_grad():
        model.model.norm.weight += 1
    engine.load_policy(model)
    assert engine.lost_servers == {}
    assert bad.loads == good.loads
    assert_complete(engine.generate(PROMPTS, SAMPLING), bad, good)
    assert len(bad.requests) > asked


def test_a_server_that_dies_in_the_middle_loses_no_prompt(started, engine_of):
    dying, good = started(None, lambda body, number: time.sleep(0.1))

    def die(body, number):
        if number == 3:
            threading.Thread(target=dying.stop).start()
        if number >= 3:
            time.sleep(0.2)
            return breaks_off
        return None

    dying.script = die
    engine = engine_of([dying, good], prompts_per_server=2)
    assert_complete(engine.generate(PROMPTS, SAMPLING), dying, good)
    assert list(engine.lost_servers) == [dying.url]
    # What the dead server had answered was not asked for again.
    answered = [request["prompt"] for request in dying.requests[:2]]
    assert not [prompt for prompt in answered if prompt in prompts_asked(good)]


@pytest.mark.parametrize("behavior", [never_answers, trickles, trickles_headers])
def test_a_server_that_hangs_is_left_out(started, engine_of, behavior):
    hung, good = started(lambda body, number: behavior, None)
    engine = engine_of([hung, good], timeout=0.7)
    begun = time.monotonic()
    assert_complete(engine.generate(PROMPTS, SAMPLING), hung, good)
    assert time.monotonic() - begun < 3
    assert "gave no answer within 0.7 s" in engine.lost_servers[hung.url]


def test_a_server_that_was_started_again_is_left_out(started, engine_of):
    """A restarted server has the weights of its folder, and would generate with them."""

    def restarted(body, number):
        fresh.state["version"] = "none"

    fresh, good = started(restarted, None)
    engine = engine_of([fresh, good], prompts_per_server=1)
    assert_complete(engine.generate(PROMPTS, SAMPLING), fresh, good)
    assert "has weights of version none instead of 000001-" in engine.lost_servers[fresh.url]
    assert len(fresh.requests) == 1


def test_when_no_server_is_left_the_error_says_which_and_why(started, engine_of, model):
    first, second = started(lambda body, number: 500, lambda body, number: never_answers)
    engine = engine_of([first, second], timeout=2.0)
    with pytest.raises(RuntimeError, match="none of the 2 servers is left") as error:
        engine.generate(PROMPTS, SAMPLING)
    for part in (first.url, "answered 500", second.url, "gave no answer within 2 s", "aggregate-po serve", "resume"):
        assert part in str(error.value)
    first.stop()
    second.stop()
    with pytest.raises(RuntimeError, match="none of the 2 servers is left"):
        engine.load_policy(model)


@pytest.mark.parametrize("status", [400, 404, 422])
def test_a_request_that_is_refused_ends_the_run_with_the_servers_words(started, engine_of, status):
    first, second = started(lambda body, number: status, None)
    with pytest.raises(ServerRefusal, match=f"answered {status} to /v1/completions: status {status} for a test"):
        engine_of([first, second]).generate(PROMPTS, SAMPLING)


def test_a_server_that_had_no_room_for_a_completion_is_left_out(started, engine_of):
    """It said that it had."""
    short = {"choices": [{"index": i, "token_ids": [1], "finish_reason": "length"} for i in range(3)]}
    (server,) = started(lambda body, number: short)
    with pytest.raises(
        RuntimeError, match=r"none of the 1 servers is left:\n.*1 of 5 tokens.*a higher --max-model-len"
    ):
        engine_of([server]).generate(PROMPTS, SAMPLING)


# The token


def test_a_wrong_token_ends_the_run_at_once(started, engine_of, model, monkeypatch):
    (server,) = started(None)
    engine = engine_of([server])
    monkeypatch.setenv("AGGREGATE_PO_TOKEN", "not-that-of-the-server")
    for call in (lambda: engine.load_policy(model), lambda: engine.generate(PROMPTS[:1], SAMPLING)):
        server.refusals = 0
        with pytest.raises(ServerRefusal, match=r"refused the token \(status 401\); set AGGREGATE_PO_TOKEN") as error:
            call()
        assert server.refusals == 1
        assert "not-that-of" not in str(error.value)


def test_the_token_is_kept_nowhere(started, engine_of, caplog):
    (server,) = started(None)
    with caplog.at_level(logging.DEBUG):
        engine = engine_of([server])
        engine.generate(PROMPTS, SAMPLING)
    assert TOKEN.encode() not in pickle.dumps(engine)
    assert TOKEN not in caplog.text


def test_a_configuration_names_servers_and_has_no_token(tmp_path):
    parser = ArgumentParser()
    parser.add_argument("--rollouts", type=RolloutEngine)
    weights = {"class_path": "lightning_modules.rollouts.SharedFolder", "init_args": {"path": str(tmp_path)}}
    engine = {"class_path": "lightning_modules.rollouts.VLLMServers", "init_args": {"urls": [URL], "weights": weights}}
    config = parser.parse_object({"rollouts": engine})
    assert TOKEN not in parser.dump(config)
    built = parser.instantiate(config).rollouts
    assert isinstance(built, VLLMServers)
    assert isinstance(built.weights, SharedFolder)


def test_the_variable_of_the_token_can_be_chosen(started, engine_of, monkeypatch):
    (server,) = started(None)
    monkeypatch.delenv("AGGREGATE_PO_TOKEN")
    monkeypatch.setenv("OTHER_TOKEN", TOKEN)
    engine_of([server], token_variable="OTHER_TOKEN")
    with pytest.raises(ServerRefusal, match=r"requires a token .* AGGREGATE_PO_TOKEN is not set here"):
        engine_of([server])


def test_no_proxy_is_asked(started, engine_of, monkeypatch):
    """The other server would see the token."""
    (proxy, server) = started(None, None)
    for name in ("http_proxy", "HTTP_PROXY", "all_proxy"):
        monkeypatch.setenv(name, proxy.url)
    engine_of([server]).generate(PROMPTS, SAMPLING)
    assert not proxy.requests
    assert not proxy.refusals


@pytest.mark.parametrize("status", [301, 302, 303, 307, 308])
def test_a_redirection_is_not_followed(started, engine_of, status):
    """The token would go along."""
    elsewhere, server, good = started(None, None, None)

    def redirect(handler):
        handler.send_response(status)
        handler.send_header("Location", f"{elsewhere.url}/v1/completions")
        handler.send_header("Content-Length", "0")
        handler.end_headers()

    server.script = lambda body, number: redirect
    engine = engine_of([server, good])
    assert_complete(engine.generate(PROMPTS, SAMPLING), good)
    assert f"answered {status}" in engine.lost_servers[server.url]
    assert not elsewhere.requests
    assert not elsewhere.refusals


# Weights


def test_weights_are_written_when_they_change(started, engine_of, model, tmp_path):
    servers = started(None, None)
    engine = engine_of(servers, loaded=False)
    assert engine.weight_version == 0
    versions = []
    for step in range(4):
        engine.load_policy(model)
        engine.load_policy(model)
        assert engine.weight_version == step + 1
        versions.append(servers[0].loads[-1])
        with torch.no_grad():
            model.model.norm.weight += 1
    assert servers[0].loads == servers[1].loads == versions
    assert len(set(versions)) == 4
    assert sorted(tmp_path.iterdir()) == [weights_file(tmp_path, version) for version in versions[-2:]]
    with safe_open(weights_file(tmp_path, versions[-1]), framework="pt") as file:
        tied = file.metadata()
        written = {name: file.get_tensor(name) for name in sorted(file.keys())}
    with torch.no_grad():
        model.model.norm.weight -= 1
    state = model.state_dict()
    assert tied == {"lm_head.weight": "model.embed_tokens.weight"}  # a server that does not load it keeps its old one
    assert written.keys() == state.keys() - tied.keys()
    loaded = dict(under_all_names(written.items(), tied))
    assert loaded.keys() == state.keys()
    assert all(torch.equal(loaded[name], state[name]) for name in state)


def test_a_server_that_has_other_weights_ends_the_run(started, engine_of, model):
    (server,) = started(None)
    engine = engine_of([server], loaded=False, check_weights=True)
    text = probe_tokens(model)
    right = policy_log_probs(model, text)[0]
    server.prompt_log_probs = right.tolist()
    engine.load_policy(model)
    with torch.no_grad():
        model.model.norm.weight *= 1.01
    for _ in range(2):  # that it says it has them changes nothing, in this run or in the next
        with pytest.raises(RuntimeError, match=rf"{server.url} does not have the weights of the policy: .* transfer"):
            engine.load_policy(model)
        engine = engine_of([server], loaded=False, check_weights=True)


@pytest.mark.parametrize("dtype", ["float32", "bfloat16"])
def test_a_server_of_less_precision_is_warned_of_once(started, engine_of, model, caplog, dtype):
    (server,) = started(None)
    server.state["dtype"] = f"torch.{dtype}"
    engine = engine_of([server], loaded=False, check_weights=True)
    for _ in range(2):
        server.prompt_log_probs = policy_log_probs(model, probe_tokens(model))[0].tolist()
        engine.load_policy(model)
        with torch.no_grad():
            model.model.norm.weight *= 1.0001
    warnings = [record.getMessage() for record in caplog.records if "computes in" in record.getMessage()]
    assert len(warnings) == (dtype == "bfloat16")
    assert all(
        "bfloat16 and the trainer in float32" in message and "--dtype float32" in message for message in warnings
    )


def test_a_completion_without_room_is_refused_before_it_is_asked_for(started, engine_of, model):
    small, large = started(None, None)
    small.state["max_model_len"] = 7
    engine = engine_of([small, large], loaded=False)
    assert engine.max_model_length is None
    engine.load_policy(model)
    assert engine.max_model_length == 7
    with pytest.raises(
        ServerRefusal, match=r"prompt of 3 tokens and a completion of 5 .* more than the 7 .*max-model-len"
    ):
        engine.generate(PROMPTS, SAMPLING)
    assert not small.requests + large.requests
    small.state["max_model_len"] = 8
    engine.load_policy(model)
    assert_complete(engine.generate(PROMPTS, SAMPLING), small, large)


def test_log_probs_without_the_temperature_are_refused(started, engine_of):
    (server,) = started(None)
    server.state["logprobs_mode"] = "raw_logprobs"
    with pytest.raises(ServerRefusal, match="returns raw_logprobs, which leave the temperature out"):
        engine_of([server])


def test_a_server_of_another_model_is_refused_before_it_gets_weights(started, engine_of):
    """vLLM does not recover from weights that do not fit."""
    (server,) = started(None)
    server.state["sizes"] = {**server.state["sizes"], "vocab_size": 5}
    with pytest.raises(ServerRefusal, match=r"serves a model with {'vocab_size': 5}, and the trained model has"):
        engine_of([server])
    assert not server.loads


def test_a_run_waits_for_servers_that_are_still_starting(started, engine_of):
    (server,) = started(None)
    port = server.port
    server.stop()
    with pytest.raises(RuntimeError, match="none of the 1 servers is left"):
        engine_of([server])
    late = threading.Timer(0.5, server.start, [port])
    late.start()
    engine = engine_of([server], startup_timeout=30)
    late.join()
    assert_complete(engine.generate(PROMPTS, SAMPLING), server)


# Ranks


def run_rank(rank, store, urls, folder, model, results):
    """One rank: samples its share, and then loads the policy with a wrong token."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    engine = VLLMServers(urls, SharedFolder(folder), timeout=5.0, check_weights=False)
    engine.load_policy(model)
    sampling = SamplingParameters(5, (STOP,), seed=rank, samples_per_prompt=3)
    sampled = engine.generate(PROMPTS[rank::2], sampling)
    seen = (len(sampled.token_ids), engine.weight_version, list(engine.lost_servers))
    os.environ["AGGREGATE_PO_TOKEN"] = "wrong"
    try:
        engine.load_policy(model)
    except RuntimeError as error:
        results.put((rank, *seen, str(error)))
    dist.destroy_process_group()


def outcomes_of_ranks(function, servers, tmp_path, model):
    """What the function puts into its queue in two processes, by rank."""
    context = multiprocessing.get_context("spawn")
    results, urls = context.Queue(), [server.url for server in servers]
    arguments = (str(tmp_path / "store"), urls, str(tmp_path / "weights"), model, results)
    processes = [context.Process(target=function, args=(rank, *arguments)) for rank in range(2)]
    for process in processes:
        process.start()
    outcomes = sorted(results.get(timeout=120) for _ in processes)
    for process in processes:
        process.join(timeout=60)
    return outcomes


def test_rank_0_sends_the_weights_and_every_rank_samples(started, tmp_path, model):
    dead, good = started(None, None)
    dead.stop()
    outcomes = outcomes_of_ranks(run_rank, [dead, good], tmp_path, model)
    assert [outcome[:-1] for outcome in outcomes] == [(rank, 18, 1, [dead.url]) for rank in range(2)]
    assert len(good.loads) == 1
    assert prompts_asked(good) == sorted(PROMPTS)
    # A failure of rank 0 is heard of by the other, which would wait otherwise.
    assert "refused the token" in outcomes[0][-1]
    assert "rank 0 could not load the policy into the servers" in outcomes[1][-1]


def run_losing_rank(rank, store, urls, folder, model, results):
    """One rank: samples prompts on which a server fails, at first on rank 1 alone, and loads the policy again."""
    dist.init_process_group("gloo", init_method=f"file://{store}", rank=rank, world_size=2)
    options = {"timeout": 5.0, "retries": 0, "prompts_per_server": 1, "check_weights": False}
    engine, losses = VLLMServers(urls, SharedFolder(folder), **options), []
    engine.load_policy(model)
    for number in (rank, 1):
        engine.generate([PROMPTS[number]] * 4, SAMPLING)
        engine.load_policy(model)
        losses.append(engine.metrics()["rollout/server_losses"])
    results.put((rank, losses, list(engine.lost_servers), engine.max_model_length))
    dist.destroy_process_group()


def test_losses_are_those_of_all_ranks_and_one_that_two_ranks_find_is_one(started, tmp_path, model):
    failing, good = started(
        lambda body, number: 500 if body["prompt"] == PROMPTS[1] else None, lambda body, number: time.sleep(0.1)
    )
    good.state["max_model_len"] = 64
    outcomes = outcomes_of_ranks(run_losing_rank, [failing, good], tmp_path, model)
    assert outcomes == [(rank, [1, 2], [], 64) for rank in range(2)]


# Arguments


def test_without_a_policy_it_says_so(started, engine_of):
    (server,) = started(None)
    with pytest.raises(RuntimeError, match=r"no policy; call `load_policy\(model\)` before `generate`"):
        engine_of([server], loaded=False).generate(PROMPTS, SAMPLING)


def test_a_temperature_that_vllm_would_change_is_refused(started, engine_of):
    (server,) = started(None)
    with pytest.raises(ValueError, match=r"`temperature` is 0.005, which vLLM would raise to 0.01"):
        engine_of([server]).generate(PROMPTS, SamplingParameters(5, (STOP,), temperature=0.005))


WRONG = [
    ({"urls": []}, "`urls` is"),
    ({"urls": URL}, "pass a list"),
    ({"urls": [URL, URL]}, "different addresses"),
    ({"urls": [URL, URL + "/"]}, "different addresses"),
    ({"urls": ["http://127.0.0.1:99999"]}, "`urls` has 'http://127.0.0.1:99999'; pass addresses"),
    ({"urls": ["127.0.0.1:8000"]}, r"`urls` has '127.0.0.1:8000'; pass addresses such as http://"),
    ({"urls": [URL + "/v1"]}, rf"`urls` has '{URL}/v1', which has a path; pass '{URL}'"),
    ({"urls": [URL + "/v1/completions/"]}, rf"`urls` has '{URL}/v1/completions/', which has a path; pass '{URL}'"),
    ({"urls": ["http://[::1]:8000/v1"]}, r"which has a path; pass 'http://\[::1\]:8000', without it"),
    ({"urls": ["file:///etc/passwd"]}, "pass addresses"),
    ({"urls": [URL + "?token=x"]}, "pass addresses"),
    ({"retries": -1}, "`retries` is -1; pass 0 or more"),
    ({"prompts_per_server": 0}, "`prompts_per_server` is 0; pass 1 or more"),
    ({"timeout": 0}, "`timeout` is 0; pass a positive number of seconds"),
    ({"timeout": float("inf")}, "`timeout` is inf"),
    ({"startup_timeout": -1}, "`startup_timeout` is -1"),
]


@pytest.mark.parametrize(("arguments", "message"), WRONG)
def test_wrong_arguments_are_named(arguments, message, tmp_path):
    with pytest.raises(ValueError, match=message):
        VLLMServers(**{"urls": [URL], "weights": SharedFolder(str(tmp_path)), **arguments})


@pytest.mark.parametrize("user", ["me", ""])
def test_a_password_in_an_address_is_not_repeated(tmp_path, user):
    with pytest.raises(ValueError, match="pass addresses") as error:
        VLLMServers([f"http://{user}:secret@127.0.0.1:8000"], SharedFolder(str(tmp_path)))
    assert "secret" not in str(error.value)
