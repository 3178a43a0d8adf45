"""Run an attack: a service with resource limits, clients, and a monitor."""

from __future__ import annotations

import multiprocessing
import time
from collections.abc import Callable
from concurrent.futures import ProcessPoolExecutor, as_completed
from functools import partial
from pathlib import Path

import service

from attack.client import Client, Tally
from attack.replay import explain
from attack.targets import photographs, read_target
from attack.verdict import Figures, broken_promises
from attack.watch import MB, Watch, descriptors, settle

_BLOCK = 250
_WARM_UP = 300
_LIMITED = """
import os, resource
resource.setrlimit(resource.RLIMIT_AS, ({memory}, {memory}))
resource.setrlimit(resource.RLIMIT_NOFILE, ({files}, {files}))
os.sched_setaffinity(0, sorted(os.sched_getaffinity(0))[:{cpus}])
"""
_OPTIONS = (
    "--engine", "onnxruntime", "--max-body-mb", 4, "--max-buffered-mb", 64, "--max-decode-mb", 256, "--body-timeout", 5,
    "--deadline", 20, "--max-queue", 12,
)  # fmt: skip


def attack(
    artifact: Path, requests: int, *, first: int, hostile: float, clients: int, seed: int, memory_mb: int, files: int,
    cpus: int, out: Path,
) -> tuple[Figures, list[str]]:  # fmt: skip
    """Run one attack; return its figures and the broken promises."""
    target = read_target(artifact, photographs())
    limits = _LIMITED.format(memory=memory_mb * MB, files=files, cpus=cpus)
    log = out / "service.log"
    with service.running(artifact, *_OPTIONS, log=log, program=limits + service.START) as served:
        Client(served.port, target, seed, 0.0).run(range(_WARM_UP))
        figures = Figures(
            requests, hostile, descriptors_start=descriptors(served), memory_start=served.resident_bytes()
        )
        figures.metrics_start = len(served.call("/metrics").body)
        watch = Watch(served)
        _send(figures, _blocks(first, requests), partial(Client, served.port, target, seed, hostile), clients, watch)
        figures.seen = watch.stop()
        if served.process.poll() is None:
            _look_back(figures, served)
            found = explain(figures.tally.findings, served.port, target, seed, hostile, out)
        else:
            found = [f"the service ended with {served.process.returncode}: see {log}"]
    figures.log = log.read_text(errors="replace")
    return figures, found + broken_promises(figures)


def _send(figures: Figures, blocks: list[range], make: Callable[[], Client], clients: int, watch: Watch) -> None:
    """Let the clients send all blocks of requests, and count the results."""
    started = time.monotonic()
    with ProcessPoolExecutor(clients, multiprocessing.get_context("spawn")) as pool:
        watch.start()
        for done in as_completed([pool.submit(_run, make, block) for block in blocks]):
            figures.tally.add(done.result())
            figures.seconds = time.monotonic() - started
            _show_progress(figures)


def _look_back(figures: Figures, served: service.Service) -> None:
    """Record memory, descriptors and metrics after all clients have ended."""
    figures.memory_peak = served.resident_bytes(peak=True)
    figures.descriptors_end = settle(lambda: descriptors(served), figures.descriptors_start + 1)
    figures.memory_end = settle(served.resident_bytes, figures.memory_start + 50 * MB, 15)
    figures.metrics_end = len(served.call("/metrics").body)


def _blocks(first: int, requests: int) -> list[range]:
    numbers = range(first, first + requests)
    return [numbers[start : start + _BLOCK] for start in range(0, requests, _BLOCK)]


def _run(make: Callable[[], Client], numbers: range) -> Tally:
    return make().run(numbers)


def _show_progress(figures: Figures) -> None:
    done, found = sum(figures.tally.counts.values()), len(figures.tally.findings)
    end = "\n" if done % 5_000 == 0 else ""
    print(f"\r{done:,} requests, {done / figures.seconds:.0f}/s, {found} findings", end=end, flush=True)
