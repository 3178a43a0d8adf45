"""The searched images with numbers, names, and labels if their folders are classes."""

from __future__ import annotations

import contextlib
import os
from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from pathlib import PurePath

from mimruntime.errors import ImageError
from mimruntime.image_files import TEST_PARTS, TRAIN_PARTS
from mimruntime.image_paths import as_text, find_images

_DIVISIONS = {*TRAIN_PARTS, *TEST_PARTS}


@dataclass(frozen=True, slots=True)
class Gallery:
    """Images by number, which is the index in these lists.

    Attributes:
        paths: path of each image.
        names: path of each image relative to their common folder.
        labels: class of each image; empty if the folders are not classes.

    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    labels: tuple[str, ...]

    def __len__(self) -> int:
        return len(self.paths)

    @contextlib.contextmanager
    def named(self, number: int) -> Iterator[None]:
        """Use the name of an image in its errors, so that they do not reveal its path."""
        try:
            yield
        except ImageError as error:
            raise type(error)(self.without_place(number, str(error))) from error

    def without_place(self, number: int, text: str) -> str:
        """Return a text with the path of an image replaced by its name."""
        return text.replace(as_text(self.paths[number]), self.names[number])


def open_gallery(inputs: Iterable[str]) -> Gallery:
    """Return the images of folders, files and patterns, as `mimruntime.image_paths.find_images` lists them.

    Raises:
        ImageError: an input does not exist, or there are no images.

    """
    return gallery_of([os.fspath(path) for path in find_images(inputs)])


def gallery_of(paths: Sequence[str]) -> Gallery:
    """Return the gallery of these images, in this order."""
    names = tuple(as_text(name) for name in _below_common(paths))
    return Gallery(tuple(paths), names, class_folders(names))


def class_folders(names: Sequence[str]) -> tuple[str, ...]:
    """Return the class of every image: its first folder other than train/ and val/.

    Args:
        names: relative names of images, with `/` between folders.

    Returns:
        A label for each image; empty if an image is in no such folder, or if all have the same class.

    """
    labels = []
    for name in names:
        parts = PurePath(name).parts
        folders = parts[1:-1] if len(parts) > 1 and parts[0].lower() in _DIVISIONS else parts[:-1]
        if not folders:
            return ()
        labels.append(folders[0])
    return tuple(labels) if len(set(labels)) > 1 else ()


def _below_common(paths: Sequence[str]) -> list[str]:
    folders = {os.path.dirname(path) for path in paths}  # noqa: PTH120 - paths travel as text
    try:
        common = os.path.commonpath([folder or "." for folder in folders])
    except ValueError:  # relative and absolute paths, or two drives
        return list(paths)
    return [PurePath(os.path.relpath(path, common)).as_posix() for path in paths]
