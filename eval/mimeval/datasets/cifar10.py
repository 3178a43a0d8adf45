"""CIFAR-10: 60,000 photographs of 32×32 px in 10 classes (Krizhevsky, 2009), from the binary files of its author."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from mimeval.datasets.dataset import Dataset, Split, digest_of
from mimeval.datasets.fetch import Archive, Progress, unpacked
from mimeval.datasets.pixels import split_of_pixels
from mimeval.errors import DataError

ARCHIVE = Archive(
    "https://www.cs.toronto.edu/~kriz/cifar-10-binary.tar.gz", "c32a1d4ab5d03f1284b67883e8d87530", 170_052_171
)
"""The checksum is published on the page of the data set."""
FOLDER = "cifar-10-batches-bin"
CLASSES = ("airplane", "automobile", "bird", "cat", "deer", "dog", "frog", "horse", "ship", "truck")
_TRAIN, _TEST = tuple(f"data_batch_{part}.bin" for part in range(1, 6)), ("test_batch.bin",)
_EDGE = 32
_RECORD = 1 + 3 * _EDGE * _EDGE
"""Bytes: a label, then the planes red, green, blue."""


def open_cifar10(path: Path | None, cache: Path, progress: Progress) -> Dataset:
    """Read the folder `cifar-10-batches-bin` at `path`, or download it.

    Raises:
        DataError: the download failed, or files are missing or have the wrong size.
        OutputError: the cache is not writable.

    """
    folder = path or unpacked(ARCHIVE, cache, progress) / FOLDER
    return Dataset("cifar10", CLASSES, _split(folder, "test", _TEST), _split(folder, "train", _TRAIN))


def _split(folder: Path, name: str, files: tuple[str, ...]) -> Split:
    records = np.concatenate([_records(folder / file) for file in files])
    return split_of_pixels(
        f"cifar10/{name}",
        records[:, 0],
        lambda row: np.ascontiguousarray(records[row, 1:].reshape(3, _EDGE, _EDGE).transpose(1, 2, 0)),
        digest_of(records.tobytes()),
    )


def _records(file: Path) -> np.ndarray:
    try:
        raw = np.fromfile(file, np.uint8)
    except OSError as error:
        raise DataError(f"{file} cannot be read: {error.strerror or error}") from error
    if not len(raw) or len(raw) % _RECORD or raw[::_RECORD].max() >= len(CLASSES):
        raise DataError(f"{file} has {len(raw):,} bytes, expected records of {_RECORD} that begin with a label 0 to 9")
    return raw.reshape(-1, _RECORD)
