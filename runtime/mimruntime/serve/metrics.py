"""Metrics for Prometheus, with names and units by its conventions."""

from __future__ import annotations

import os
from pathlib import Path

from prometheus_client import (
    CollectorRegistry,
    Counter,
    Gauge,
    Histogram,
    PlatformCollector,
    ProcessCollector,
    generate_latest,
)
from prometheus_client.multiprocess import MultiProcessCollector, mark_process_dead

from mimruntime.results import Description

MULTIPROCESS = "PROMETHEUS_MULTIPROC_DIR"
"""Environment variable of prometheus-client: the folder where workers share their metrics."""

_SECONDS = (0.001, 0.0025, 0.005, 0.01, 0.025, 0.05, 0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30)
_SIZES = (1, 2, 4, 8, 16, 32, 64)


class Metrics:
    """The service's counters, gauges and histograms, in their own registry."""

    def __init__(self, version: str) -> None:
        self._version = version
        registry = self._registry = CollectorRegistry()
        if MULTIPROCESS not in os.environ:
            ProcessCollector(registry=registry)
            PlatformCollector(registry=registry)
        request = ("endpoint", "method")
        self.requests = Counter(
            "mimexport_requests", "Requests answered, by status.", (*request, "status"), registry=registry
        )
        self.failures = Counter(
            "mimexport_failures", "Requests not answered with success.", ("reason",), registry=registry
        )
        self.request_seconds = Histogram(
            "mimexport_request_seconds", "From first byte to answer.", request, registry=registry, buckets=_SECONDS
        )
        model = ("model",)
        self.images = Counter("mimexport_images", "Images embedded.", model, registry=registry)
        self.decode_seconds = Histogram(
            "mimexport_decode_seconds", "Decoding of one image.", model, registry=registry, buckets=_SECONDS
        )
        self.queue_seconds = Histogram(
            "mimexport_queue_seconds",
            "Wait of one decoded image in the queue.",
            model,
            registry=registry,
            buckets=_SECONDS,
        )
        self.inference_seconds = Histogram(
            "mimexport_inference_seconds", "One run of the engine.", model, registry=registry, buckets=_SECONDS
        )
        self.batch_size = Histogram(
            "mimexport_batch_size", "Images of one run.", model, registry=registry, buckets=_SIZES
        )
        self.queue_length = Gauge(
            "mimexport_queue_length", "Decoded images waiting.", model, registry=registry, multiprocess_mode="livesum"
        )
        self.in_flight = Gauge(
            "mimexport_images_in_flight", "Images admitted and not done.", model,
            registry=registry, multiprocess_mode="livesum",
        )  # fmt: skip
        self.ready = Gauge(
            "mimexport_ready", "1 if the model is ready.", model, registry=registry, multiprocess_mode="livemin"
        )
        self.rebuilds = Counter(
            "mimexport_engine_rebuilds", "Number of times the engine was reopened.", model, registry=registry
        )
        self._build = Gauge(
            "mimexport_build_info",
            "What really runs.",
            ("version", "model", "engine", "provider", "precision", "embedding_space"),
            registry=registry,
            multiprocess_mode="livemax",
        )

    def describe(self, about: Description) -> None:
        """Record the engine and precision of one model."""
        self._build.labels(self._version, about.name, about.engine, about.provider, about.precision, about.space).set(1)

    def text(self) -> bytes:
        """Return the metrics of all workers in Prometheus' text format."""
        if MULTIPROCESS not in os.environ:
            return generate_latest(self._registry)
        _forget_dead_workers(Path(os.environ[MULTIPROCESS]))
        together = CollectorRegistry()
        MultiProcessCollector(together)  # type: ignore[no-untyped-call]
        return generate_latest(together)


def _forget_dead_workers(folder: Path) -> None:
    """Remove the gauges of workers that have ended; their counters stay valid."""
    for pid in {int(path.stem.rpartition("_")[2]) for path in folder.glob("gauge_live*.db")}:
        try:
            os.kill(pid, 0)
        except ProcessLookupError:
            mark_process_dead(pid)  # type: ignore[no-untyped-call]
