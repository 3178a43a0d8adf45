"""The HTTP server; its address is bound before an engine is opened."""

from __future__ import annotations

import logging
import socket
from typing import Any

import uvicorn
from fastapi import FastAPI

from mimruntime.errors import OptionError
from mimruntime.serve.admission.connection import TimeoutProtocol, limit_connections
from mimruntime.serve.settings import Settings

_LOG = logging.getLogger("mimexport")
_CANCEL_S = 1
"""Seconds for requests that are still open after draining; then uvicorn cancels them."""
_KEEP_ALIVE_S = 75
"""Longer than load balancers keep an idle connection (60 s); otherwise one could send into a connection that is closing."""
_BACKLOG = 128
"""Connections that wait to be accepted; up to this many are accepted at once, before any is counted."""


class Server(uvicorn.Server):
    """A server that logs its address when it starts to listen."""

    async def startup(self, sockets: list[socket.socket] | None = None) -> None:
        """Start, and log the address."""
        try:
            await super().startup(sockets)
        except OSError as error:  # another process began to listen while the engine was opened
            raise _cannot_listen(self.config.host, self.config.port, error) from error
        for server in self.servers:
            for listener in server.sockets:
                _LOG.info("listening on %s", url_of(self.config, listener))

    async def shutdown(self, sockets: list[socket.socket] | None = None) -> None:
        """Stop, and always close the engines."""
        await super().shutdown(sockets)
        if self.force_exit:  # uvicorn then skips the shutdown of the application, which closes the engines
            await self.lifespan.shutdown()


def url_of(config: uvicorn.Config, listener: Any) -> str:
    """Return the address of a bound socket."""
    name = f"[{config.host}]" if ":" in config.host else config.host
    return f"{'https' if config.is_ssl else 'http'}://{name}:{listener.getsockname()[1]}"


def bind(host: str, port: int, option: str = "--port") -> list[socket.socket]:
    """Return a bound socket for every address of `host`; it does not accept connections yet.

    Args:
        host: name or address.
        port: 0 takes a free one.
        option: the option that sets the port, for the error.

    Raises:
        OptionError: the address is taken, or is not an address of this machine.

    """
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


def make_config(settings: Settings, app: Any) -> uvicorn.Config:
    """Return uvicorn's configuration for `app`, or for the name of a function that each worker calls for its application.

    Also set the limits of this process's connections.
    """
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
        loop="asyncio",  # TimeoutProtocol depends on how it accepts connections; uvicorn would take uvloop if installed
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


def _cannot_listen(host: str, port: int, error: OSError, option: str = "--port") -> OptionError:
    return OptionError(
        f"cannot listen on {host}:{port} ({error.strerror}); stop the other program, or give another --host or {option}"
    )
