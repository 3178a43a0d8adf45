"""Run the application in one process or in several workers."""

from __future__ import annotations

import dataclasses
import logging
import signal
import sys
from functools import partial

from mimruntime.artifact import Artifact
from mimruntime.serve.admission.descriptors import fit_connections
from mimruntime.serve.app import create_app
from mimruntime.serve.listening import Server, bind, make_config, url_of
from mimruntime.serve.logs import set_up_logs
from mimruntime.serve.settings import Settings
from mimruntime.serve.tls import check_certificate
from mimruntime.serve.workers import create_in_worker, run_workers

_LOG = logging.getLogger("mimexport")


def serve(settings: Settings) -> None:
    """Serve until SIGTERM or Ctrl-C; accepted requests are answered first.

    Raises:
        MimError: an artifact or engine cannot be opened, or the address is taken.
        KeyboardInterrupt: after Ctrl-C, once the service has stopped.
        SystemExit: with status 0 after SIGTERM, once the service has stopped.

    """
    set_up_logs(as_json=settings.log_json)
    check_certificate(settings.tls_cert, settings.tls_key)
    if settings.grpc_port is not None:
        for probe in bind(settings.host, settings.grpc_port, option="--grpc-port"):
            probe.close()
    protocols = 1 if settings.grpc_port is None else 2
    connections = fit_connections(settings.max_connections, protocols)
    settings = dataclasses.replace(settings, max_connections=connections)
    # After it has stopped, uvicorn raises the signal again; nothing is left to do then.
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(0))
    if settings.workers > 1:
        _serve_with_workers(settings)
        return
    listeners = bind(settings.host, settings.port)
    Server(make_config(settings, create_app(settings))).run(listeners)


def _serve_with_workers(settings: Settings) -> None:
    """Start the workers, and restart those that end."""
    spaces = [Artifact.open(served.folder).manifest.embedding_space for served in settings.artifacts]
    listeners = bind(settings.host, settings.port)
    config = make_config(settings, partial(create_in_worker, settings, spaces))
    for listener in listeners:
        _LOG.info("%d workers start, to listen on %s", settings.workers, url_of(config, listener))
    run_workers(config, listeners, settings.grace_s)
