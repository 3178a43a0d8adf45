"""Measure decoding and resizing: ms per photograph with Pillow and with `mimexport[fast]`, with threads, and the GIL's share.

python tools/bench_decode.py [FOLDER|ZIP] [--seconds 2]
"""

from __future__ import annotations

import itertools
import statistics
import sys
import threading
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from unittest.mock import patch

import click
from photographs import encoded, load

from mimruntime import resampling
from mimruntime.cpus import describe_cpu
from mimruntime.decoding import turbo
from mimruntime.decoding.budget import MemoryBudget
from mimruntime.manifest import Preprocess
from mimruntime.preparation import prepare

SPEC = Preprocess(size=224, resize=248, mode="shortest", interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
EDGES = {"500 px": 500, "12 MP": 4000}
KINDS = {"JPEG": {"quality": 90}, "PNG": {"compress_level": 6}, "WEBP": {"quality": 90}}
PAIRS = 5
SWITCH_S = 1e-4
"""Thread switch interval in seconds; short, so that the spinning thread releases the GIL."""


@contextmanager
def pillow_alone() -> Iterator[None]:
    """Disable both libraries in the block."""
    with patch.object(turbo, "library", lambda: None), patch.object(resampling, "library", lambda: None):
        yield


def rate(files: Sequence[bytes], threads: int, seconds: float) -> float:
    """Return images/s with this number of threads."""
    budget, upcoming = MemoryBudget(), itertools.cycle(files)
    end = time.perf_counter() + seconds

    def work() -> int:
        done = 0
        while time.perf_counter() < end:
            prepare(next(upcoming), SPEC, budget)
            done += 1
        return done

    started = time.perf_counter()
    with ThreadPoolExecutor(threads) as pool:
        done = sum(future.result() for future in [pool.submit(work) for _ in range(threads)])
    return done / (time.perf_counter() - started)


def in_turn(files: Sequence[bytes], threads: int, seconds: float) -> tuple[float, float]:
    """Return images/s with Pillow alone and with both libraries, medians of alternating pairs."""
    pairs = []
    for _ in range(PAIRS):
        with pillow_alone():
            before = rate(files, threads, seconds / PAIRS)
        pairs.append((before, rate(files, threads, seconds / PAIRS)))
    before, after = (statistics.median(column) for column in zip(*pairs, strict=True))
    return before, after


def lock_ms(files: Sequence[bytes], seconds: float) -> float:
    """Return the ms per image for which decoding holds the GIL, measured by the slowdown of a counting thread."""
    counted, stopping = 0, threading.Event()

    def count() -> None:
        nonlocal counted
        while not stopping.is_set():
            counted += 1

    interval = sys.getswitchinterval()
    sys.setswitchinterval(SWITCH_S)
    thread = threading.Thread(target=count)
    thread.start()
    try:
        time.sleep(seconds / 4)
        first, started = counted, time.perf_counter()
        time.sleep(seconds / 2)
        alone = (counted - first) / (time.perf_counter() - started)
        first, started, images = counted, time.perf_counter(), 0
        budget, upcoming = MemoryBudget(), itertools.cycle(files)
        while (spent := time.perf_counter() - started) < seconds:
            prepare(next(upcoming), SPEC, budget)
            images += 1
        beside = (counted - first) / spent
    finally:
        stopping.set()
        thread.join()
        sys.setswitchinterval(interval)
    return 1000 * max(0.0, 1 - beside / alone) * spent / images


@click.command()
@click.argument("place", type=click.Path(exists=True, path_type=Path), required=False)
@click.option("--seconds", default=2.0, show_default=True, help="For every figure.")
def main(place: Path | None, seconds: float) -> None:
    """Print three tables."""
    pictures = load(place, 16)
    print(f"{describe_cpu()}; {len(pictures)} photographs to {SPEC.size} px; medians of {PAIRS} pairs in turn\n")
    print("| photographs | Pillow alone, ms | fast, ms | times |\n|---|---|---|---|")
    files = {
        (name, kind): [encoded(picture, edge, kind, **options) for picture in pictures[: 16 if edge < 1000 else 3]]
        for name, edge in EDGES.items()
        for kind, options in KINDS.items()
    }
    for (name, kind), encoded_files in files.items():
        before, after = in_turn(encoded_files, 1, seconds)
        print(f"| {name} {kind} | {1000 / before:.2f} | {1000 / after:.2f} | {after / before:.2f} |", flush=True)
    print("\n| JPEG, threads | Pillow alone, images/s | fast, images/s |\n|---|---|---|")
    for name, threads in itertools.product(EDGES, (1, 2)):
        before, after = in_turn(files[name, "JPEG"], threads, seconds)
        print(f"| {name}, {threads} | {before:.1f} | {after:.1f} |", flush=True)
    print("\n| JPEG | Python's lock, ms an image | share of one thread's time |\n|---|---|---|")
    for name in EDGES:
        held, one = lock_ms(files[name, "JPEG"], seconds), rate(files[name, "JPEG"], 1, seconds)
        print(f"| {name}, fast | {held:.3f} | {100 * held * one / 1000:.1f} % |", flush=True)


if __name__ == "__main__":
    main()
