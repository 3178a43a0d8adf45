"""The process, or the processes, around the application."""

from __future__ import annotations

import asyncio
import logging
import os
import signal
import socket
import sys
import tempfile
from functools import partial
from typing import Any

import h11
import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE
from uvicorn.protocols.http.h11_impl import H11Protocol
from uvicorn.supervisors import Multiprocess

from mimruntime.artifact import Artifact
from mimruntime.errors import EngineError, MimError
from mimruntime.serve.app import create_app
from mimruntime.serve.metrics import MULTIPROCESS
from mimruntime.serve.settings import Settings

_LOG = logging.getLogger("mimexport")
_CANCEL_S = 1
"""For what is still open once draining has had its time; uvicorn cancels it then."""
_KEEP_ALIVE_S = 75
"""Longer than load balancers keep an idle connection (60 s), which would else send into one that is just being closed."""


class PatientProtocol(H11Protocol):
    """HTTP/1.1 whose headers must arrive as soon as a body must.

    h11 is pure Python and slower than httptools, but it limits the size of headers, and an engine is slower than both.
    """

    patience_s = 20.0
    _overdue: asyncio.TimerHandle | None = None

    def connection_made(self, transport: asyncio.Transport) -> None:  # type: ignore[override]
        """Wait for the first headers."""
        super().connection_made(transport)
        self._wait()

    def data_received(self, data: bytes) -> None:
        """Wait on while headers are incomplete, no longer once they are whole."""
        super().data_received(data)
        if self.conn.their_state is h11.IDLE:
            self._wait()
        else:
            self._stop_waiting()

    def connection_lost(self, exc: Exception | None) -> None:
        """Stop waiting."""
        self._stop_waiting()
        super().connection_lost(exc)

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


class _Server(uvicorn.Server):
    """A server that says where it listens, once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        await super().startup(sockets)
        for server in self.servers:
            for listener in server.sockets:
                _LOG.info("listening on %s", _url(self.config.host, listener))


def _url(host: str, listener: Any) -> str:
    name = f"[{host}]" if ":" in host else host
    return f"http://{name}:{listener.getsockname()[1]}"


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C; what was accepted is answered first.

    Raises:
        MimError: an artifact or engine that cannot be opened.

    """
    set_up_logs(as_json=settings.log_json)
    if settings.workers > 1:
        _serve_with_workers(settings)
        return
    server = _Server(_config(settings, create_app(settings)))
    # Once it has stopped, uvicorn raises SIGTERM again; the work is done then, and the exit code is 0.
    signal.signal(signal.SIGTERM, signal.SIG_IGN)
    server.run()


def _serve_with_workers(settings: Settings) -> None:
    """Start the processes, and start again whichever ends."""
    for path in settings.artifacts:
        Artifact.open(path)
    with tempfile.TemporaryDirectory(prefix="mimexport-metrics-") as figures:
        os.environ[MULTIPROCESS] = figures
        config = _config(settings, partial(_create_in_worker, settings))
        listener = config.bind_socket()
        _LOG.info("%d workers start, to listen on %s", settings.workers, _url(settings.host, listener))
        supervisor = Multiprocess(config, [listener])
        supervisor.run()
    if any(process.exitcode == STARTUP_FAILURE for process in supervisor.processes):
        raise EngineError("a worker could not start; its line above says why")


def _create_in_worker(settings: Settings) -> FastAPI:
    set_up_logs(as_json=settings.log_json)
    PatientProtocol.patience_s = settings.body_timeout_s
    try:
        return create_app(settings)
    except MimError as error:
        _LOG.error("%s", error)
        sys.exit(STARTUP_FAILURE)


def _config(settings: Settings, app: Any) -> uvicorn.Config:
    PatientProtocol.patience_s = settings.body_timeout_s
    return uvicorn.Config(
        app,
        factory=not isinstance(app, FastAPI),
        host=settings.host,
        port=settings.port,
        workers=settings.workers,
        http=PatientProtocol,
        ws="none",
        lifespan="on",
        limit_concurrency=settings.max_connections,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_CANCEL_S,
        server_header=False,
        access_log=False,
        log_config=None,
    )


def set_up_logs(*, as_json: bool) -> None:
    """Send the log to stderr; with `as_json`, one JSON line per request too."""
    logging.basicConfig(level=logging.INFO, format="%(asctime)s %(levelname)s %(message)s", stream=sys.stderr)
    logging.getLogger("uvicorn.error").setLevel(logging.WARNING)
    access = logging.getLogger("mimexport.access")
    access.setLevel(logging.INFO if as_json else logging.WARNING)
    access.propagate = False
    if as_json and not access.handlers:
        access.addHandler(logging.StreamHandler(sys.stderr))
