"""Photographs in many formats and the vectors that the service must return for them."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path

import numpy as np
import skimage
import sklearn
from hostile_images import encoded
from PIL import Image

from attack.bodies import Target
from attack.correct import TOLERANCE
from mimruntime import Embedder


def read_target(artifact: Path, images: Sequence[Path]) -> Target:
    """Shrink photographs and embed them in this process.

    Raises:
        ValueError: vectors of two photographs are too similar to tell apart.

    """
    forms = [("JPEG", 96), ("PNG", 64), ("WEBP", 120), ("GIF", 80), ("BMP", 40), ("JPEG", 480)]
    photos = []
    for number, path in enumerate(images):
        kind, side = forms[number % len(forms)]
        with Image.open(path) as image:
            photos.append(encoded(image.convert("RGB").resize((side * 4 // 3, side)), kind))
    with Embedder.open(artifact, engine="onnxruntime") as embedder:
        pixels = [embedder.prepare(photo) for photo in photos]
        vectors = embedder.embed(photos)
        name, edge = embedder.artifact.manifest.name, embedder.artifact.manifest.preprocess.size
    apart = np.abs(vectors[:, None] - vectors[None]).max(axis=2) + np.eye(len(vectors))
    if apart.min() < 10 * TOLERANCE:
        raise ValueError(
            f"vectors of two images differ by at most {apart.min():.1g}; use an artifact that separates them"
        )
    return Target(name, photos, [one.tobytes() for one in pixels], edge, vectors.tolist())


def photographs() -> list[Path]:
    """Return the photographs included in scikit-image and scikit-learn."""
    folders = Path(skimage.__file__).parent / "data", Path(sklearn.__file__).parent / "datasets" / "images"
    names = ("astronaut.png", "chelsea.png", "coffee.png", "rocket.jpg", "retina.jpg", "china.jpg", "flower.jpg")
    return [folder / name for name in names for folder in folders if (folder / name).exists()]
