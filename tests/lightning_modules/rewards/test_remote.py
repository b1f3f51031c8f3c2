"""Rewards from a real server on this machine: requests, answers, failures and repetitions."""

import asyncio
import datetime
import threading
from contextlib import contextmanager

import pytest
import torch
from aiohttp import web

from lightning_modules.rewards import RemoteReward, WeightedRewards
from tests.lightning_modules.training import fitted, small_data, text_reward

EXAMPLES = [{"answer": str(number), "nested": {"numbers": [number]}} for number in range(10)]
COMPLETIONS = [f"it is {number}" for number in range(10)]


@contextmanager
def served(handler):
    """Address of a server that answers with this coroutine function."""
    loop = asyncio.new_event_loop()
    thread = threading.Thread(target=loop.run_forever)
    thread.start()

    async def start():
        app = web.Application()
        app.router.add_post("/", handler)
        runner = web.AppRunner(app)
        await runner.setup()
        site = web.TCPSite(runner, "127.0.0.1", 0)
        await site.start()
        return runner, site._server.sockets[0].getsockname()[1]

    runner, port = asyncio.run_coroutine_threadsafe(start(), loop).result()
    try:
        yield f"http://127.0.0.1:{port}/"
    finally:
        asyncio.run_coroutine_threadsafe(runner.cleanup(), loop).result()
        loop.call_soon_threadsafe(loop.stop)
        thread.join()
        loop.close()


async def length(request):
    content = await request.json()
    assert len(content["completions"]) == len(content["examples"])
    values = [
        None if example["answer"] == "7" else float(text.endswith(example["answer"])) + example["nested"]["numbers"][0]
        for text, example in zip(content["completions"], content["examples"], strict=True)
    ]
    return web.json_response({"rewards": values})


def test_rewards_come_in_the_order_of_the_completions():
    with served(length) as url, pytest.warns(UserWarning, match="`reward` RemoteReward failed .* value null"):
        scores = WeightedRewards(RemoteReward(url, batch_size=3)).scores(COMPLETIONS, EXAMPLES)
    expected = [0.0 if number == 7 else 1.0 + number for number in range(10)]
    assert scores.components.squeeze(-1).tolist() == expected
    assert [row[0] for row in scores.causes] == [None] * 7 + ["value"] + [None] * 2


def test_a_run_rewarded_by_a_server_is_the_run_rewarded_in_its_process(tmp_path, model_folder):
    async def rewards(request):
        content = await request.json()
        pairs = zip(content["completions"], content["examples"], strict=True)
        return web.json_response({"rewards": [text_reward(text, example) for text, example in pairs]})

    with served(rewards) as url:
        remote = fitted(tmp_path, model_folder, data=small_data(reward=RemoteReward(url, batch_size=5)), max_steps=2)
    local = fitted(tmp_path, model_folder, data=small_data(), max_steps=2)
    assert remote.metrics["rewards/RemoteReward/mean"] == local.metrics["rewards/text_reward/mean"]
    for name, weight in local.module.state_dict().items():
        torch.testing.assert_close(remote.module.state_dict()[name], weight, rtol=0, atol=0)


def test_what_json_lacks_is_sent_as_text():
    async def year(request):
        (example,) = (await request.json())["examples"]
        return web.json_response({"rewards": [float(example["date"][:4])]})

    with served(year) as url:
        (verdict,) = RemoteReward(url)(["a"], [{"date": datetime.date(2024, 2, 3)}])
    assert verdict.value == 2024


def test_requests_are_sent_at_the_same_time_within_the_bound():
    running, most = 0, 0

    async def slow(request):
        nonlocal running, most
        running += 1
        most = max(most, running)
        await asyncio.sleep(0.05)
        running -= 1
        return await length(request)

    with served(slow) as url:
        verdicts = RemoteReward(url, batch_size=1, concurrency=3)(COMPLETIONS[:6], EXAMPLES[:6])
    assert [verdict.value for verdict in verdicts] == [1.0, 2.0, 3.0, 4.0, 5.0, 6.0]
    assert most == 3


@pytest.mark.parametrize("status", [500, 503, 429])
def test_a_failed_request_is_repeated(status):
    calls = []

    async def flaky(request):
        calls.append(1)
        return await length(request) if len(calls) > 1 else web.Response(status=status)

    with served(flaky) as url:
        (verdict,) = RemoteReward(url)(["it is 1"], EXAMPLES[1:2])
    assert (verdict.value, len(calls)) == (2.0, 2)


def test_a_server_that_does_not_answer_in_time_costs_its_verdicts():
    async def hanging(request):
        await asyncio.sleep(0.5)
        return await length(request)

    with served(hanging) as url:
        verdicts = RemoteReward(url, limit=0.1, retries=0)(COMPLETIONS[:2], EXAMPLES[:2])
    assert [(verdict.value, verdict.cause) for verdict in verdicts] == [(None, "time")] * 2


def test_a_server_that_is_not_there_costs_its_verdicts():
    (verdict,) = RemoteReward("http://127.0.0.1:9/", retries=0)(["a"], [{}])
    assert (verdict.value, verdict.cause) == (None, "connection")
    assert "127.0.0.1" in verdict.detail


@pytest.mark.parametrize(
    ("answer", "message"),
    [
        ({"text": "no such model", "status": 404}, "status 404: no such model"),
        ({"text": '{"rewards": [1.0, 2.0]}'}, "for each of the 1 completions"),
        ({"text": "[1.0]"}, "for each of the 1 completions"),
        ({"text": "<html>Log in</html>", "content_type": "text/html"}, r"^http.*answered '<html>Log in.*; answer \{"),
    ],
)
def test_an_answer_of_another_form_is_an_error(answer, message):
    async def other(request):
        return web.Response(**answer)

    with served(other) as url, pytest.raises(RuntimeError, match=message):
        RemoteReward(url)(["a"], [{}])


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"url": "localhost:8080"}, r"^`url` is 'localhost:8080'; pass an address that begins with http://"),
        ({"limit": 0.0}, r"^`limit` is 0.0; pass"),
        ({"retries": -1}, r"^`retries` is -1; pass 0 or more"),
        ({"concurrency": 0}, r"^`concurrency` is 0; pass 1 or more"),
    ],
)
def test_bad_arguments_are_refused(arguments, message):
    with pytest.raises(ValueError, match=message):
        RemoteReward(**{"url": "http://localhost/", **arguments})
