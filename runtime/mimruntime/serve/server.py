"""The process, or the processes, around the application."""

from __future__ import annotations

import logging
import os
import signal
import socket
import sys
import tempfile
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess

from mimruntime.artifact import Artifact
from mimruntime.errors import EngineError, MimError
from mimruntime.serve.app import create_app
from mimruntime.serve.metrics import MULTIPROCESS
from mimruntime.serve.protocol import PatientProtocol
from mimruntime.serve.settings import Settings

_LOG = logging.getLogger("mimexport")
_CANCEL_S = 1
"""For what is still open once draining has had its time; uvicorn cancels it then."""
_KEEP_ALIVE_S = 75
"""Longer than load balancers keep an idle connection (60 s), which would else send into one that is just being closed."""


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
