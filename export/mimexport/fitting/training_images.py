"""Training images from a folder or zip, with or without class folders and a train/val split."""

from __future__ import annotations

import hashlib
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from mimexport.errors import FitError
from mimexport.fitting.sources import LazySources
from mimruntime.decode import Source
from mimruntime.image_files import ImageFile, divided_by_owner, folder_around, held_out, inside, list_images


@dataclass(frozen=True, slots=True, eq=False)
class ImageSet:
    """Images and, if they lie in class folders, their labels.

    Attributes:
        images: n decodable sources, sorted by name.
        labels: (n,) integers, or None.
        classes: names of the classes, indexed by label.
        digest: changes whenever the images or their order change.
    """

    images: Sequence[Source]
    labels: np.ndarray | None
    classes: tuple[str, ...]
    digest: str


def open_images(path: Path) -> tuple[ImageSet, ImageSet | None]:
    """Return the training images, and the labelled images held out for evaluation (None without labels).

    `train/` and `val/` (or `test/`) define the split. Without them, a fifth of each class is held out, the same images that an
    evaluation of this path judges by. A single folder around everything, as in many archives, is skipped. Images of a single
    class have no labels.

    Args:
        path: folder or zip of `CLASS/image`, of `train/CLASS/image` and `val/CLASS/image`, or of images without folders.

    Raises:
        ImageError: the path does not exist or holds no images, or the zip is truncated or damaged.
    """
    files = list_images(path)
    files = inside(folder_around(files), files)
    if parts := divided_by_owner(files):
        train, test = parts
        return _image_set(train, 1), _image_set(test, 1)
    whole = _image_set(files, 0)
    if whole.labels is None:
        return whole, None
    held, names = held_out(files), whole.classes
    if not any(held):
        return whole, None
    train, test = ([file for file, out in zip(files, held, strict=True) if out == side] for side in (False, True))
    return _image_set(train, 0, names), _image_set(test, 0, names)


def held_out_labels(train: ImageSet, test: ImageSet) -> tuple[np.ndarray, np.ndarray]:
    """Return the labels of both sets as indices into `train.classes`.

    Raises:
        FitError: there are no class folders, or a held-out class has no training images.
    """
    if train.labels is None or test.labels is None:
        missing = "training" if train.labels is None else "held-out"
        raise FitError(f"the {missing} images have no class folders to measure accuracy; add them, or --no-judge")
    index = {name: label for label, name in enumerate(train.classes)}
    if unknown := [name for name in test.classes if name not in index]:
        raise FitError(
            f"class '{unknown[0]}' has held-out images but no training images; add training images, or --no-judge"
        )
    return train.labels, np.array([index[test.classes[label]] for label in test.labels])


def _source(file: ImageFile) -> Source:
    return file.place if isinstance(file.place, Path) else file.read()


def _image_set(files: list[ImageFile], depth: int, classes: tuple[str, ...] | None = None) -> ImageSet:
    """Return the set of `files`; the folder at `depth` of each name is its class, if every file has one."""
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
