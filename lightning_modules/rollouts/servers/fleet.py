"""Servers of a run: which of them answer, and which are left out."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from lightning_modules.rollouts.servers.client import ServerClient, ServerFailure, ServerState

logger = logging.getLogger(__name__)

_FIRST_PAUSE = 0.1  # seconds before the first retry; each later pause is twice as long
_START_PAUSE = 1.0  # seconds between two looks at a server that is still starting
_RETURN_TIMEOUT = 5.0  # seconds that a lost server has to answer when it is looked for again

Result = TypeVar("Result")


class Fleet:
    """Asks servers, and leaves out those that fail until they answer again.

    Args:
        servers: all of the run.
        retries: how often a request is tried again on its server.
        startup_timeout: seconds to wait for servers that are still starting, before the first weights.
    """

    def __init__(self, servers: Sequence[ServerClient], retries: int, startup_timeout: float) -> None:
        self.servers = list(servers)
        self.lost: dict[str, str] = {}  # reason by address
        self.losses = 0
        self._retries, self._startup_timeout = retries, startup_timeout
        self._started = False

    @property
    def active(self) -> list[ServerClient]:
        """Servers that are not left out."""
        return [server for server in self.servers if server.url not in self.lost]

    def attempt(self, request: Callable[[], Result]) -> Result:
        """Return the result of a request to one server, after as many attempts as are allowed.

        Raises:
            ServerFailure: the last attempt failed.
        """
        for attempt in range(self._retries):
            try:
                return request()
            except ServerFailure as failure:
                if not failure.transient:
                    raise
            time.sleep(_FIRST_PAUSE * 2**attempt)
        return request()

    def state(self, server: ServerClient) -> ServerState:
        """Ask a server for its state: patiently at the start of a run, briefly where it is lost.

        Raises:
            ServerFailure: it gives none.
        """
        if self._started:
            lost = server.url in self.lost
            return server.state(_RETURN_TIMEOUT) if lost else self.attempt(server.state)
        deadline = time.monotonic() + self._startup_timeout
        while True:
            try:
                return server.state()
            except ServerFailure:
                if time.monotonic() > deadline:
                    raise
            time.sleep(_START_PAUSE)

    def on_all(self, action: Callable[[ServerClient], Result]) -> list[Result]:
        """Return the results of an action on every server at the same time, lost ones included.

        A server where it fails is lost, and a lost one where it succeeds takes part again.

        Raises:
            RuntimeError: it failed on all of them.
        """

        def outcome(server: ServerClient) -> Result | ServerFailure:
            try:
                return action(server)
            except ServerFailure as failure:
                return failure

        with ThreadPoolExecutor(max_workers=len(self.servers)) as pool:
            outcomes = list(pool.map(outcome, self.servers))
        results = []
        for server, result in zip(self.servers, outcomes, strict=True):
            if isinstance(result, ServerFailure):
                self.lose(server, result)
                continue
            if self.lost.pop(server.url, None):
                logger.warning("%s is back and takes part again.", server.url)
            results.append(result)
        if not results:
            raise self.none_left()
        return results

    def lose(self, server: ServerClient, failure: ServerFailure) -> None:
        """Leave a server out until it answers again."""
        if server.url not in self.lost:
            self.losses += 1
            logger.warning("%s; it is left out until it answers again.", failure)
        self.lost[server.url] = str(failure)

    def agree(self, lost: Iterable[str]) -> None:
        """Take over which servers rank 0 has lost; from now on servers are expected to answer."""
        self.lost = {url: self.lost.get(url, "lost to rank 0") for url in lost}
        self._started = True

    def none_left(self) -> RuntimeError:
        """Return the error that says why each server is lost."""
        reasons = "\n".join(f"  {reason}" for reason in self.lost.values())
        return RuntimeError(
            f"none of the {len(self.servers)} servers is left:\n{reasons}\nLook at their logs, and start them with "
            f"`aggregate-po serve`{' again; the run resumes from its last checkpoint' if self._started else ''}."
        )
