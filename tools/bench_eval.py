"""Measure the cost of the evaluation by number of images: seconds and peak memory, each size in a new process.

python tools/bench_eval.py
"""

from __future__ import annotations

import json
import resource
import subprocess
import sys
import time
from collections.abc import Callable

import click
import numpy as np

from mimeval import knn
from mimeval.statistics import judge_gain, mean_interval

DIM, CLASSES, QUERIES, RESAMPLES = 768, 1000, 10_000, 10_000
GALLERIES = (12_500, 25_000, 50_000, 100_000)
IMAGES = (1_250, 2_500, 5_000, 10_000)
_MIB = 1 << 10
"""Unit of `ru_maxrss` on Linux: KiB."""


@click.command()
@click.option("--only", nargs=2, type=(str, int), help="Print one measurement (name, size) as JSON.  [default: all]")
def main(only: tuple[str, int] | None) -> None:
    """Print a table."""
    if only:
        name, size = only
        click.echo(json.dumps(measure(WORK[name](size))))
        return
    click.echo(
        "| what | images | seconds | CPU seconds | peak memory beside the features, MiB |\n|---|---|---|---|---|"
    )
    for name in WORK:
        for size in GALLERIES if name.startswith("k-NN") else IMAGES:
            command = [sys.executable, __file__, "--only", name, str(size)]
            found = json.loads(subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True).stdout)
            click.echo(f"| {name} | {size:,} | {found['seconds']:.1f} | {found['cpu']:.1f} | {found['memory']:.0f} |")


def measure(work: Callable[[], object]) -> dict[str, float]:
    """Return the seconds of `work`, its CPU seconds, and the growth of the process's peak memory in MiB."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    started, busy = time.perf_counter(), time.process_time()
    work()
    seconds, cpu = time.perf_counter() - started, time.process_time() - busy
    peak = resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return {"seconds": seconds, "cpu": cpu, "memory": (peak - before) / _MIB}


def _knn(size: int) -> Callable[[], object]:
    rng = np.random.default_rng(0)
    gallery, queries = (rng.standard_normal((count, DIM), np.float32) for count in (size, QUERIES))
    labels = rng.integers(0, CLASSES, size)
    return lambda: knn.predict(gallery, labels, queries)


def _bootstrap(size: int) -> Callable[[], object]:
    """Average precisions: all scores are distinct, the most expensive case."""
    scores = np.random.default_rng(0).random(size)
    return lambda: mean_interval(scores)


def _gain_of_labels(size: int) -> Callable[[], object]:
    right = np.random.default_rng(0).random((4, size)) < 0.5
    return lambda: judge_gain(*right)


def _gain_of_precisions(size: int) -> Callable[[], object]:
    scores = np.random.default_rng(0).random((4, size))
    return lambda: judge_gain(*scores)


WORK: dict[str, Callable[[int], Callable[[], object]]] = {
    f"k-NN of {QUERIES:,} queries, {DIM} wide": _knn,
    f"bootstrap, {RESAMPLES:,} resamples of any scores": _bootstrap,
    "gate of right and wrong": _gain_of_labels,
    "gate of average precisions": _gain_of_precisions,
}


if __name__ == "__main__":
    main()
