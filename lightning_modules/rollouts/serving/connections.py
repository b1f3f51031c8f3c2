"""Limits on the connections of a server, which hold before the token is checked."""

from __future__ import annotations

import asyncio
from typing import Any

import h11
from typing_extensions import override
from uvicorn.protocols.http.h11_impl import H11Protocol

_RECEIVED = (h11.DONE, h11.MUST_CLOSE, h11.MIGHT_SWITCH_PROTOCOL)  # states of a client that has sent its request


class LimitedConnection(H11Protocol):
    """HTTP connection that is aborted where its client sends too much, or makes no progress.

    There is no limit while the server works on a request.

    Attributes:
        request_seconds: time for a request with its body, from the connection or from the response before it.
        request_bytes: size of a request with its body; Uvicorn's own limit is on the headers alone.
        response_seconds: time for the client to read a response.
        waiting: number of connections whose client is to send or to read; the one with the least time left is aborted
            when there are more.
    """

    request_seconds = 30.0
    request_bytes = 2**26
    response_seconds = 300.0
    waiting = 4096

    _timer: asyncio.TimerHandle | None = None
    _flushed_by = 0.0  # time at which the client must have read what was sent
    _received = 0  # bytes of the request

    @override
    def connection_made(self, transport: Any) -> None:
        """Start the time of the first request, and abort a connection if too many wait."""
        super().connection_made(transport)
        self._limit(self.request_seconds)
        waiting = [other for other in self.connections if other._timer is not None]
        if len(waiting) > self.waiting:
            min(waiting, key=lambda other: other._timer.when())._abort()

    @override
    def connection_lost(self, exc: Exception | None) -> None:
        """Stop the clock."""
        self._limit(None)
        super().connection_lost(exc)

    @override
    def data_received(self, data: bytes) -> None:
        """Count the bytes of a request, and stop its time when all have arrived."""
        self._received += len(data)
        if self._received > self.request_bytes:
            self._abort()
            return
        super().data_received(data)
        if self.conn.their_state in _RECEIVED and not self.flow.write_paused:
            self._limit(None)

    @override
    def pause_writing(self) -> None:
        """Start the time in which the client has to read."""
        super().pause_writing()
        self._flushed_by = self.loop.time() + self.response_seconds
        self._limit(self.response_seconds)

    @override
    def resume_writing(self) -> None:
        """Stop that time, or start that of the next request if the response is over."""
        super().resume_writing()
        self._limit(None if self._is_working else self.request_seconds)

    @override
    def on_response_complete(self) -> None:
        """Start the time of the next request, which may have arrived already."""
        self._received = 0
        self._flushed_by = self.loop.time() + self.response_seconds
        super().on_response_complete()
        self._limit(None if self._is_working else self.request_seconds)

    @property
    def _is_working(self) -> bool:
        is_answered = self.cycle is None or self.cycle.response_complete
        return self.conn.their_state in _RECEIVED and not is_answered

    def _limit(self, seconds: float | None) -> None:
        """Abort the connection after a time unless this method is called again; never if None."""
        if self._timer is not None:
            self._timer.cancel()
        self._timer = None if seconds is None else self.loop.call_later(seconds, self._expire)

    def _expire(self) -> None:
        # What a client has not read yet may take longer than its next request.
        if self.transport.get_write_buffer_size() and self.loop.time() < self._flushed_by:
            self._timer = self.loop.call_at(self._flushed_by, self._expire)
        else:
            self._abort()

    def _abort(self) -> None:
        self._limit(None)  # and it no longer counts among those that wait
        self.transport.abort()
