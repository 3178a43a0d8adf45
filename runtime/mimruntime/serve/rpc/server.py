"""The gRPC server: its address and the limits of its connections."""

from __future__ import annotations

import contextlib
import logging

import grpc
from grpc import aio

from mimruntime.serve.parts import Parts
from mimruntime.serve.rpc.service import Service
from mimruntime.serve.settings import Settings

_LOG = logging.getLogger("mimexport")
_IDLE_S = 75
_STREAMS = 128
"""Concurrent calls of one connection."""
_METADATA = 16_384
_AHEAD = 65_536
"""Bytes of a message that may arrive before the server reads it."""
_NO_COMPRESSION = 1
"""Allowed compression algorithms as bits: only none, since a compressed message could expand to any size."""


async def start_server(stack: contextlib.AsyncExitStack, parts: Parts) -> None:
    """Listen on the settings' `grpc_port` until `stack` closes; accepted calls have ended by then."""
    settings, service = parts.settings, Service(parts)
    server = aio.server(
        handlers=service.handlers(),
        options=[*_options(settings).items()],
        maximum_concurrent_rpcs=settings.max_connections,
    )
    host = settings.host
    address = f"[{host}]:{settings.grpc_port}" if ":" in host else f"{host or '[::]'}:{settings.grpc_port}"
    if settings.tls_cert is None or settings.tls_key is None:
        port = server.add_insecure_port(address)
    else:
        pair = settings.tls_key.read_bytes(), settings.tls_cert.read_bytes()
        port = server.add_secure_port(address, grpc.ssl_server_credentials([pair]))
    await server.start()
    stack.push_async_callback(server.stop, 0)
    _LOG.info("gRPC on %s:%d", host, port)


def _options(settings: Settings) -> dict[str, int]:
    patience_ms = int(settings.body_timeout_s * 1000)
    return {
        "grpc.max_receive_message_length": settings.max_body,
        # Do not read ahead: data that the server has not asked for stays with the client.
        "grpc.http2.bdp_probe": 0,
        "grpc.http2.lookahead_bytes": _AHEAD,
        "grpc.max_metadata_size": _METADATA,
        "grpc.absolute_max_metadata_size": _METADATA,
        "grpc.max_concurrent_streams": _STREAMS,
        "grpc.max_allowed_incoming_connections": settings.max_connections,
        "grpc.server_handshake_timeout_ms": patience_ms,
        "grpc.max_connection_idle_ms": _IDLE_S * 1000,
        "grpc.keepalive_time_ms": patience_ms,
        "grpc.keepalive_timeout_ms": patience_ms,
        "grpc.compression_enabled_algorithms_bitset": _NO_COMPRESSION,
        # Several workers share the address; a single process must not share it with another program.
        "grpc.so_reuseport": int(settings.workers > 1),
    }
