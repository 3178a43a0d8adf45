"""Images to learn from: a folder or a zip, with class folders or without, split into parts or not."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mimexport.errors import FitError
from mimexport.fitting.sources import LazySources
from mimruntime.decode import Source
from mimruntime.image_files import ImageFile, divided_by_owner, folder_around, inside, list_images

_HELD_OUT = 0.2


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """Images and, where they lie in class folders, their labels.

    Attributes:
        images: n decodable sources, in order of their names.
        labels: (n,) integers, or None.
        classes: names of the classes, by label.
        digest: changes whenever the images or their order do.
    """

    images: Sequence[Source]
    labels: np.ndarray | None
    classes: tuple[str, ...]
    digest: str


def open_images(path: Path, *, seed: int = 0) -> tuple[ImageSet, ImageSet | None]:
    """Return training images, and the labelled images held out to report on (None without labels).

    `train/` and `val/` (or `test/`) are taken as they are; otherwise a fifth of the labelled images is held out. A single
    folder around all of it, as archives have, is passed through. A single class is no label.

    Args:
        path: `CLASS/image`, `train/CLASS/image` with `val/CLASS/image`, or images without folders; or a zip of that.
        seed: of the split.

    Raises:
        ImageError: nothing there, no images in it, or a zip that is cut short or damaged.
    """
    files = list_images(path)
    files = inside(folder_around(files), files)
    if parts := divided_by_owner(files):
        train, test = parts
        return _image_set(train, 1), _image_set(test, 1)
    whole = _image_set(files, 0)
    if whole.labels is None:
        return whole, None
    held = np.zeros(len(files), bool)
    held[np.random.default_rng(seed).permutation(len(files))[: int(_HELD_OUT * len(files))]] = True
    names = whole.classes
    train, test = ([file for file, out in zip(files, held, strict=True) if out == side] for side in (False, True))
    return _image_set(train, 0, names), _image_set(test, 0, names)


def held_out_labels(train: ImageSet, test: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of both, by the classes of `train`.

    Raises:
        FitError: no class folders, or images held out of a class that has none to learn from.
    """
    if train.labels is None or test.labels is None:
        missing = "training" if train.labels is None else "held-out"
        raise FitError(f"the {missing} images have no class folders to measure accuracy by; --no-judge leaves that out")
    index = {name: label for label, name in enumerate(train.classes)}
    if unknown := [name for name in test.classes if name not in index]:
        raise FitError(
            f"no training image of class '{unknown[0]}', although held-out images are of it; give some, or --no-judge"
        )
    return train.labels, np.array([index[test.classes[label]] for label in test.labels])


def _source(file: ImageFile) -> Source:
    return file.place if isinstance(file.place, Path) else file.read()


def _image_set(files: list[ImageFile], depth: int, classes: tuple[str, ...] | None = None) -> ImageSet:
    """Return the set of `files`, whose class is the folder at `depth` of their name where each has one."""
    digest = hashlib.sha256("".join(f"{file.name}\0{file.stamp}\n" for file in files).encode()).hexdigest()
    sources = LazySources(files, _source)
    if not all(len(file.name.parts) > depth + 1 for file in files):
        return ImageSet(sources, None, (), digest)
    named = [file.name.parts[depth] for file in files]
    classes = classes or tuple(sorted(set(named)))
    if len(classes) < 2:
        return ImageSet(sources, None, (), digest)
    index = {name: label for label, name in enumerate(classes)}
    return ImageSet(sources, np.array([index[name] for name in named]), classes, digest)
