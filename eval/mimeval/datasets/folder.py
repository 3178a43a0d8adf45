"""Class folders of images, on disk or in a zip, divided into train and test by their owner or by a seed."""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path, PurePosixPath

import numpy as np

from mimeval.datasets.dataset import Dataset, Split, digest_of
from mimeval.errors import DataError
from mimruntime.image_files import (
    TEST_PARTS,
    TRAIN_PARTS,
    ImageFile,
    divided_by_owner,
    folder_around,
    inside,
    list_images,
    open_zip,
)
from mimruntime.image_paths import as_text

HELD_OUT = 5
"""Where nobody divided the images, one of five of every class is a test image."""


def open_folder(path: Path, *, seed: int = 0) -> Dataset:
    """Read `train/CLASS/image` with `val/CLASS/image` (or `test/`), or `CLASS/image` that `seed` divides.

    A single folder around all of it, as archives have, is passed through.

    Args:
        path: a folder or a zip.
        seed: of the division.

    Raises:
        ImageError: nothing there, no images, or a damaged zip.
        DataError: no class folders, one class only, an empty one, or classes that do not occur in training.

    """
    files, folders = read_tree(path)
    return divided(path, files, folders, seed=seed)


def read_tree(path: Path) -> tuple[list[ImageFile], set[PurePosixPath]]:
    """Return the images of a folder or zip, and the folders of two levels; a single folder around it all is left out.

    Raises:
        ImageError: nothing there, no images, or a damaged zip.

    """
    files = list_images(path)
    root = folder_around(files)
    return inside(root, files), _folders(path, root)


def divided(path: Path, files: Sequence[ImageFile], folders: set[PurePosixPath], *, seed: int = 0) -> Dataset:
    """Return what `open_folder` says of the files and folders found at `path`."""
    if parts := divided_by_owner(files):
        train, test = parts
        classes = class_names(path, train, folders, depth=1)
        _refuse_unknown(path, classes, class_names(path, test, folders, depth=1))
        return _named(path, classes, split_of(test, classes, 1), split_of(train, classes, 1))
    top = {file.name.parts[0] for file in files if len(file.name.parts) > 1}
    if top and {name.lower() for name in top} <= {*TRAIN_PARTS, *TEST_PARTS}:  # a part without the other, no classes
        raise DataError(
            f"{path} has {'/, '.join(sorted(top))}/ alone: training images go to train/, test images to val/"
        )
    classes = class_names(path, files, folders, depth=0)
    whole = split_of(files, classes, 0)
    train_rows, test_rows = _divide(path, whole, classes, seed)
    return _named(path, classes, whole.take(test_rows), whole.take(train_rows))


def _named(path: Path, classes: Sequence[str], test: Split, train: Split) -> Dataset:
    return Dataset(as_text(path.resolve().name), tuple(as_text(name) for name in classes), test, train)


def class_names(path: Path, files: Sequence[ImageFile], folders: set[PurePosixPath], depth: int) -> tuple[str, ...]:
    """Return the names of the class folders at `depth` of the files' names.

    Raises:
        DataError: a file outside of them, one class only, or a class without an image.

    """
    loose = next((file for file in files if len(file.name.parts) <= depth + 1), None)
    if loose:
        raise DataError(f"{path}: {loose.name} lies in no class folder; expected CLASS/image, or train/ and val/ of it")
    names = {file.name.parts[depth] for file in files}
    above = {file.name.parts[:depth] for file in files}
    empty = sorted(
        folder.name
        for folder in folders
        if len(folder.parts) == depth + 1 and folder.parts[:depth] in above and folder.name not in names
    )
    if empty:
        raise DataError(f"{path}: no image in class {_some(empty)}; remove the folder or fill it")
    if len(names) < 2:
        raise DataError(f"{path} holds the single class {next(iter(names))}: there is nothing to tell apart")
    return tuple(sorted(names))


def split_of(files: Sequence[ImageFile], classes: Sequence[str], depth: int) -> Split:
    """Return the split of `files`, whose class is the folder at `depth` of their name."""
    index = {name: label for label, name in enumerate(classes)}
    files = tuple(files)
    return Split(
        tuple(as_text(str(file.name)) for file in files),
        np.array([index[file.name.parts[depth]] for file in files], np.int64),
        lambda row: files[row].read(),
        digest_of(*(f"{file.name}\0{file.stamp}" for file in files)),
    )


def _folders(path: Path, root: PurePosixPath) -> set[PurePosixPath]:
    """Return the folders below `root` that could be classes, the empty ones among them."""
    if path.is_dir():
        found = {PurePosixPath(p.relative_to(path / root).as_posix()) for p in _two_levels(path / root) if p.is_dir()}
    else:
        with open_zip(path) as archive:
            names = [PurePosixPath(member.filename) for member in archive.infolist() if member.is_dir()]
        found = {name.relative_to(root) for name in names if name.is_relative_to(root)}
    return {name for name in found if name.parts and not any(part.startswith((".", "__")) for part in name.parts)}


def _two_levels(path: Path) -> list[Path]:
    return [*path.glob("*"), *path.glob("*/*")]


def _refuse_unknown(path: Path, train: Sequence[str], test: Sequence[str]) -> None:
    if unknown := sorted(set(test) - set(train)):
        raise DataError(f"{path}: no training image of class {_some(unknown)}, although test images are of it")


def _divide(path: Path, whole: Split, classes: Sequence[str], seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Return training rows and test rows: of every class a fifth, one at least."""
    order = np.random.default_rng(seed).permutation(len(whole))
    held = np.zeros(len(whole), bool)
    for label, name in enumerate(classes):
        rows = order[whole.labels[order] == label]
        if len(rows) < 2:
            raise DataError(f"{path}: class {name} has one image; it needs one to learn from and one to test on")
        held[rows[: max(1, len(rows) // HELD_OUT)]] = True
    return np.flatnonzero(~held), np.flatnonzero(held)


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more
