"""Availability of the servers of a run."""

from __future__ import annotations

import logging
import time
from collections.abc import Callable, Iterable, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TypeVar

from lightning_modules.rollouts.servers.client import ServerClient, ServerFailure, ServerState

logger = logging.getLogger(__name__)

_FIRST_PAUSE = 0.1  # seconds before the first retry; each later pause is twice as long
_START_PAUSE = 1.0  # seconds between two requests to a server that is still starting
_RETURN_TIMEOUT = 5.0  # seconds; timeout of a request that checks whether a lost server is back

Result = TypeVar("Result")


class Fleet:
    """Set of servers; a server that fails is lost, and is left out until it responds again.

    Args:
        servers: all servers of the run.
        retries: number of retries of a request on its server.
        startup_timeout: seconds to wait for servers that are still starting, before the first weight transfer.
    """

    def __init__(self, servers: Sequence[ServerClient], retries: int, startup_timeout: float) -> None:
        self.servers = list(servers)
        self.lost: dict[str, str] = {}  # reason by address
        self.newly_lost: set[str] = set()  # addresses, since the ranks have last agreed
        self._agreed_losses = 0
        self._retries, self._startup_timeout = retries, startup_timeout
        self._started = False

    @property
    def active(self) -> list[ServerClient]:
        """Servers that are not lost."""
        return [server for server in self.servers if server.url not in self.lost]

    @property
    def losses(self) -> int:
        """Number of losses: those of all ranks until they last agreed, and those of this rank since."""
        return self._agreed_losses + len(self.newly_lost)

    def attempt(self, request: Callable[[], Result]) -> Result:
        """Return the result of a request to one server, with retries.

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
        """Return the state of a server, with a long timeout at the start of a run and a short one if it is lost.

        Raises:
            ServerFailure: the server gave no usable response.
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
        """Run an action on all servers concurrently, lost ones included, and return the results.

        A server on which it fails becomes lost, and a lost one on which it succeeds becomes active again.

        Raises:
            RuntimeError: the action failed on all servers.
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
                logger.warning("%s is back and active again.", server.url)
            results.append(result)
        if not results:
            raise self.none_left()
        return results

    def lose(self, server: ServerClient, failure: ServerFailure) -> None:
        """Mark a server as lost until it responds again."""
        if server.url not in self.lost:
            self.newly_lost.add(server.url)
            logger.warning("%s; it is left out until it responds again.", failure)
        self.lost[server.url] = str(failure)

    def agree(self, lost: Iterable[str], losses: int) -> None:
        """Adopt the lost servers of rank 0 and the number of losses, and end the startup phase."""
        self.lost = {url: self.lost.get(url, "lost to rank 0") for url in lost}
        self.newly_lost, self._agreed_losses = set(), losses
        self._started = True

    def none_left(self) -> RuntimeError:
        """Return an error with the reason why each server is lost."""
        reasons = "\n".join(f"  {reason}" for reason in self.lost.values())
        return RuntimeError(
            f"none of the {len(self.servers)} servers is left:\n{reasons}\nInspect their logs, and start them with "
            f"`aggregate-po serve`{' again; the run resumes from its last checkpoint' if self._started else ''}."
        )
