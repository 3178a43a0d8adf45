"""Measure `mimexport browse` on many images: first neighbours, memory, time of a query, scrolling, a second start.

python tools/bench_browse.py artifacts/mae-tiny-topk ../shared/data/tiny-imagenet-64.zip --images 20000
"""

from __future__ import annotations

import json
import statistics
import tempfile
import time
import urllib.request
import zipfile
from pathlib import Path
from typing import Any

import click
import numpy as np
from browsing import Page, chromium, running_page, wait_for

from mimruntime.artifact import Artifact
from mimruntime.search.cache import VectorCache
from mimruntime.search.index import Index

QUERIES = 50
SCROLL_S = 6
"""Seconds of scrolling without an end, some 4,000 px a second, then of jumps."""
_OBSERVE = """
    window.long = []
    window.frames = []
    new PerformanceObserver((list) => long.push(...list.getEntries().map((each) => each.duration)))
        .observe({ type: 'longtask' })
    let before = performance.now()
    const tick = (now) => { frames.push(now - before); before = now; requestAnimationFrame(tick) }
    requestAnimationFrame(tick)
"""
_SCROLL = """
    const [seconds, jump, done] = arguments
    const wall = document.querySelector('#wall')
    const start = performance.now()
    frames.length = long.length = 0
    const step = (now) => {
        wall.scrollTop = jump ? Math.random() * wall.scrollHeight : wall.scrollTop + 64
        if (now - start < seconds * 1000) requestAnimationFrame(step)
        else done({ frames: frames.slice(1), long })
    }
    requestAnimationFrame(step)
"""


@click.command()
@click.argument("artifact", type=click.Path(path_type=Path, exists=True))
@click.argument("data", type=click.Path(path_type=Path, exists=True))
@click.option("--images", default=20_000, help="How many of the zip's images.")
@click.option("--lists", default=0, help="Also compare two kinds of index on so many drawn vectors; 0: no.")
@click.option(
    "--keep", type=click.Path(path_type=Path), help="Folder for the images and the cache.  [default: temporary]"
)
def main(artifact: Path, data: Path, images: int, lists: int, keep: Path | None) -> None:
    """Print what was measured on so many images of DATA, a zip of CLASS/image."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        unpack(data, folder / "images", images)
        arguments = (artifact, "--images", folder / "images", "--cache", folder / "cache")
        for start in ("first", "second"):
            began = time.perf_counter()
            with running_page(*arguments, log=folder / "log") as page:
                click.echo(f"{start} start")
                measure_start(page, began)
                if start == "second":
                    measure_queries(page, images)
                    measure_scrolling(page)
                click.echo(f"  memory of the process, at most   {page.memory() / 1e6:.0f} MB")
        (kept,) = (folder / "cache" / "search").iterdir()
        dim = Artifact.open(artifact).manifest.embedding.dim
        real = np.stack([one.vector for one in VectorCache(kept, dim).read().values() if one.vector is not None])
        click.echo(f"index of {len(real):,} real vectors")
        measure_lists(real)
    if lists:
        rng = np.random.default_rng(0)
        drawn = rng.standard_normal((5000, dim), np.float32)[rng.integers(5000, size=lists)]
        drawn += rng.standard_normal((lists, dim), np.float32)
        click.echo(f"index of {lists:,} vectors that are drawn around 5,000 centres")
        measure_lists(drawn / np.linalg.norm(drawn, axis=1, keepdims=True))


def measure_lists(vectors: np.ndarray) -> None:
    """Compare the two kinds of index on vectors (n, D)."""
    count, dim = vectors.shape
    queries = vectors[np.random.default_rng(1).integers(count, size=200)]
    found = {}
    for kind, flat_most in (("flat", count), ("IVF", 0)):
        index = Index(dim, count, flat_most=flat_most)
        index.add(range(count), vectors)
        began = time.perf_counter()
        with tempfile.TemporaryDirectory() as folder:
            index.settle(Path(folder), "measured", "measured")
        made = time.perf_counter() - began
        began = time.perf_counter()
        found[kind] = [set(index.nearest(query, 10).numbers.tolist()) for query in queries]
        taken = 1000 * (time.perf_counter() - began) / len(queries)
        click.echo(
            f"  {kind:<5} a query in {taken:.1f} ms" + (f", made and written in {made:.0f} s" if kind == "IVF" else "")
        )
    shared = [len(flat & lists) / 10 for flat, lists in zip(found["flat"], found["IVF"], strict=True)]
    click.echo(f"  IVF finds {100 * statistics.mean(shared):.1f} % of the 10 nearest")


def unpack(data: Path, folder: Path, images: int) -> None:
    """Write the first images of each class of a zip, all classes alike."""
    with zipfile.ZipFile(data) as archive:
        names = sorted(name for name in archive.namelist() if name.startswith("train/") and not name.endswith("/"))
        classes: dict[str, list[str]] = {}
        for name in names:
            classes.setdefault(name.split("/")[1], []).append(name)
        for each in classes.values():
            for name in each[: -(-images // len(classes))]:
                place = folder.joinpath(*name.split("/")[1:])
                if not place.exists():
                    place.parent.mkdir(parents=True, exist_ok=True)
                    place.write_bytes(archive.read(name))


def measure_start(page: Page, began: float) -> None:
    """Wait for the page, for the first neighbours, and for every image to be embedded."""
    click.echo(f"  page served after                {time.perf_counter() - began:.1f} s")
    while not get(page, "/api/neighbours/0?count=10")["columns"][0]["neighbours"]:
        time.sleep(0.02)
    click.echo(f"  first neighbours after           {time.perf_counter() - began:.1f} s")
    while not (state := get(page, "/api/state"))["full"]:
        time.sleep(0.2)
    about = state["artifacts"][0]
    click.echo(f"  all embedded and judged after    {time.perf_counter() - began:.1f} s ({about['embedded']} images)")


def measure_queries(page: Page, images: int) -> None:
    """Ask for neighbours, one after the other."""
    taken = []
    for number in range(0, images, images // QUERIES):
        began = time.perf_counter()
        get(page, f"/api/neighbours/{number}?count=24")
        taken.append(1000 * (time.perf_counter() - began))
    click.echo(
        f"  a query, over HTTP               median {statistics.median(taken):.1f} ms, worst {max(taken):.1f} ms"
    )


def measure_scrolling(page: Page) -> None:
    """Scroll in a real browser: steadily, then by jumps; thumbnails are made meanwhile."""
    with chromium() as driver:
        driver.get(page.url)
        wait_for(driver, "document.querySelectorAll('.wall .tile.loaded').length > 20")
        driver.execute_script(_OBSERVE)
        for kind, jump in (("steadily", False), ("by jumps", True)):
            report_frames(kind, driver.execute_async_script(_SCROLL, SCROLL_S, jump))


def report_frames(kind: str, found: Any) -> None:
    """Print frames and long tasks (over 50 ms) of one way of scrolling."""
    frames, long = sorted(found["frames"]), found["long"]
    click.echo(
        f"  scrolling {kind:<9}              {len(frames) / SCROLL_S:.0f} frames a second, 95 % within"
        f" {frames[int(0.95 * len(frames))]:.0f} ms, {len(long)} long tasks{f', worst {max(long):.0f} ms' if long else ''}"
    )


def get(page: Page, path: str) -> Any:
    """Return what the page's server answers."""
    with urllib.request.urlopen(page.url.rstrip("/") + path) as answer:  # noqa: S310 - the page just started
        return json.load(answer)


if __name__ == "__main__":
    main()
