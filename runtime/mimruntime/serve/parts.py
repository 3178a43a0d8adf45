"""The parts that all protocols of the service share, one of each per process."""

from __future__ import annotations

import contextlib
import importlib.metadata
import logging
from collections.abc import Sequence
from dataclasses import dataclass

from mimruntime.cpus import decoding_threads
from mimruntime.decoding.budget import MemoryBudget
from mimruntime.serve.admission.buffer import Buffer
from mimruntime.serve.admission.keys import Keys
from mimruntime.serve.admission.lifecycle import Lifecycle
from mimruntime.serve.execution.decoders import Decoders
from mimruntime.serve.execution.model import Model
from mimruntime.serve.execution.models import Models
from mimruntime.serve.execution.opening import open_embedders
from mimruntime.serve.metrics import Metrics
from mimruntime.serve.settings import Settings

_LOG = logging.getLogger("mimexport")


@dataclass(frozen=True, slots=True)
class Parts:
    """Opened artifacts, with the admission and metrics of their requests."""

    settings: Settings
    version: str
    models: Models
    decoders: Decoders
    keys: Keys
    lifecycle: Lifecycle
    buffer: Buffer
    metrics: Metrics

    def start(self) -> None:
        """Warm up the engines and install signal handlers; called in the event loop."""
        self.lifecycle.install()
        self.keys.install()
        for model in self.models:
            model.executor.start()

    def stop(self) -> None:
        """Stop the threads; the process ends after them."""
        self.decoders.close()
        for model in self.models:
            model.executor.stop()
        _LOG.info("stopped")


def open_parts(settings: Settings, spaces: Sequence[str] | None) -> Parts:
    """Open all artifacts, or none if one fails; see `mimruntime.serve.app.create_app`."""
    version = importlib.metadata.version("mimexport")
    metrics = Metrics(version)
    keys = Keys(settings.api_keys, settings.api_key_file)
    decoders = Decoders(settings.decode_threads or decoding_threads())
    budget = MemoryBudget(settings.max_decode_mb)
    with contextlib.ExitStack() as on_error:
        embedders = open_embedders(settings, on_error, spaces)
        models = Models(Model(name, embedder, settings, metrics, decoders, budget) for name, embedder in embedders)
        on_error.pop_all()
    lifecycle, buffer = Lifecycle(settings.grace_s), Buffer(settings.max_buffered)
    return Parts(settings, version, models, decoders, keys, lifecycle, buffer, metrics)
