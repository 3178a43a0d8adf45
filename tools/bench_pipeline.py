"""How near `Embedder.embed(paths)` comes to what decoding and the engine allow, and whether memory stays flat.

python tools/bench_pipeline.py ARTIFACT [FOLDER|ZIP] [--images 2000] [--flat 20000]
"""

from __future__ import annotations

import itertools
import statistics
import tempfile
import time
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import click
import numpy as np
from photographs import encoded, load

from mimruntime.artifact import Artifact
from mimruntime.bench.child import peak_mib
from mimruntime.cpus import available_cpus, describe_cpu
from mimruntime.decoders import Decode, open_decoders
from mimruntime.decoding.budget import MemoryBudget
from mimruntime.embedder import Embedder
from mimruntime.engines.base import EMBEDDING, Engine
from mimruntime.engines.opening import open_for

EDGE = 500
PAIRS = 5
BATCH = 64


class NoTime(Engine):
    """Gives the same vector for every image at once, so that all that is left is the way to it."""

    name, provider, version, outputs, threads = "none", "cpu", "1", (EMBEDDING,), 1

    def __init__(self, artifact: Artifact) -> None:
        size = artifact.manifest.preprocess.size
        self.pixel_shape = (size, size, 3)
        self._row = np.zeros((1, artifact.manifest.embedding.dim), np.float32)

    def _run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        return {EMBEDDING: np.repeat(self._row, len(pixels), axis=0)}

    def _close(self) -> None:
        pass


def per_second(embedder: Embedder, paths: Sequence[Path]) -> float:
    """Return images/s of `embed`."""
    started = time.perf_counter()
    embedder.embed(paths)
    return len(paths) / (time.perf_counter() - started)


def decoded_per_second(artifact: Artifact, paths: Sequence[Path], count: int, decode: Decode) -> float:
    """Return images/s that so many threads or processes read, decode and resize, and nothing else."""
    spec = artifact.manifest.preprocess
    decoders = open_decoders(decode, spec, MemoryBudget(), workers=count, scaled=False, most_bytes=0)
    rows = decoders.allocate((count, decoders.at_once, spec.size, spec.size, 3))

    def work(own: np.ndarray, upcoming: Iterator[Path]) -> None:
        while some := list(itertools.islice(upcoming, decoders.at_once)):
            decoders.prepare(some, own[: len(some)])

    try:
        with ThreadPoolExecutor(count) as pool:
            for part in (paths[: 20 * count], paths):  # first a few, until every process has its libraries
                started = time.perf_counter()
                list(pool.map(work, rows, [iter(part)] * count))
        return len(paths) / (time.perf_counter() - started)
    finally:
        decoders.close()


def run_per_second(embedder: Embedder, images: int) -> float:
    """Return images/s of the engine alone."""
    batch = embedder.describe().batch_sizes[0]
    size = embedder.artifact.manifest.preprocess.size
    pixels = np.random.default_rng(0).integers(0, 256, (batch, size, size, 3), np.uint8)
    rounds = max(1, images // batch)
    started = time.perf_counter()
    for _ in range(rounds):
        embedder.run(pixels)
    return rounds * batch / (time.perf_counter() - started)


def compare(artifact: Artifact, embedder: Embedder, paths: Sequence[Path], decode: Decode, *, engine: bool) -> None:
    """Print a row: what decoding and the engine allow, and what came, medians of runs in turn."""
    rows = []
    for warm in (True, *[False] * PAIRS):
        one = decoded_per_second(artifact, paths, 1, "threads")
        every = decoded_per_second(artifact, paths, available_cpus(), decode)
        alone = run_per_second(embedder, len(paths) // 2) if engine else float("inf")
        got = per_second(embedder, paths)
        # An engine on the CPU takes turns with decoding, so their seconds add up; elsewhere the slower one counts.
        on_cpu = embedder.describe().provider == "cpu"
        allowed = 1 / (1 / every + 1 / alone) if on_cpu else min(every, alone)
        if not warm:
            rows.append((one, every, alone, allowed, got, got / allowed, got / (available_cpus() * one)))
    *rates, share, of_cpus = (statistics.median(column) for column in zip(*rows, strict=True))
    cells = " | ".join("" if rate == float("inf") else f"{rate:.0f}" for rate in rates)
    name, last = (embedder.describe().engine, "") if engine else ("no time", f"{of_cpus:.3f}")
    print(f"| {name} | {cells} | {share:.3f} | {last} |", flush=True)


@click.command()
@click.argument("artifact_path", type=click.Path(exists=True, path_type=Path))
@click.argument("place", type=click.Path(exists=True, path_type=Path), required=False)
@click.option("--images", default=2000, show_default=True, help="Paths in one call of embed.")
@click.option("--engine", default="onnxruntime", show_default=True, help="The real one.")
@click.option("--provider", help="Its hardware.")
@click.option("--batch-size", type=int, help="Its batch.  [default: as tuned, or 16]")
@click.option("--decode", type=click.Choice(["threads", "processes"]), default="threads", show_default=True)
@click.option(
    "--flat", default=0, show_default=True, help="Embed so many images and print the peak of memory on the way."
)
def main(
    artifact_path: Path, place: Path | None, images: int, engine: str, provider: str | None, batch_size: int | None,
    decode: Decode, flat: int,
) -> None:  # fmt: skip
    """Print a table."""
    artifact = Artifact.open(artifact_path)
    with tempfile.TemporaryDirectory(prefix="mimexport-pipeline-") as folder:
        files = []
        for number, picture in enumerate(load(place, 64)):
            files.append(Path(folder) / f"{number}.jpg")
            files[-1].write_bytes(encoded(picture, EDGE, "JPEG", quality=90))
        paths = list(itertools.islice(itertools.cycle(files), images))
        print(
            f"{describe_cpu()}; {len(files)} photographs of {EDGE} px, {images} paths; medians of {PAIRS} runs in turn\n"
        )
        print(
            f"| engine | one thread decodes, images/s | all {decode} | engine alone | both allow | embed(paths) | share of that"
            " | of one × CPUs |\n" + "|---" * 8 + "|"
        )
        with Embedder(artifact, NoTime(artifact), batch_size=BATCH, decode=decode) as embedder:
            compare(artifact, embedder, paths, decode, engine=False)
        with Embedder(
            artifact, open_for(artifact, engine, provider=provider), batch_size=batch_size, decode=decode
        ) as embedder:
            compare(artifact, embedder, paths, decode, engine=True)
            if flat:
                _print_memory(embedder, files, flat)


def _print_memory(embedder: Embedder, files: Sequence[Path], count: int) -> None:
    print("\n| images | peak memory, MiB |\n|---|---|")
    endless = itertools.islice(itertools.cycle(files), count)
    for number, _ in enumerate(embedder.stream(endless), 1):
        if number % (count // 5) == 0:
            print(f"| {number:,} | {peak_mib():.1f} |", flush=True)


if __name__ == "__main__":
    main()
