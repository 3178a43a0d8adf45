"""Measure `mimexport browse` on many images: first neighbours, memory, time of a query, scrolling, a second start.

python tools/bench_browse.py artifacts/mae-tiny-topk ../shared/data/tiny-imagenet-64.zip --images 20000
"""

from __future__ import annotations

import io
import json
import statistics
import subprocess
import sys
import tempfile
import time
import urllib.request
import zipfile
from pathlib import Path, PurePath
from typing import Any

import click
import numpy as np
from browsing import START, Page, chromium, resize, running_page, wait_for
from PIL import Image, ImageOps

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
@click.option("--images", default=20_000, help="How many: those of the zip, then crops of them.")
@click.option("--vectors", is_flag=True, help="Start from shards that `mimexport embed` writes before.")
@click.option(
    "--keep", type=click.Path(path_type=Path), help="Folder for images, shards and cache.  [default: temporary]"
)
def main(artifact: Path, data: Path, images: int, vectors: bool, keep: Path | None) -> None:
    """Print what was measured on so many images of DATA, a zip of CLASS/image."""
    with tempfile.TemporaryDirectory() as temporary:
        folder = keep or Path(temporary)
        unpack(data, folder / "images", images)
        arguments = [artifact, "--images", folder / "images", "--cache", folder / "cache"]
        if vectors:
            write_shards(artifact, folder)
            arguments += ["--vectors", folder / "shards"]
        for start in ("first", "second"):
            began = time.perf_counter()
            with running_page(*arguments, log=folder / "log") as page:
                click.echo(f"{start} start")
                measure_start(page, began)
                if start == "second":
                    measure_queries(page, images)
                    for width, height in ((1280, 800), (390, 780)):
                        measure_scrolling(page, width, height)
                click.echo(f"  memory of the process, at most   {page.memory() / 1e6:.0f} MB")


def write_shards(artifact: Path, folder: Path) -> None:
    """Embed the images into shards; what was embedded before is kept."""
    command = [sys.executable, "-c", START, "embed", artifact, folder / "images", "--out", f"{folder}/shards/"]
    subprocess.run(list(map(str, command)), check=True)


def unpack(data: Path, folder: Path, images: int) -> None:
    """Write so many images of a zip, all classes alike; where a class has too few, crops of its images follow."""
    with zipfile.ZipFile(data) as archive:
        classes: dict[str, list[str]] = {}
        for name in sorted(archive.namelist()):
            if name.startswith(("train/", "val/")) and not name.endswith("/"):
                classes.setdefault(name.split("/")[1], []).append(name)
        for label, names in classes.items():
            place = folder / label
            place.mkdir(parents=True, exist_ok=True)
            for number in range(-(-images // len(classes))):
                source = names[number % len(names)]
                file = place / f"{number:04}-{PurePath(source).name}"
                if not file.exists():
                    content = archive.read(source)
                    file.write_bytes(content if number < len(names) else crop(content, seed=number))


def crop(content: bytes, seed: int) -> bytes:
    """Return a JPEG of 75 to 95 % of an image's edges, as large as the image, half of them mirrored."""
    rng = np.random.default_rng(seed)
    with Image.open(io.BytesIO(content)) as image:
        width, height = image.size
        share, x, y = rng.uniform(0.75, 0.95), rng.uniform(), rng.uniform()
        left, top = x * (1 - share) * width, y * (1 - share) * height
        box = (left, top, left + share * width, top + share * height)
        cut = image.convert("RGB").resize(image.size, Image.Resampling.BICUBIC, box=box)
    stream = io.BytesIO()
    (ImageOps.mirror(cut) if rng.integers(2) else cut).save(stream, "JPEG", quality=90)
    return stream.getvalue()


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


def measure_scrolling(page: Page, width: int, height: int) -> None:
    """Scroll in a real browser of so many px: steadily, then by jumps; thumbnails are made meanwhile."""
    with chromium() as driver:
        resize(driver, width, height, phone=width < 500)
        driver.get(page.url)
        wait_for(driver, "document.querySelectorAll('.wall .tile.loaded').length > 10")
        driver.execute_script(_OBSERVE)
        for kind, jump in (("steadily", False), ("by jumps", True)):
            report_frames(f"{width} px, {kind}", driver.execute_async_script(_SCROLL, SCROLL_S, jump))


def report_frames(kind: str, found: Any) -> None:
    """Print frames and long tasks (over 50 ms) of one way of scrolling."""
    frames, long = sorted(found["frames"]), found["long"]
    click.echo(
        f"  scrolling {kind:<22} {len(frames) / SCROLL_S:.0f} frames a second, 95 % within"
        f" {frames[int(0.95 * len(frames))]:.0f} ms, {len(long)} long tasks{f', worst {max(long):.0f} ms' if long else ''}"
    )


def get(page: Page, path: str) -> Any:
    """Return what the page's server answers."""
    with urllib.request.urlopen(page.url.rstrip("/") + path) as answer:  # noqa: S310 - the page just started
        return json.load(answer)


if __name__ == "__main__":
    main()
