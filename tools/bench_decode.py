"""Measure decoding and resizing: CPU ms with Pillow alone and with `mimexport[fast]`, threads, the GIL, processes.

python tools/bench_decode.py [FOLDER|ZIP] [--seconds 2]
"""

from __future__ import annotations

import itertools
import statistics
import time
from collections.abc import Callable, Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from unittest.mock import patch

import click
import numpy as np
from photographs import encoded, load

from mimruntime import resampling
from mimruntime.cpus import describe_cpu
from mimruntime.decoder_processes.pool import AT_ONCE, DecoderProcesses
from mimruntime.decoding import turbo
from mimruntime.decoding.budget import MemoryBudget
from mimruntime.manifest import Preprocess
from mimruntime.preparation import prepare

SPEC = Preprocess(size=224, resize=248, mode="shortest", interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)
EDGES = {"500 px": 500, "12 MP": 4000}
KINDS = {"JPEG": {"quality": 90}, "PNG": {"compress_level": 6}, "WEBP": {"quality": 90}}
PAIRS = 5


@contextmanager
def pillow_alone() -> Iterator[None]:
    """Leave both libraries out."""
    with patch.object(turbo, "library", lambda: None), patch.object(resampling, "library", lambda: None):
        yield


def rate(files: Sequence[bytes], threads: int, seconds: float) -> float:
    """Return images/s of so many threads."""
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


def cpu_ms(files: Sequence[bytes], _: int, seconds: float) -> float:
    """Return ms of one CPU for an image; what the machine does besides hardly counts."""
    budget, images = MemoryBudget(), 0
    started = time.process_time()
    while (spent := time.process_time() - started) < seconds or images % len(files):
        prepare(files[images % len(files)], SPEC, budget)
        images += 1
    return 1000 * spent / images


def in_turn(
    measure: Callable[[Sequence[bytes], int, float], float], files: Sequence[bytes], threads: int, seconds: float
) -> tuple[float, float]:
    """Return what `measure` finds with Pillow alone and with both libraries, medians of pairs."""
    pairs = []
    for _ in range(PAIRS):
        with pillow_alone():
            before = measure(files, threads, seconds / PAIRS)
        pairs.append((before, measure(files, threads, seconds / PAIRS)))
    before, after = (statistics.median(column) for column in zip(*pairs, strict=True))
    return before, after


@contextmanager
def timed_calls() -> Iterator[list[float]]:
    """Add up, in a list of one, CPU seconds in the two calls that do the work, and that release the GIL."""
    spent = [0.0]

    def timed(call: Callable[..., object]) -> Callable[..., object]:
        def wrapped(*given: object, **named: object) -> object:
            started = time.thread_time()
            try:
                return call(*given, **named)
            finally:
                spent[0] += time.thread_time() - started

        return wrapped

    jpeg = SimpleNamespace(decode_jpeg=timed(turbo.library().decode_jpeg))
    resizer = resampling.library().resize.RustResizer
    with (
        patch.object(turbo, "library", lambda: jpeg),
        patch.object(
            resampling.library().resize, "RustResizer", lambda: SimpleNamespace(resize_pil=timed(resizer().resize_pil))
        ),
    ):
        yield spent


def outside(files: Sequence[bytes], seconds: float) -> tuple[float, float]:
    """Return CPU ms of an image outside of these calls, and their share: the GIL is held no longer than that."""
    with timed_calls() as spent:
        cpu_ms(files, 1, seconds / 4)
        spent[0], started = 0.0, time.process_time()
        images = round(1000 * seconds / cpu_ms(files, 1, seconds))
        whole = time.process_time() - started
    return 1000 * (whole - spent[0]) / images, 1 - spent[0] / whole


def by_processes(files: Sequence[bytes], count: int, seconds: float) -> tuple[float, float]:
    """Return images/s of so many decoding processes, and CPU ms an image of this process, of which the GIL is a part."""
    opened = DecoderProcesses(count, SPEC, MemoryBudget())
    try:
        rows = opened.allocate((count, AT_ONCE, SPEC.size, SPEC.size, 3))

        def work(own: np.ndarray, until: float) -> int:
            upcoming, done = itertools.cycle(files), 0
            while time.perf_counter() < until:
                opened.prepare(list(itertools.islice(upcoming, AT_ONCE)), own)
                done += AT_ONCE
            return done

        def round_of(length: float) -> tuple[float, float]:
            began, spent = time.perf_counter(), time.process_time()
            with ThreadPoolExecutor(count) as pool:
                done = sum(pool.map(work, rows, [began + length] * count))
            return done / (time.perf_counter() - began), 1000 * (time.process_time() - spent) / done

        round_of(seconds / 4)  # until every process has its libraries
        rates, ms = zip(*(round_of(seconds / PAIRS) for _ in range(PAIRS)), strict=True)
        return statistics.median(rates), statistics.median(ms)
    finally:
        opened.close()


@click.command()
@click.argument("place", type=click.Path(exists=True, path_type=Path), required=False)
@click.option("--seconds", default=2.0, show_default=True, help="For every figure.")
def main(place: Path | None, seconds: float) -> None:
    """Print four tables."""
    pictures = load(place, 16)
    print(f"{describe_cpu()}; {len(pictures)} photographs to {SPEC.size} px; medians of {PAIRS} pairs in turn\n")
    print("| photographs | Pillow alone, CPU ms | fast, CPU ms | times |\n|---|---|---|---|")
    files = {
        (name, kind): [encoded(picture, edge, kind, **options) for picture in pictures[: 16 if edge < 1000 else 3]]
        for name, edge in EDGES.items()
        for kind, options in KINDS.items()
    }
    for (name, kind), encoded_files in files.items():
        before, after = in_turn(cpu_ms, encoded_files, 1, seconds)
        print(f"| {name} {kind} | {before:.2f} | {after:.2f} | {before / after:.2f} |", flush=True)
    print("\n| JPEG, threads | Pillow alone, images/s | fast, images/s |\n|---|---|---|")
    for name, threads in itertools.product(EDGES, (1, 2)):
        before, after = in_turn(rate, files[name, "JPEG"], threads, seconds)
        print(f"| {name}, {threads} | {before:.1f} | {after:.1f} |", flush=True)
    print("\n| JPEG, fast | outside of the libraries' calls, CPU ms an image | share |\n|---|---|---|")
    for name in EDGES:
        rest, share = outside(files[name, "JPEG"], seconds)
        print(f"| {name} | {rest:.3f} | {share:.1%} |", flush=True)
    print("\n| JPEG, fast, processes | images/s | CPU ms an image in the process that waits |\n|---|---|---|")
    for name, count in itertools.product(EDGES, (1, 2)):
        images_s, ms = by_processes(files[name, "JPEG"], count, seconds)
        print(f"| {name}, {count} | {images_s:.1f} | {ms:.3f} |", flush=True)


if __name__ == "__main__":
    main()
