"""Compare the pixels of `mimexport[fast]` with Pillow's and timm's: photographs of every mode, orientation and shape.

python tools/compare_pixels.py [FOLDER|ZIP] [--count 1000]
"""

from __future__ import annotations

import io
import random
from pathlib import Path

import click
import numpy as np
from bench_decode import pillow_alone
from photographs import load
from PIL import Image
from timm.data import create_transform

from mimruntime.decode import decode
from mimruntime.manifest import Preprocess
from mimruntime.preprocess import to_pixels

SIZE = 224
MODES = ("RGB", "RGB", "RGB", "L", "CMYK")
SAMPLINGS = ("4:4:4", "4:2:2", "4:2:0")
SPEC = Preprocess(size=SIZE, resize=248, mode="shortest", interpolation="bicubic", mean=(0.5,) * 3, std=(0.5,) * 3)


def vary(picture: Image.Image, rng: random.Random) -> bytes:
    """Return a JPEG file of a random part of `picture` with random scale, mode, orientation, sampling and quality."""
    width, height = (rng.randint(edge // 3, edge) for edge in picture.size)
    left, top = rng.randint(0, picture.width - width), rng.randint(0, picture.height - height)
    scale = rng.uniform(150, 1200) / min(width, height)
    edges = (max(1, round(width * scale)), max(1, round(height * scale)))
    part = picture.resize(edges, Image.Resampling.BICUBIC, box=(left, top, left + width, top + height))
    exif = Image.Exif()
    exif[0x0112] = rng.randint(1, 8)
    stream = io.BytesIO()
    part.convert(rng.choice(MODES)).save(
        stream,
        "JPEG",
        quality=rng.randint(40, 98),
        subsampling=rng.choice(SAMPLINGS),
        progressive=rng.random() < 0.3,
        exif=exif,
    )
    return stream.getvalue()


@click.command()
@click.argument("place", type=click.Path(exists=True, path_type=Path), required=False)
@click.option("--count", default=1000, show_default=True, help="Files.")
@click.option("--seed", default=0, show_default=True)
def main(place: Path | None, count: int, seed: int) -> None:
    """Print how many images and values differ; fail if a decoded image differs, or a value by more than two."""
    rng, pictures = random.Random(seed), load(place, 1000)
    transform = create_transform((3, SIZE, SIZE), interpolation="bicubic", crop_pct=0.9, use_prefetcher=True)
    unequal, off = 0, np.zeros(256, np.int64)
    for number in range(count):
        raw = vary(pictures[number % len(pictures)], rng)
        picture = decode(raw)
        with pillow_alone():
            unequal += decode(raw).tobytes() != picture.tobytes()
        timm = np.asarray(transform(picture)).transpose(1, 2, 0)  # type: ignore[operator]
        difference = np.abs(to_pixels(picture, SPEC).astype(int) - timm)
        off += np.bincount(difference.ravel(), minlength=256)
    values = off.sum()
    print(f"decoded: {count - unequal} of {count} files equal to Pillow's to the bit")
    print(f"resized: {values:,} values, off by 1: {off[1] / values:.3%}, by 2: {off[2]:,}, by more: {off[3:].sum():,}")
    if unequal or off[3:].any():
        raise SystemExit(1)


if __name__ == "__main__":
    main()
