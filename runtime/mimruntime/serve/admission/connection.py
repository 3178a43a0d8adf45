"""One HTTP/1.1 connection of uvicorn, with time limits and a limit on open connections."""

from __future__ import annotations

import asyncio
import logging
import socket
from typing import Any, ClassVar

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

    At the limit, connections that wait for a request are closed, the oldest first. Over TLS a connection counts from its
    acceptance on, before its handshake. h11 is pure Python and slower than
    httptools, but it limits the size of headers, and an engine is slower than both.
    """

    patience_s = 20.0
    most_connections = 1024
    open_connections = 0
    """Of this process."""
    _idle: ClassVar[dict[TimeoutProtocol, None]] = {}
    """Connections that wait for a handshake, for the headers of a request, or for the end of TLS, the longest wait first."""
    _accepting: asyncio.Task[object] | None = None
    """asyncio's task that waits for the handshake of TLS; cancelling it closes the connection."""
    _silent: asyncio.TimerHandle | None = None
    _overdue: asyncio.TimerHandle | None = None
    _untaken: asyncio.TimerHandle | None = None
    _probe: asyncio.TimerHandle | None = None

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        super().__init__(*args, **kwargs)
        # Over TLS asyncio calls connection_made only after the handshake, which a client may never begin.
        self._accepting = asyncio.current_task() if self.config.ssl is not None else None
        if self._accepting is not None:
            self._accepting.add_done_callback(self._end_handshake)
            # Not now: asyncio would not close a connection that it has not set up.
            self.loop.call_soon(self._open)

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first headers."""
        super().connection_made(transport)
        # Count the first byte that the client does not read; the default is 64 KiB.
        transport.set_write_buffer_limits(high=1, low=0)
        if self._accepting is None:
            self._open()
        else:
            self._count_as_idle_soon()

    def data_received(self, data: bytes) -> None:
        """Keep waiting while headers are incomplete; stop when they are complete."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait()
        else:
            self._count_as_busy()
            self._stop_waiting()
        if self._waits_for_end_of_tls():
            self._count_as_idle_soon()

    def on_response_complete(self) -> None:
        """Count a connection that is kept open as idle, unless its next request has already arrived."""
        super().on_response_complete()
        waits_for_request = self.conn.their_state is h11.IDLE and not self.conn.trailing_data[0]
        if self._waits_for_end_of_tls() or (waits_for_request and self.scheme == "https"):
            self._count_as_idle_soon()  # not now: closing it drops what the client has not taken
        elif waits_for_request and not self.transport.is_closing():
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
        self._leave()
        if self._probe is not None:
            self._probe.cancel()
        super().connection_lost(exc)
        self.resume_writing()

    def _open(self) -> None:
        """Count a new connection; at the limit, close the oldest idle one, or this one."""
        cls = TimeoutProtocol
        cls.open_connections += 1
        self._count_as_idle_soon()
        self._wait()
        if cls.open_connections > cls.most_connections and cls._idle:
            next(iter(cls._idle))._close_idle()
        elif cls.open_connections > cls.most_connections + _OVER:
            _LOG.warning("over %d connections are open; a new one is closed at once", cls.most_connections)
            self._abort()

    def _leave(self) -> None:
        TimeoutProtocol.open_connections -= 1
        self._count_as_busy()
        self._stop_waiting()

    def _end_handshake(self, _: object) -> None:
        self._accepting = None
        if self.transport is None:  # it failed; connection_lost is not called
            self._leave()

    def _abort(self) -> None:
        if self.transport is not None:
            self.transport.abort()
        elif self._accepting is not None:
            self._accepting.cancel()

    def _waits_for_end_of_tls(self) -> bool:
        """Whether the server has ended TLS; asyncio waits 30 s until the client ends it too."""
        return self.scheme == "https" and self.transport.is_closing()

    def _wait(self) -> None:
        if self._overdue is None:
            self._overdue = self.loop.call_later(self.patience_s, self._give_up)

    def _stop_waiting(self) -> None:
        if self._overdue is not None:
            self._overdue.cancel()
            self._overdue = None

    def _give_up(self) -> None:
        if self.transport is None:
            self._abort()
        elif not self.transport.is_closing():
            self.transport.write(b"HTTP/1.1 408 Request Timeout\r\nconnection: close\r\ncontent-length: 0\r\n\r\n")
            self.transport.close()

    def _count_as_idle_soon(self) -> None:
        self._count_as_busy()
        self._silent = self.loop.call_later(_SILENT_S, self._count_as_idle)

    def _count_as_idle(self) -> None:
        self._idle[self] = None

    def _count_as_busy(self) -> None:
        self._idle.pop(self, None)
        if self._silent is not None:
            self._silent.cancel()
            self._silent = None

    def _close_idle(self) -> None:
        self._count_as_busy()
        if self.scheme == "http":
            self.transport.close()
        else:
            self._abort()

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
