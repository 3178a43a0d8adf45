"""The process, or the processes, around the application."""

from __future__ import annotations

import dataclasses
import logging
import signal
import socket
import sys
from functools import partial
from typing import Any

import uvicorn
from fastapi import FastAPI

from mimruntime.artifact import Artifact
from mimruntime.errors import OptionError
from mimruntime.serve.admission.connection import TimeoutProtocol, limit_connections
from mimruntime.serve.admission.descriptors import fit_connections
from mimruntime.serve.app import create_app
from mimruntime.serve.logs import set_up_logs
from mimruntime.serve.settings import Settings
from mimruntime.serve.tls import check_certificate
from mimruntime.serve.workers import create_in_worker, run_workers

_LOG = logging.getLogger("mimexport")
_CANCEL_S = 1
"""For what is still open once draining has had its time; uvicorn cancels it then."""
_KEEP_ALIVE_S = 75
"""Longer than load balancers keep an idle connection (60 s), which would else send into one that is just being closed."""

_BACKLOG = 128
"""Connections that wait to be taken; so many are taken at once, before any is counted."""


class _Server(uvicorn.Server):
    """A server that says where it listens, once it does."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        try:
            await super().startup(sockets)
        except OSError as error:  # another began to listen while the engine was opened
            raise _cannot_listen(self.config.host, self.config.port, error) from error
        for server in self.servers:
            for listener in server.sockets:
                _LOG.info("listening on %s", _url(self.config, listener))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn leaves this out then; the engines are to be closed all the same
            await self.lifespan.shutdown()


def _url(config: uvicorn.Config, listener: Any) -> str:
    name = f"[{config.host}]" if ":" in config.host else config.host
    return f"{'https' if config.is_ssl else 'http'}://{name}:{listener.getsockname()[1]}"


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C; what was accepted is answered first.

    Raises:
        MimError: an artifact or engine that cannot be opened, or an address that is taken.
        KeyboardInterrupt: after Ctrl-C, once the service has stopped.
        SystemExit: after SIGTERM, likewise, with 0.

    """
    set_up_logs(as_json=settings.log_json)
    check_certificate(settings.tls_cert, settings.tls_key)
    if settings.grpc_port is not None:
        for probe in _bind(settings.host, settings.grpc_port, option="--grpc-port"):
            probe.close()
    settings = dataclasses.replace(settings, max_connections=fit_connections(settings.max_connections))
    # uvicorn raises a signal again once it has stopped; the work is done then.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if settings.workers > 1:
        _serve_with_workers(settings)
        return
    listeners = _bind(settings.host, settings.port)
    _Server(_config(settings, create_app(settings))).run(listeners)


def _bind(host: str, port: int, option: str = "--port") -> list[socket.socket]:
    """Return a socket for every address of `host`, bound before an engine is opened in vain; nobody is let in yet."""
    bound = []
    try:
        for family, kind, protocol, _, address in socket.getaddrinfo(
            host or None, port, type=socket.SOCK_STREAM, flags=socket.AI_PASSIVE
        ):
            listener = socket.socket(family, kind, protocol)
            bound.append(listener)
            listener.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            if family == socket.AF_INET6:
                listener.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
            listener.bind(address)
            listener.set_inheritable(True)
    except OSError as error:
        for listener in bound:
            listener.close()
        raise _cannot_listen(host, port, error, option) from error
    return bound


def _cannot_listen(host: str, port: int, error: OSError, option: str = "--port") -> OptionError:
    return OptionError(
        f"cannot listen on {host}:{port} ({error.strerror}); stop what does, or give another --host or {option}"
    )


def _serve_with_workers(settings: Settings) -> None:
    """Start the processes, and start again whichever ends."""
    spaces = [Artifact.open(served.folder).manifest.embedding_space for served in settings.artifacts]
    listeners = _bind(settings.host, settings.port)
    config = _config(settings, partial(create_in_worker, settings, spaces))
    for listener in listeners:
        _LOG.info("%d workers start, to listen on %s", settings.workers, _url(config, listener))
    run_workers(config, listeners, settings.grace_s)


def _config(settings: Settings, app: Any) -> uvicorn.Config:
    limit_connections(settings)
    return uvicorn.Config(
        app,
        factory=not isinstance(app, FastAPI),
        host=settings.host,
        port=settings.port,
        ssl_certfile=settings.tls_cert,
        ssl_keyfile=settings.tls_key,
        workers=settings.workers,
        http=TimeoutProtocol,
        ws="none",
        lifespan="on",
        backlog=_BACKLOG,
        timeout_keep_alive=_KEEP_ALIVE_S,
        timeout_graceful_shutdown=_CANCEL_S,
        server_header=False,
        proxy_headers=bool(settings.trusted_proxies),
        forwarded_allow_ips=list(settings.trusted_proxies),
        access_log=False,
        log_config=None,
    )
