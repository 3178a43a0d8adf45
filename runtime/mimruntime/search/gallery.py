"""The images that are searched: numbered, named, and where their folders are classes, labelled."""

from __future__ import annotations

import contextlib
import hashlib
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
    """Images by number, which is their place in these lists.

    Attributes:
        paths: where each is read from.
        names: what each is called, below the folder that they share.
        labels: the class of each; empty where the folders are no classes.
        version: changes with the list.

    """

    paths: tuple[str, ...]
    names: tuple[str, ...]
    labels: tuple[str, ...]
    version: str

    def __len__(self) -> int:
        return len(self.paths)

    @contextlib.contextmanager
    def named(self, number: int) -> Iterator[None]:
        """Have an error about an image call it by its name: others need not know where it lies."""
        try:
            yield
        except ImageError as error:
            raise type(error)(self.without_place(number, str(error))) from error

    def without_place(self, number: int, text: str) -> str:
        """Return a text about an image that calls it by its name."""
        return text.replace(as_text(self.paths[number]), self.names[number])


def open_gallery(inputs: Iterable[str]) -> Gallery:
    """Return the images of folders, files and patterns, as `mimruntime.image_paths.find_images` lists them.

    Raises:
        ImageError: something that does not exist, or no image at all.

    """
    return gallery_of([os.fspath(path) for path in find_images(inputs)])


def gallery_of(paths: Sequence[str]) -> Gallery:
    """Return the gallery of these images, in this order."""
    names = tuple(as_text(name) for name in _below_common(paths))
    digest = hashlib.sha256("\0".join(as_text(os.path.abspath(path)) for path in paths).encode()).hexdigest()  # noqa: PTH100 - links stay
    return Gallery(tuple(paths), names, class_folders(names), digest[:16])


def class_folders(names: Sequence[str]) -> tuple[str, ...]:
    """Return the class of every image: its first folder, train/ and val/ passed over.

    Args:
        names: of images, relative, with `/` between folders.

    Returns:
        A label for each; empty where an image lies in no such folder, or where all are of one class.

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
    except ValueError:  # relative and absolute ones, or two drives
        return list(paths)
    return [PurePath(os.path.relpath(path, common)).as_posix() for path in paths]
