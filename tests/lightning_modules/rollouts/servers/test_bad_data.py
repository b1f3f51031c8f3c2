"""Servers that return what no model returns are left out, by name and field, and the run goes on with the others."""

import copy
import gzip
import json
import math
import time
import zlib

import pytest
import torch

from lightning_modules.model.policy import Policy
from lightning_modules.rollouts import SamplingParameters, SharedFolder, VLLMServers
from lightning_modules.rollouts.servers import client as client_module
from lightning_modules.rollouts.servers.client import ServerFailure
from lightning_modules.rollouts.servers.requests import parsed_completions, parsed_scores
from lightning_modules.rollouts.weight_check import policy_log_probs, probe_tokens
from tests.lightning_modules.rollouts.servers.fake_server import STOP, TOKEN, completion_of
from tests.lightning_modules.training import fitted, small_data

VOCABULARY = 271
PROMPTS = [[number, number + 1] for number in range(3, 9)]
SAMPLING = SamplingParameters(max_completion_length=5, stop_token_ids=(STOP,), seed=11, samples_per_prompt=3)
GOOD = {
    "index": 0,
    "token_ids": [11, 12, STOP],
    "logprobs": {"token_logprobs": [-0.5, -1, 0.0], "tokens": ["a", "b", "c"]},
    "finish_reason": "stop",
}
SINGLE = SamplingParameters(max_completion_length=5, stop_token_ids=(STOP,))


@pytest.fixture(autouse=True)
def token(monkeypatch):
    monkeypatch.setenv("AGGREGATE_PO_TOKEN", TOKEN)


def engine_of(servers, folder, **options):
    defaults = {"timeout": 5.0, "check_weights": False, "retries": 0, "prompts_per_server": 2}
    return VLLMServers([server.url for server in servers], SharedFolder(str(folder)), **{**defaults, **options})


# Values of one completion


def changed(**fields):
    return {**copy.deepcopy(GOOD), **fields}


def with_log_probs(values):
    return changed(logprobs={"token_logprobs": values})


BAD = {
    "token_ids": {
        "the next after the last": changed(token_ids=[VOCABULARY, STOP]),
        "negative": changed(token_ids=[-1, STOP]),
        "of 64 bits": changed(token_ids=[2**63, STOP]),
        "huge": changed(token_ids=[10**400, STOP]),
        "bool": changed(token_ids=[True, STOP]),
        "float": changed(token_ids=[11.0, STOP]),
        "text": changed(token_ids=["11", STOP]),
        "null in it": changed(token_ids=[None, STOP]),
        "list in it": changed(token_ids=[[11], STOP]),
        "null": changed(token_ids=None),
        "a text": changed(token_ids="abc"),
        "a number": changed(token_ids=3),
        "an object": changed(token_ids={"0": 11}),
        "empty": changed(token_ids=[]),
        "too long": changed(token_ids=[11] * 6, finish_reason="length"),
        "much too long": changed(token_ids=[11] * 100_000, finish_reason="length"),
        "missing": {name: value for name, value in GOOD.items() if name != "token_ids"},
        "on after the stop": changed(token_ids=[STOP, 11, STOP]),
    },
    "finish_reason": {
        "early": changed(token_ids=[11, 12, 13]),
        "aborted": changed(token_ids=[11, 12, 13], finish_reason="abort"),
        "no room": changed(token_ids=[11, 12, 13], finish_reason="length"),
        "length after a stop": changed(finish_reason="length"),
        "stop without one": changed(token_ids=[11] * 5, finish_reason="stop"),
        "null": changed(finish_reason=None),
        "a number": changed(finish_reason=1),
        "a list": changed(finish_reason=["stop"]),
        "an object": changed(finish_reason={"stop": True}),
    },
    "token_logprobs": {
        "positive": with_log_probs([-0.5, 0.01, -1]),
        "large": with_log_probs([1e300, -1, -1]),
        "infinite": with_log_probs([math.inf, -1, -1]),
        "minus infinite": with_log_probs([-math.inf, -1, -1]),
        "beyond float32": with_log_probs([-1e39, -1, -1]),
        "NaN": with_log_probs([math.nan, -1, -1]),
        "huge": with_log_probs([-(10**400), -1, -1]),
        "null in it": with_log_probs([None, -1, -1]),
        "text in it": with_log_probs(["-1", -1, -1]),
        "bool": with_log_probs([False, -1, -1]),
        "list in it": with_log_probs([[-1], -1, -1]),
        "too few": with_log_probs([-1, -1]),
        "too many": with_log_probs([-1] * 4),
        "empty": with_log_probs([]),
        "null": with_log_probs(None),
        "text": with_log_probs("abc"),
        "an object": with_log_probs({"0": -1, "1": -1, "2": -1}),
        "missing": changed(logprobs={}),
        "no logprobs": changed(logprobs=None),
        "list of logprobs": changed(logprobs=[-1, -1, -1]),
        "text of logprobs": changed(logprobs="abc"),
    },
}


@pytest.mark.parametrize(
    ("field", "choice"),
    [
        pytest.param(field, choice, id=f"{field} {name}")
        for field, cases in BAD.items()
        for name, choice in cases.items()
    ],
)
def test_a_value_that_no_model_returns_is_named(field, choice):
    with pytest.raises(ServerFailure, match=f"http://s answered with a malformed completion .*`{field}`") as failure:
        parsed_completions("http://s", [choice], SINGLE, VOCABULARY)
    assert len(str(failure.value)) < 400


def test_good_values_are_taken_and_rounding_is_forgiven():
    (completion,) = parsed_completions("http://s", [GOOD], SINGLE, VOCABULARY)
    assert (completion.token_ids, completion.log_probs, completion.finished) == (
        [11, 12, STOP],
        [-0.5, -1.0, 0.0],
        True,
    )
    last = changed(token_ids=[0] * 4 + [VOCABULARY - 1], finish_reason="length")
    last["logprobs"]["token_logprobs"] = [1e-5, -9999.0, -1e-30, 0, -3.4e38]
    (completion,) = parsed_completions("http://s", [last], SINGLE, VOCABULARY)
    assert completion.log_probs == [0.0, -9999.0, -1e-30, 0.0, -3.4e38]
    assert not completion.finished


@pytest.mark.parametrize(
    "value", [0.01, math.inf, -math.inf, math.nan, None, "x", True, [0], -(10**400)], ids=lambda value: str(value)[:9]
)
def test_scores_that_no_model_gives_are_refused(value):
    entries = [None, {"5": {"logprob": -1.0}}, {"6": {"logprob": value}}]
    with pytest.raises(ServerFailure, match="http://s answered without log-probabilities of the prompt"):
        parsed_scores("http://s", [{"prompt_logprobs": entries}], [4, 5, 6])


@pytest.mark.parametrize(
    "entries", [None, 3, "x", [], [None], [None, 1, 2], [None, None, None], [None, {}, {}], {"a": 1}]
)
def test_scores_of_another_form_are_refused(entries):
    with pytest.raises(ServerFailure, match="answered without log-probabilities"):
        parsed_scores("http://s", [{"prompt_logprobs": entries}], [4, 5, 6])
    with pytest.raises(ServerFailure, match="answered without log-probabilities"):
        parsed_scores("http://s", [], [4, 5, 6])


# Whole responses


def sent(data, status=200, **headers):
    """A response of these bytes and headers."""

    def respond(handler):
        handler.send_response(status)
        for name, value in {"Content_Length": str(len(data)), "x_policy_version": VERSION[0], **headers}.items():
            handler.send_header(name.replace("_", "-"), value)
        handler.end_headers()
        handler.wfile.write(data)

    return respond


VERSION = [""]  # of the weights that the servers have


def endless(handler):
    """A body without an end."""
    handler.send_response(200)
    handler.send_header("Transfer-Encoding", "chunked")
    handler.end_headers()
    for _ in range(100_000):
        handler.wfile.write(b"10000\r\n" + b" " * 2**16 + b"\r\n")


def endless_headers(handler):
    handler.wfile.write(b"HTTP/1.1 200 OK\r\n")
    for number in range(1_000_000):
        handler.wfile.write(b"x-%d: %s\r\n" % (number, b"y" * 100))


def endless_interim_responses(handler):
    for _ in range(1000):
        handler.wfile.write(b"HTTP/1.1 100 Continue\r\n\r\n")
        time.sleep(0.01)


def valid(body):
    return json.dumps(completion_of(body)).encode()


RESPONSES = {
    "empty": lambda body: sent(b""),
    "a text": lambda body: "no JSON",
    "NaN": lambda body: json.dumps(completion_of(body)).replace('bs": [', 'bs": [NaN, ', 1),
    "a number beyond floats": lambda body: json.dumps(completion_of(body)).replace('bs": [-', 'bs": [-1e999', 1),
    "deep nesting": lambda body: "[" * 200_000,
    "a huge integer": lambda body: "1" * 100_000,
    "no text": lambda body: sent(b"\xff\xfe\xfd"),
    "a list": lambda body: "[]",
    "null": lambda body: "null",
    "a number": lambda body: "3",
    "no choices": lambda body: {},
    "null choices": lambda body: {"choices": None},
    "an object of choices": lambda body: {"choices": {"0": GOOD}},
    "a text of choices": lambda body: {"choices": "abc"},
    "choices that are none": lambda body: {"choices": [None, 3, "x"]},
    "too few": lambda body: {"choices": completion_of(body)["choices"][:2]},
    "too many": lambda body: {"choices": [*completion_of(body)["choices"], changed(index=3)]},
    "one twice": lambda body: {"choices": [changed(index=1)] * 3},
    "index of text": lambda body: {"choices": [changed(index=str(i)) for i in range(3)]},
    "index of bool": lambda body: {"choices": [changed(index=i) for i in (False, True, 2)]},
    "no index": lambda body: {"choices": [changed(index=None)] * 3},
    "HTML": lambda body: sent(valid(body), Content_Type="text/html"),
    "gzip": lambda body: sent(gzip.compress(valid(body)), Content_Type="application/json", Content_Encoding="gzip"),
    "a bomb": lambda body: sent(zlib.compress(b" " * 2**28, 9), Content_Encoding="deflate"),
    "too large": lambda body: sent(b" " * 2**22 + valid(body)),
    "endless": lambda body: endless,
    "endless headers": lambda body: endless_headers,
    "interim responses": lambda body: endless_interim_responses,
    "no content": lambda body: sent(b"", 204),
    "part": lambda body: sent(valid(body), 206),
    "a wrong length": lambda body: sent(valid(body), Content_Length="-5"),
    "two lengths": lambda body: sent(valid(body), Content_Length="5, 7"),
    "no HTTP": lambda body: lambda handler: handler.wfile.write(b"220 smtp.example.org\r\n"),
    "another version": lambda body: sent(valid(body), x_policy_version="000009-00000000"),
    "no version": lambda body: sent(valid(body), x_policy_version=""),
    "a version that controls": lambda body: sent(valid(body), x_policy_version="\x1b[31mother\x9b"),
}


@pytest.mark.parametrize("response", RESPONSES.values(), ids=RESPONSES.keys())
def test_a_server_with_a_bad_response_is_left_out(started, tmp_path, model, response):
    bad, good = started(lambda body, number: response(body), None)
    engine = engine_of([bad, good], tmp_path, timeout=2.0)
    engine.load_policy(model)
    VERSION[0] = good.state["version"]
    sampled = engine.generate(PROMPTS, SAMPLING)
    assert len(sampled.token_ids) == 18
    assert sorted(request["prompt"] for request in good.requests) == PROMPTS
    assert list(engine.lost_servers) == [bad.url]
    reason = engine.lost_servers[bad.url]
    assert bad.url in reason
    assert reason.isprintable()
    assert len(reason) < 1000


STATES = {
    "version": [None, 3, ["none"]],
    "logprobs_mode": [None, 3, {}],
    "dtype": [None, 3, "torch.nothing", "nn", "torch.nn.Linear", "__dict__", ""],
    "max_model_len": [None, "256", 256.0, True, 0, 1, -5, [256]],
    "sizes": [None, 3, "x", [], {"vocab_size": []}, {"vocab_size": 271.0}, {"vocab_size": True}],
}


@pytest.mark.parametrize(("field", "value"), [(field, value) for field, values in STATES.items() for value in values])
def test_a_server_with_a_bad_state_is_left_out(started, tmp_path, model, field, value):
    bad, good = started(None, None)
    bad.state[field] = value
    engine = engine_of([bad, good], tmp_path)
    engine.load_policy(model)
    assert f"{bad.url} did not report its state (`{field}` is" in engine.lost_servers[bad.url]
    assert not bad.loads
    assert len(engine.generate(PROMPTS, SAMPLING).token_ids) == 18


def test_a_bad_state_after_a_transfer_counts_too(started, tmp_path, model):
    bad, good = started(None, None)
    engine = engine_of([bad, good], tmp_path)
    states = iter([dict(bad.state), {**bad.state, "version": 7}])
    bad.handle = lambda handler, body: bad.answer(handler, 200, next(states))
    engine.load_policy(model)
    assert "did not report its state (`version` is 7)" in engine.lost_servers[bad.url]


@pytest.mark.parametrize("scores", [[1.0] * 31, [None] * 31, [True] * 31, ["x"] * 31], ids=str)
def test_a_server_with_bad_scores_is_left_out(started, tmp_path, model, scores):
    bad, good = started(None, None)
    bad.prompt_log_probs = scores
    good.prompt_log_probs = policy_log_probs(model, probe_tokens(model))[0].tolist()
    engine = engine_of([bad, good], tmp_path, check_weights=True)
    engine.load_policy(model)
    assert "without log-probabilities of the prompt" in engine.lost_servers[bad.url]


def test_every_leaf_of_a_response_may_be_of_any_type(started, tmp_path, model):
    """Whatever stands at whatever place, the run goes on, and what is taken is of the right type."""
    values = [None, True, -1, 2**70, 1.5, "x", [], {}, [[]], "\x00\x1b"]
    places = [("choices",), *(("choices", 0, name) for name in GOOD), ("choices", 0), ("choices", 0, "token_ids", 0)]
    places.append(("choices", 0, "logprobs", "token_logprobs", 0))
    cases = [(place, value) for place in places for value in values]

    def damage(body, number):
        answer = completion_of(body)
        place, value = cases[body["seed"] % len(cases)]
        target = answer
        for step in place[:-1]:
            target = target[step]
        target[place[-1]] = value
        return answer

    bad, good = started(damage, None)
    for seed in range(6):
        engine = engine_of([bad, good], tmp_path)
        engine.load_policy(model)
        sampled = engine.generate(PROMPTS, SamplingParameters(5, (STOP,), seed=seed, samples_per_prompt=3))
        assert sampled.token_ids[sampled.mask].ge(0).all()
        assert sampled.token_ids[sampled.mask].lt(VOCABULARY).all()
        assert sampled.log_probs.isfinite().all()
        assert sampled.log_probs.le(0).all()


def test_when_all_are_bad_there_is_one_clear_error(started, tmp_path, model):
    first, second = started(lambda body, number: {"choices": []}, lambda body, number: "NaN")
    engine = engine_of([first, second], tmp_path)
    engine.load_policy(model)
    with pytest.raises(RuntimeError, match="none of the 2 servers is left") as error:
        engine.generate(PROMPTS, SAMPLING)
    assert f"{first.url} answered with 0 completions instead of 3" in str(error.value)
    assert f"{second.url} answered with something that is not JSON" in str(error.value)


def test_an_error_message_of_a_server_forges_no_line_of_a_log(started, tmp_path, model):
    forged = {"error": "x\n2026-01-01 INFO all is well\x1b[2J\u202e" + "y" * 10_000}
    (server,) = started(lambda body, number: lambda handler: server.answer(handler, 500, forged))
    engine = engine_of([server], tmp_path)
    engine.load_policy(model)
    with pytest.raises(RuntimeError) as error:
        engine.generate(PROMPTS, SAMPLING)
    (reason,) = engine.lost_servers.values()
    assert "all is well" in reason
    assert reason.isprintable()
    assert len(str(error.value)) < 1500


def test_the_limit_of_a_response_leaves_room_for_what_vllm_sends():
    """A choice of vLLM with long texts: 340 bytes a token, measured with texts of 64 letters."""
    token = {"text": "x" * 64, "token": "token_id:123456", "logprob": -12.345678901234567, "offset": 123456}
    largest = json.dumps({**token, "top_logprobs": {"token_id:123456": -12.345678901234567}, "id": 123456})
    assert len(largest) < client_module._BYTES_PER_TOKEN / 3


@pytest.mark.parametrize("kind", ["token_ids", "token_logprobs"])
def test_a_run_goes_on_without_a_hostile_server(started, tmp_path, model_folder, monkeypatch, kind):
    """The hostile one turns bad in its third response."""
    monkeypatch.setattr(Policy, "stop_token_ids", (STOP,))
    bad_values = list(BAD[kind].values())

    def turn_bad(body, number):
        if number <= 2:
            return None
        return {"choices": [{**bad_values[number % len(bad_values)], "index": index} for index in range(body["n"])]}

    bad, good = started(turn_bad, None)
    engine = engine_of([bad, good], tmp_path / "weights", prompts_per_server=1)
    run = fitted(tmp_path, model_folder, data=small_data(rollouts=engine), max_steps=3)
    assert run.trainer.global_step == 3
    assert run.metrics["rollout/server_losses"] >= 1
    assert len(bad.requests) > 2
    assert len(good.requests) > 2
    assert all(torch.isfinite(parameter).all() for parameter in run.module.model.parameters())
