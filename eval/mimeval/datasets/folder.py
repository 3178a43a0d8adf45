"""Data sets of class folders, on disk or in a zip, with a given split or a fixed one into train and test."""

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
    held_out,
    inside,
    list_images,
    open_zip,
)
from mimruntime.image_paths import as_text


def open_folder(path: Path) -> Dataset:
    """Read `train/CLASS/image` and `val/CLASS/image` (or `test/`), or hold a fifth of each class of `CLASS/image` out.

    A single folder around everything, as in many archives, is skipped.

    Args:
        path: a folder or a zip.

    Raises:
        ImageError: the path does not exist or contains no images, or the zip is damaged.
        DataError: there are no class folders, only one class, an empty class, or test classes without training images.

    """
    files, folders = read_tree(path)
    return divided(path, files, folders)


def read_tree(path: Path) -> tuple[list[ImageFile], set[PurePosixPath]]:
    """Return the images of a folder or zip, and its folders of two levels; a single folder around everything is skipped.

    Raises:
        ImageError: the path does not exist or contains no images, or the zip is damaged.

    """
    files = list_images(path)
    root = folder_around(files)
    return inside(root, files), _folders(path, root)


def divided(path: Path, files: Sequence[ImageFile], folders: set[PurePosixPath]) -> Dataset:
    """Return the data set of the files and folders found at `path`; see `open_folder`."""
    if parts := divided_by_owner(files):
        train, test = parts
        classes = class_names(path, train, folders, depth=1)
        _refuse_unknown(path, classes, class_names(path, test, folders, depth=1))
        return _named(path, classes, split_of(test, classes, 1), split_of(train, classes, 1))
    top = {file.name.parts[0] for file in files if len(file.name.parts) > 1}
    if top and {name.lower() for name in top} <= {*TRAIN_PARTS, *TEST_PARTS}:  # train/ or val/ alone
        raise DataError(
            f"{path} has only {'/, '.join(sorted(top))}/; put training images into train/ and test images into val/"
        )
    classes = class_names(path, files, folders, depth=0)
    whole = split_of(files, classes, 0)
    _refuse_single(path, whole, classes)
    held = np.array(held_out(files))
    return _named(path, classes, whole.take(np.flatnonzero(held)), whole.take(np.flatnonzero(~held)))


def _named(path: Path, classes: Sequence[str], test: Split, train: Split) -> Dataset:
    return Dataset(as_text(path.resolve().name), tuple(as_text(name) for name in classes), test, train)


def class_names(path: Path, files: Sequence[ImageFile], folders: set[PurePosixPath], depth: int) -> tuple[str, ...]:
    """Return the names of the class folders at `depth` of the file names.

    Raises:
        DataError: a file is outside of class folders, there is only one class, or a class has no images.

    """
    loose = next((file for file in files if len(file.name.parts) <= depth + 1), None)
    if loose:
        raise DataError(f"{path}: {loose.name} is in no class folder; expected CLASS/image, or train/ and val/ of it")
    names = {file.name.parts[depth] for file in files}
    above = {file.name.parts[:depth] for file in files}
    empty = sorted(
        folder.name
        for folder in folders
        if len(folder.parts) == depth + 1 and folder.parts[:depth] in above and folder.name not in names
    )
    if empty:
        raise DataError(f"{path}: no images in class {_some(empty)}; delete the folder or add images")
    if len(names) < 2:
        raise DataError(f"{path} has only the class {next(iter(names))}; give at least two classes")
    return tuple(sorted(names))


def split_of(files: Sequence[ImageFile], classes: Sequence[str], depth: int) -> Split:
    """Return the split of `files`; the folder at `depth` of each name is its class."""
    index = {name: label for label, name in enumerate(classes)}
    files = tuple(files)
    return Split(
        tuple(as_text(str(file.name)) for file in files),
        np.array([index[file.name.parts[depth]] for file in files], np.int64),
        lambda row: files[row].read(),
        digest_of(*(f"{file.name}\0{file.stamp}" for file in files)),
    )


def _folders(path: Path, root: PurePosixPath) -> set[PurePosixPath]:
    """Return the folders below `root` that could be classes, including empty ones."""
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
        raise DataError(f"{path}: class {_some(unknown)} has test images but no training images; add some")


def _refuse_single(path: Path, whole: Split, classes: Sequence[str]) -> None:
    for name, count in zip(classes, np.bincount(whole.labels), strict=True):
        if count < 2:
            raise DataError(
                f"{path}: class {name} has one image; give at least two, one for training and one for testing"
            )


def _some(names: Sequence[str]) -> str:
    more = f" and {len(names) - 3} more" if len(names) > 3 else ""
    return ", ".join(f"'{name}'" for name in names[:3]) + more
