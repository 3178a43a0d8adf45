"""STL-10: 5,000 + 8,000 labelled photographs of 96×96 px in 10 classes (Coates, Ng & Lee, AISTATS 2011)."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mimeval.datasets.dataset import Dataset, Split, digest_of
from mimeval.datasets.fetch import Archive, Progress, unpacked
from mimeval.datasets.pixels import split_of_pixels
from mimeval.errors import DataError

ARCHIVE = Archive(
    "http://ai.stanford.edu/~acoates/stl10/stl10_binary.tar.gz", "91f7769df0f17e558f3565bffb0c7dfb", 2_640_397_119
)
"""The publisher states no checksum; this one is torchvision's and TensorFlow's."""
FOLDER = "stl10_binary"
CLASSES = ("airplane", "bird", "car", "cat", "deer", "dog", "horse", "monkey", "ship", "truck")
_EDGE = 96


def open_stl10(path: Path | None, cache: Path, progress: Progress) -> Dataset:
    """Read the folder `stl10_binary` at `path`, or download it; the 100,000 unlabelled images are not unpacked.

    Raises:
        DataError: the download failed, or files are missing or have the wrong size.
        OutputError: the cache is not writable.

    """
    folder = path or unpacked(ARCHIVE, cache, progress, wanted=lambda name: "unlabeled" not in name) / FOLDER
    return Dataset("stl10", CLASSES, _split(folder, "test"), _split(folder, "train"))


def _split(folder: Path, name: str) -> Split:
    images, labels = _read(folder / f"{name}_X.bin"), _read(folder / f"{name}_y.bin")
    if not len(labels) or len(images) != len(labels) * 3 * _EDGE**2 or labels.min() < 1 or labels.max() > len(CLASSES):
        raise DataError(
            f"{folder}: {name}_X.bin and {name}_y.bin have {len(images):,} and {len(labels):,} bytes, expected"
            f" {3 * _EDGE**2:,} for every label 1 to 10"
        )
    planes = images.reshape(-1, 3, _EDGE, _EDGE)  # colour, column, row
    return split_of_pixels(
        f"stl10/{name}",
        labels.astype(np.int64) - 1,
        lambda row: np.ascontiguousarray(planes[row].transpose(2, 1, 0)),
        digest_of(images.tobytes(), labels.tobytes()),
    )


def _read(file: Path) -> np.ndarray:
    try:
        return np.fromfile(file, np.uint8)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
