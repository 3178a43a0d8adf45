"""Start the worker processes of `--workers`, restart those that end, and stop them within the grace period."""

from __future__ import annotations

import contextlib
import logging
import os
import signal
import socket
import sys
import tempfile
import time
from collections.abc import Sequence

import uvicorn
from fastapi import FastAPI
from uvicorn.config import STARTUP_FAILURE
from uvicorn.supervisors import Multiprocess
from uvicorn.supervisors.multiprocess import Process

from mimruntime.errors import EngineError, MimError
from mimruntime.serve.admission.connection import limit_connections
from mimruntime.serve.app import create_app
from mimruntime.serve.logs import set_up_logs
from mimruntime.serve.metrics import MULTIPROCESS
from mimruntime.serve.settings import Settings

_LOG = logging.getLogger("mimexport")
_RETRY_S = 10.0
_SILENT_S = 60.0
"""Seconds without an answer after which a worker counts as hung; a worker that starts on a busy machine answers late."""
_PING_S = 0.2
_END_S = 6.0
"""Seconds for a worker to end after the grace period."""


def create_in_worker(settings: Settings, spaces: Sequence[str]) -> FastAPI:
    """Return the application of one worker; end the process if that fails.

    Args:
        settings: the service's settings.
        spaces: the embedding spaces of the artifacts when the service started; a worker with others would mix vectors.

    """
    set_up_logs(as_json=settings.log_json)
    limit_connections(settings)
    try:
        return create_app(settings, spaces)
    except MimError as error:
        _LOG.error("%s", error)
        sys.exit(STARTUP_FAILURE)


def run_workers(config: uvicorn.Config, listeners: list[socket.socket], grace_s: float) -> None:
    """Run `config.workers` processes until SIGTERM or Ctrl-C.

    Raises:
        EngineError: a worker could not start, and no other serves.
        KeyboardInterrupt: after Ctrl-C, once they have ended.

    """
    with tempfile.TemporaryDirectory(prefix="mimexport-metrics-") as figures:
        os.environ[MULTIPROCESS] = figures
        supervisor = _Supervisor(config, listeners, grace_s)
        supervisor.run()
    if supervisor.failed:
        raise EngineError("a worker could not start, and no other serves; its line above says why")
    if supervisor.interrupted:
        raise KeyboardInterrupt


class _Supervisor(Multiprocess):
    """uvicorn's supervisor, but a worker that cannot restart does not stop the others, and every wait is bounded."""

    def __init__(self, config: uvicorn.Config, listeners: list[socket.socket], grace_s: float) -> None:
        super().__init__(config, listeners)
        self.failed = False
        self.interrupted = False
        self._grace_s = grace_s
        self._retry_at: dict[int, float] = {}
        self._silent_since: dict[int, float] = {}

    def keep_subprocess_alive(self) -> None:
        """Restart workers that have ended or do not answer."""
        for index, process in enumerate(self.processes):
            if self.should_exit.is_set():
                return
            if index in self._retry_at:
                self._start_again(index)
            elif not self._is_well(index, process):
                self._bury(index, process)

    def _is_well(self, index: int, process: Process) -> bool:
        _drop_old_answers(process)
        if process.ping(_PING_S):
            self._silent_since.pop(index, None)
            return True
        silent_s = time.monotonic() - self._silent_since.setdefault(index, time.monotonic())
        return process.process.is_alive() and silent_s < _SILENT_S

    def _start_again(self, index: int) -> None:
        if time.monotonic() >= self._retry_at[index]:
            del self._retry_at[index]
            self.processes[index] = Process(self.config, self.sockets)
            self.processes[index].start()

    def _bury(self, index: int, process: Process) -> None:
        """End a worker that is dead or hung, and log when it is restarted."""
        process.kill()
        process.join()
        self._silent_since.pop(index, None)
        could_not_start = process.exitcode == STARTUP_FAILURE
        if could_not_start and not any(_is_ready(other) for other in self.processes if other is not process):
            self.failed = True
            self.should_exit.set()
            return
        pause_s = _RETRY_S if could_not_start else 0
        self._retry_at[index] = time.monotonic() + pause_s
        what = "could not start" if could_not_start else f"has ended (exit status {process.exitcode})"
        _LOG.error("worker %s %s; the others keep serving; it restarts in %g s", process.pid, what, pause_s)

    def handle_int(self) -> None:
        """Stop, and record that Ctrl-C was the reason."""
        self.interrupted = True
        super().handle_int()

    def handle_hup(self) -> None:
        """Tell the workers to read their keys again; uvicorn would restart them."""
        for process in self.processes:
            if process.pid is not None and process.exitcode is None:
                os.kill(process.pid, signal.SIGHUP)

    def join_all(self) -> None:
        """Wait for the workers until the grace period is over or Ctrl-C comes again; then kill those that are left."""
        deadline = time.monotonic() + self._grace_s + _END_S
        for worker in (process.process for process in self.processes):
            while worker.is_alive() and time.monotonic() < deadline and signal.SIGINT not in self.signal_queue:
                worker.join(0.1)
            if worker.is_alive():
                _LOG.error("worker %s did not end and is killed", worker.pid)
                worker.kill()
                worker.join()


def _is_ready(process: Process) -> bool:
    _drop_old_answers(process)
    return process.is_ready(1)


def _drop_old_answers(process: Process) -> None:
    """Discard late answers of a worker, which would be taken for the answer to the next ping."""
    with contextlib.suppress(OSError, EOFError):
        while process.parent_conn.poll():
            process.parent_conn.recv()
