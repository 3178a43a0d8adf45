"""Photographs for measurements, from installed packages or from a folder or zip, encoded with a given size and format."""

from __future__ import annotations

import importlib.util
import io
from pathlib import Path

from PIL import Image

from mimruntime.decode import decode
from mimruntime.image_files import list_images

_PACKAGES = {
    "skimage": ("data", ("astronaut.png", "chelsea.png", "coffee.png", "retina.jpg", "rocket.jpg")),
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
}


def load(place: Path | None, most: int) -> list[Image.Image]:
    """Return up to `most` images from `place`, or the seven included in scikit-image and scikit-learn."""
    if place is not None:
        return [decode(file.read()) for file in list_images(place)[:most]]
    found = []
    for package, (folder, names) in _PACKAGES.items():
        spec = importlib.util.find_spec(package)
        if spec is None or spec.origin is None:
            raise SystemExit(f"{package} is not installed; name a folder of photographs")
        found += [decode(Path(spec.origin).parent / folder / name) for name in names]
    return found[:most]


def encoded(picture: Image.Image, longer: int, kind: str, **options: object) -> bytes:
    """Return the image as a file of format `kind` with a longer edge of `longer` px."""
    scale = longer / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    stream = io.BytesIO()
    picture.resize(size, Image.Resampling.BICUBIC).save(stream, kind, **options)
    return stream.getvalue()
