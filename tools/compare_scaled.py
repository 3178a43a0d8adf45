"""Measure `--scaled-decoding`: cosines to the vectors of full decoding, and CPU time, by the scale of the JPEG.

python tools/compare_scaled.py ARTIFACT [FOLDER|ZIP] [--count 200]
"""

from __future__ import annotations

import io
import random
import statistics
import time
from collections import defaultdict
from pathlib import Path

import click
import numpy as np
from photographs import encoded, load
from PIL import Image

from mimruntime import Embedder


def cut(picture: Image.Image, rng: random.Random) -> Image.Image:
    """Return a part of a picture at its own resolution; an enlarged picture has no detail that scaled decoding could lose."""
    width, height = (rng.randint(edge // 2, edge) for edge in picture.size)
    left, top = rng.randint(0, picture.width - width), rng.randint(0, picture.height - height)
    return picture.crop((left, top, left + width, top + height))


def cpu_ms(embedder: Embedder, files: list[bytes]) -> float:
    """Return the CPU ms from a file's bytes to pixels, the median of five passes."""
    passes = []
    for _ in range(5):
        started = time.process_time()
        for file in files:
            embedder.prepare(file)
        passes.append(1000 * (time.process_time() - started) / len(files))
    return statistics.median(passes)


@click.command()
@click.argument("artifact", type=click.Path(exists=True, path_type=Path))
@click.argument("place", type=click.Path(exists=True, path_type=Path), required=False)
@click.option("--count", default=200, show_default=True, help="Number of parts of photographs.")
def main(artifact: Path, place: Path | None, count: int) -> None:
    """Print a table of cosines and CPU times by scale; its last row has photographs enlarged to 12 megapixels."""
    rng, pictures = random.Random(0), load(place, 1000)
    files: dict[int, list[bytes]] = defaultdict(list)
    with Embedder.open(artifact) as whole, Embedder.open(artifact, scaled_decoding=True) as scaled:
        least = 2 * whole.artifact.manifest.preprocess.resize
        for number in range(count):
            part = cut(pictures[number % len(pictures)], rng)
            stream = io.BytesIO()
            part.save(stream, "JPEG", quality=90)
            files[next((by for by in (8, 4, 2) if min(part.size) // by >= least), 1)].append(stream.getvalue())
        groups = {str(by): files[by] for by in sorted(files)}
        groups["12 megapixels"] = [encoded(picture, 4000, "JPEG", quality=90) for picture in pictures[:3]]
        print(
            "| decoded at 1/n of the edges | photographs | cosine: mean | least | pixel values off by, mean | CPU ms |"
        )
        print("|---|---|---|---|---|---|")
        for name, group in groups.items():
            cosines = (whole.embed(group) * scaled.embed(group)).sum(axis=1)
            off = [np.abs(whole.prepare(file).astype(int) - scaled.prepare(file)).mean() for file in group]
            spent = f"{cpu_ms(whole, group):.2f} → {cpu_ms(scaled, group):.2f}"
            print(
                f"| {name} | {len(group)} | {cosines.mean():.5f} | {cosines.min():.5f} | {np.mean(off):.2f} | {spent} |",
                flush=True,
            )


if __name__ == "__main__":
    main()
