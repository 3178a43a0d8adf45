"""Measure kinds of index on many vectors: neighbours found, time of a query, bytes, time to build.

mimexport embed artifacts/mae-tiny-topk photos/ --out vectors/
python tools/bench_index.py vectors/ --count 300000
"""

from __future__ import annotations

import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import click
import faiss
import numpy as np

from mimruntime.search.index import lists_for
from mimruntime.search.stored import read_stored

QUERIES, NEIGHBOURS = 500, 10
EFFORTS = {"IVF": (64, 32, 16, 8, 4), "HNSW": (64, 128, 256, 512)}
"""What a search visits: so many-th part of the lists; so many candidates."""


@click.command()
@click.argument("vectors", type=click.Path(path_type=Path, exists=True))
@click.option(
    "--count", default=300_000, help="How many vectors; beyond those there are, neighbours of them are drawn."
)
@click.option("--kind", "kinds", type=click.Choice(list(EFFORTS)), multiple=True, default=list(EFFORTS))
@click.option("--links", default=32, help="Links of a vector in HNSW.")
def main(vectors: Path, count: int, kinds: tuple[str, ...], links: int) -> None:
    """Print a row for each kind of index and effort, on what `mimexport embed` wrote into VECTORS."""
    faiss.omp_set_num_threads(1)
    rng = np.random.default_rng(0)
    real = rng.permutation(read_stored(vectors).vectors.astype(np.float32))
    queries, base = real[:QUERIES], real[QUERIES:]
    base = np.concatenate([base, draw(base, count - len(base), rng)])[:count]
    click.echo(f"{count:,} vectors of {base.shape[1]} numbers, {min(count, len(real) - QUERIES):,} of images")
    flat = faiss.IndexFlatIP(base.shape[1])
    flat.add(base)
    exact = report("flat", flat, queries, None)
    if "IVF" in kinds:
        lists = lists_for(count)
        for share, index in built(
            faiss.index_factory(base.shape[1], f"IVF{lists},Flat", faiss.METRIC_INNER_PRODUCT), base
        ):
            index.nprobe = max(1, lists // share)
            report(f"IVF, 1/{share} of {lists} lists", index, queries, exact)
    if "HNSW" in kinds:
        for effort, index in built(faiss.IndexHNSWFlat(base.shape[1], links, faiss.METRIC_INNER_PRODUCT), base):
            index.hnsw.efSearch = effort
            report(f"HNSW, {links} links, {effort} candidates", index, queries, exact)


def draw(base: np.ndarray, count: int, rng: np.random.Generator) -> np.ndarray:
    """Return vectors (count, D), each as near to one of `base` (n, D) as the nearest neighbour there is in the median."""
    if count <= 0:
        return base[:0]
    flat = faiss.IndexFlatIP(base.shape[1])
    flat.add(base)
    nearest = float(np.median(flat.search(base[:QUERIES], 2)[0][:, 1]))
    drawn = np.empty((count, base.shape[1]), np.float32)
    for start in range(0, count, 10_000):
        sources = base[rng.integers(len(base), size=min(10_000, count - start))]
        steps = rng.standard_normal(sources.shape, np.float32) * base.std(axis=0)
        steps -= (steps * sources).sum(axis=1, keepdims=True) * sources
        steps /= np.linalg.norm(steps, axis=1, keepdims=True)
        drawn[start : start + len(sources)] = nearest * sources + np.sqrt(1 - nearest**2) * steps
    return drawn


def built(index: Any, base: np.ndarray) -> Iterator[tuple[int, Any]]:
    """Build an index, print what that takes, and yield it once for each effort."""
    began = time.perf_counter()
    if not index.is_trained:
        index.cp.max_points_per_centroid = 64
        index.train(base)
    index.add(base)
    kind = "IVF" if isinstance(index, faiss.IndexIVF) else "HNSW"
    size = faiss.serialize_index(index).nbytes / len(base)
    click.echo(f"| {kind}: built in {time.perf_counter() - began:.0f} s, {size:,.0f} bytes a vector | | |")
    for effort in EFFORTS[kind]:
        yield effort, index


def report(name: str, index: Any, queries: np.ndarray, exact: np.ndarray | None) -> np.ndarray:
    """Print what an index finds, and how fast, a query at a time; return the rows it found, (q, 10)."""
    found, taken = [], []
    for query in queries:
        began = time.perf_counter()
        found.append(index.search(query[None], NEIGHBOURS)[1][0])
        taken.append(1000 * (time.perf_counter() - began))
    rows = np.stack(found)
    recall = (
        1.0 if exact is None else np.mean([np.isin(row, best).mean() for row, best in zip(rows, exact, strict=True)])
    )
    click.echo(f"| {name} | {np.median(taken):.2f} ms | {100 * recall:.1f} % |")
    return rows


if __name__ == "__main__":
    main()
