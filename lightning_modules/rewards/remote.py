"""Rewards from a server."""

from __future__ import annotations

import asyncio
import json
from collections.abc import Sequence
from functools import partial
from typing import Any

import aiohttp
from typing_extensions import override

from lightning_modules.prompts import Example
from lightning_modules.rewards.batch import BatchReward
from lightning_modules.rewards.concurrent import run_coroutine
from lightning_modules.rewards.verdict import Verdict
from lightning_modules.validation import require_at_least

_FIRST_PAUSE = 0.5  # seconds before the first retry; each further pause is twice as long


class RemoteReward(BatchReward):
    """Posts completions and examples to a server, and takes their rewards from the answer.

    A request is the JSON object `{"completions": [...], "examples": [...]}`, and its answer `{"rewards": [...]}` with a
    number for each completion, or null where there is no reward. A value of an example that JSON lacks, such as a date,
    is sent as its text. Requests that cannot be answered now (no connection, no answer in time, the statuses 429 and
    5xx) are repeated after pauses of 0.5 s, 1 s, 2 s and so on. If the last attempt fails, so do the verdicts of this
    request, with the cause "connection" or "time".

    Args:
        url: Address of the server, such as `http://localhost:8080/rewards`.
        limit: Time limit of a request in seconds.
        retries: Number of attempts after the first one.
        batch_size: Maximum number of completions of a request.
        concurrency: Maximum number of requests at the same time.

    Raises:
        ValueError: a number is out of its range, or the address is none of a web server.
        RuntimeError: when called, if the server refuses a request or gives another answer.
    """

    def __init__(
        self, url: str, limit: float = 60.0, retries: int = 3, batch_size: int = 64, concurrency: int = 8
    ) -> None:
        if not 0 < limit < float("inf"):
            raise ValueError(f"`limit` is {limit}; pass a positive number of seconds.")
        require_at_least(0, retries=retries)
        require_at_least(1, batch_size=batch_size, concurrency=concurrency)
        if not url.startswith(("http://", "https://")):
            raise ValueError(f"`url` is {url!r}; pass an address that begins with http:// or https://.")
        self.url = url
        self.limit = limit
        self.retries = retries
        self.batch_size = batch_size
        self.concurrency = concurrency

    @override
    def __call__(self, completions: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
        return list(run_coroutine(lambda: self._all(completions, examples)))

    async def _all(self, completions: Sequence[str], examples: Sequence[Example]) -> list[Verdict]:
        places = asyncio.Semaphore(self.concurrency)
        limit, dumps = aiohttp.ClientTimeout(total=self.limit), partial(json.dumps, default=str)
        async with aiohttp.ClientSession(timeout=limit, json_serialize=dumps) as session:
            parts = [slice(start, start + self.batch_size) for start in range(0, len(completions), self.batch_size)]
            requests = (self._part(session, places, completions[part], examples[part]) for part in parts)
            return [verdict for verdicts in await asyncio.gather(*requests) for verdict in verdicts]

    async def _part(
        self,
        session: aiohttp.ClientSession,
        places: asyncio.Semaphore,
        completions: Sequence[str],
        examples: Sequence[Example],
    ) -> list[Verdict]:
        """Return the verdicts of one request, with its repetitions."""
        content = {"completions": list(completions), "examples": [dict(example) for example in examples]}
        failed = Verdict(None, "connection")
        async with places:
            for attempt in range(self.retries + 1):
                if attempt:
                    await asyncio.sleep(_FIRST_PAUSE * 2 ** (attempt - 1))
                try:
                    return await self._request(session, content)
                except TimeoutError:
                    failed = Verdict(None, "time", f"{self.limit} s")
                except aiohttp.ClientError as error:
                    failed = Verdict(None, "connection", repr(error)[:500])
        return [failed] * len(completions)

    async def _request(self, session: aiohttp.ClientSession, content: dict[str, Any]) -> list[Verdict]:
        async with session.post(self.url, json=content) as response:
            if response.status == 429 or response.status >= 500:
                response.raise_for_status()
            text = await response.text()
            if response.status != 200:
                raise RuntimeError(f"{self.url} answered with the status {response.status}: {text[:500]}")
        rewards = _rewards_in(text)
        if not isinstance(rewards, list) or len(rewards) != len(content["completions"]):
            raise RuntimeError(
                f'{self.url} answered {text[:500]!r}; answer {{"rewards": [...]}} with a number or null for each of '
                f"the {len(content['completions'])} completions."
            )
        return [Verdict(None, "value", "null") if reward is None else Verdict(reward) for reward in rewards]


def _rewards_in(text: str) -> Any:
    """Return the rewards of an answer, or None if it is another one, such as the page of a proxy."""
    try:
        answer = json.loads(text)
    except ValueError:
        return None
    return answer.get("rewards") if isinstance(answer, dict) else None
