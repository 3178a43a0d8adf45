"""Retrieval among crops of the photographs in scikit-image and scikit-learn: each crop must find the others of its place.

A photograph is divided into places that do not overlap. Views of a place are windows inside it with varying size, position,
brightness and contrast. The other places of the same photograph make the task hard. Views of one place are not independent,
so an interval over crops is narrower than one over places would be.
"""

from __future__ import annotations

from functools import lru_cache
from importlib.util import find_spec
from pathlib import Path

import numpy as np
from PIL import Image

from mimeval.datasets.dataset import Dataset, Split, digest_of, others_of_class
from mimeval.datasets.pixels import png
from mimeval.errors import DataError
from mimruntime.errors import MissingExtraError

PHOTOS = {
    "skimage": (
        "data",
        ("astronaut.png", "camera.png", "chelsea.png", "coffee.png", "coins.png", "hubble_deep_field.jpg", "ihc.png",
         "motorcycle_left.png", "rocket.jpg"),
    ),
    "sklearn": ("datasets/images", ("china.jpg", "flower.jpg")),
}  # fmt: skip
VIEWS = 6
"""Number of crops per place."""
_PLACE = 128
"""Edge of a place in pixels."""
_SMALLEST = 0.55
"""Edge of the smallest view as a share of the place's."""
_PLAIN = 14
"""Smallest standard deviation of the brightness (0 to 255) of a place; below it is sky or shadow, which cannot be found."""
_VERSION = "1"


def open_crops(*, seed: int = 0) -> Dataset:
    """Return a data set of six crops for each of about 130 places.

    Raises:
        MissingExtraError: scikit-image or scikit-learn is not installed.
        DataError: an installed package lacks one of the photographs.

    """
    places = [(photo, corner) for photo in _find() for corner in _places(photo)]
    labels = np.repeat(np.arange(len(places)), VIEWS)
    classes = tuple(f"{photo.stem} {x},{y}" for photo, (y, x) in places)

    def load(row: int) -> bytes:
        photo, corner = places[labels[row]]
        return png(_view(photo, corner, np.random.default_rng((seed, row))))

    split = Split(
        tuple(f"{classes[label]} view {row % VIEWS}" for row, label in enumerate(labels)),
        labels,
        load,
        digest_of("crops", _VERSION, str(seed), *(_pixels(photo).tobytes() for photo in _find())),
    )
    return Dataset("crops", classes, split, relevance={"": others_of_class(labels)})


def _find() -> list[Path]:
    found = []
    for package, (folder, names) in PHOTOS.items():
        spec = find_spec(package)
        if spec is None or spec.origin is None:
            raise MissingExtraError(f"the data set 'crops' ({package} ships its photographs)", "eval")
        paths = [Path(spec.origin).parent / folder / name for name in names]
        if missing := next((path for path in paths if not path.is_file()), None):
            raise DataError(
                f"the installed {package} ships no {missing.name}; install the version constraints.txt names"
            )
        found += paths
    return found


@lru_cache(maxsize=16)
def _pixels(photo: Path) -> np.ndarray:
    with Image.open(photo) as image:
        return np.asarray(image.convert("RGB"))


def _places(photo: Path) -> list[tuple[int, int]]:
    """Return the upper left corners (y, x) of the places of a photograph with enough contrast."""
    grey = _pixels(photo).mean(axis=2)
    corners = [
        (y, x)
        for y in range(0, grey.shape[0] - _PLACE + 1, _PLACE)
        for x in range(0, grey.shape[1] - _PLACE + 1, _PLACE)
    ]
    return [(y, x) for y, x in corners if grey[y : y + _PLACE, x : x + _PLACE].std() >= _PLAIN]


def _view(photo: Path, corner: tuple[int, int], rng: np.random.Generator) -> np.ndarray:
    edge = int(_PLACE * rng.uniform(_SMALLEST, 1))
    y, x = corner + rng.integers(0, _PLACE - edge + 1, 2)
    window = _pixels(photo)[y : y + edge, x : x + edge].astype(np.float32)
    contrast, brightness = rng.uniform(0.75, 1.25), rng.uniform(-25, 25)
    return np.asarray(np.clip((window - 128) * contrast + 128 + brightness, 0, 255), np.uint8)
