"""One HTTP/1.1 connection of uvicorn, with time limits and a limit on open connections."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import ClassVar

import h11
from uvicorn.protocols.http.h11_impl import H11Protocol

from mimruntime.serve.settings import Settings

_LOG = logging.getLogger("mimexport")
_OVER = 16
"""Connections over the limit that still get an answer: 503, or health for a load balancer."""
_PROBE_S = 0.1
_SILENT_S = 1.0
"""Seconds after which a new connection without complete headers counts as idle; before, they may be on the way."""


class TimeoutProtocol(H11Protocol):
    """HTTP/1.1 with time limits for requests to arrive and for clients to read answers, and a count of open connections.

    At the limit, connections that wait for a request are closed, the oldest first. h11 is pure Python and slower than
    httptools, but it limits the size of headers, and an engine is slower than both.
    """

    patience_s = 20.0
    most_connections = 1024
    open_connections = 0
    """Of this process."""
    _idle: ClassVar[dict[TimeoutProtocol, None]] = {}
    """Connections that wait for the headers of a request, the longest wait first."""
    _silent: asyncio.TimerHandle | None = None
    _overdue: asyncio.TimerHandle | None = None
    _untaken: asyncio.TimerHandle | None = None
    _probe: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first headers; at the limit, first close the oldest idle connection."""
        super().connection_made(transport)
        # Count the first byte that the client does not read; the default is 64 KiB.
        transport.set_write_buffer_limits(high=1, low=0)
        cls = TimeoutProtocol
        cls.open_connections += 1
        if cls.open_connections > cls.most_connections and cls._idle:
            next(iter(cls._idle))._close_idle()
        elif cls.open_connections > cls.most_connections + _OVER:
            _LOG.warning("over %d connections are open; a new one is closed at once", cls.most_connections)
            transport.abort()
        self._silent = self.loop.call_later(_SILENT_S, self._count_as_idle)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Keep waiting while headers are incomplete; stop when they are complete."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait()
        else:
            self._count_as_busy()
            self._stop_waiting()

    def on_response_complete(self) -> None:
        """Count a connection that is kept open as idle, unless its next request has already arrived."""
        super().on_response_complete()
        waits_for_request = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        if waits_for_request and not self.transport.is_closing():
            self._count_as_idle()

    def eof_received(self) -> bool:  # type: ignore[override]
        """Still answer a client that closed only its sending side; a probe shows whether the client is gone."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete or cycle.more_body or self.scheme == "https":
            return False
        cycle.keep_alive = False
        if self.conn.their_http_version == b"1.1" and not cycle.response_started:
            self.transport.write(self.conn.send(h11.InformationalResponse(status_code=100, headers=[])))
        self._look_for_reset()
        return True

    def send_400_response(self, msg: str) -> None:
        """Refuse bytes that are not HTTP; if they interrupt a request, the request gets no other answer."""
        cycle = self.cycle
        if cycle is None or cycle.response_complete:
            super().send_400_response(msg)
            return
        if cycle.response_started:
            self.transport.close()
        else:
            super().send_400_response(msg)
        cycle.disconnected = True
        cycle.message_event.set()

    def pause_writing(self) -> None:
        """Wait for the client to read what was sent."""
        super().pause_writing()
        if self._untaken is None:
            self._untaken = self.loop.call_later(self.patience_s, self._end_slow_reader)

    def resume_writing(self) -> None:
        """Stop waiting for the client."""
        super().resume_writing()
        if self._untaken is not None:
            self._untaken.cancel()
            self._untaken = None

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        TimeoutProtocol.open_connections -= 1
        self._count_as_busy()
        self._stop_waiting()
        if self._probe is not None:
            self._probe.cancel()
        super().connection_lost(exc)
        self.resume_writing()

    def _wait(self) -> None:
        if self._overdue is None:
            self._overdue = self.loop.call_later(self.patience_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _give_up(self) -> None:
        if not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self.transport.close()

    def _count_as_idle(self) -> None:
        self._idle[self] = None

    def _count_as_busy(self) -> None:
        self._idle.pop(self, None)
        if self._silent is not None:
            self._silent.cancel()
            self._silent = None

    def _close_idle(self) -> None:
        self._count_as_busy()
        self.transport.close()

    def _end_slow_reader(self) -> None:
        _LOG.warning("a client that did not take its answer within %g s is cut off", self.patience_s)
        self.transport.abort()

    def _look_for_reset(self) -> None:
        """Check repeatedly whether the client reset the connection: asyncio stops reading after the end of the stream."""
        connection: socket.socket = self.transport.get_extra_info("socket")
        if self.transport.is_closing():
            return
        if connection.getsockopt(socket.SOL_SOCKET, socket.SO_ERROR):
            self.transport.abort()
        else:
            self._probe = self.loop.call_later(_PROBE_S, self._look_for_reset)


def limit_connections(settings: Settings) -> None:
    """Set the limits for all connections of this process."""
    TimeoutProtocol.patience_s = settings.body_timeout_s
    TimeoutProtocol.most_connections = settings.max_connections
