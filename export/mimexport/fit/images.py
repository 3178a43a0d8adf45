"""Images to learn from: a folder or a zip, with class folders or without, split into parts or not."""

from __future__ import annotations

import hashlib
import threading
import zipfile
from collections.abc import Sequence
from dataclasses import dataclass
from pathlib import Path, PurePosixPath
from typing import overload

import numpy as np

from mimexport.errors import FitError
from mimruntime.decode import Source
from mimruntime.errors import ImageError
from mimruntime.images import EXTENSIONS, find_images

_TEST_PARTS = ("val", "validation", "test")
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

    @property
    def known_labels(self) -> np.ndarray:
        """The labels.

        Raises:
            FitError: there are none.
        """
        if self.labels is None:
            raise FitError("the held-out images have no class folders, although the training images do")
        return self.labels


def open_images(path: Path, *, seed: int = 0) -> tuple[ImageSet, ImageSet | None]:
    """Return training images, and the labelled images held out to report on (None without labels).

    `train/` and `val/` (or `test/`) are taken as they are; otherwise a fifth of the labelled images is held out.

    Args:
        path: `CLASS/image`, `train/CLASS/image` with `val/CLASS/image`, or images without folders; or a zip of that.
        seed: of the split.

    Raises:
        FitError: nothing there, or no images in it.
        ImageError: a zip that is cut short or damaged.
    """
    files = _list_zip(path) if path.is_file() else _list_folder(path)
    if not files:
        raise FitError(f"{path} holds no images ({', '.join(sorted(EXTENSIONS))})")
    parts = {name.parts[0] for name, _, _ in files if len(name.parts) > 1}
    test_part = next((part for part in _TEST_PARTS if part in parts), None)
    if "train" in parts and test_part:
        train = [file for file in files if file[0].parts[0] == "train"]
        test = [file for file in files if file[0].parts[0] == test_part]
        return _image_set(train, 1), _image_set(test, 1)
    whole = _image_set(files, 0)
    if whole.labels is None:
        return whole, None
    held = np.zeros(len(files), bool)
    held[np.random.default_rng(seed).permutation(len(files))[: int(_HELD_OUT * len(files))]] = True
    names = whole.classes
    train, test = ([file for file, out in zip(files, held, strict=True) if out == side] for side in (False, True))
    return _image_set(train, 0, names), _image_set(test, 0, names)


@dataclass(frozen=True, slots=True)
class _Member:
    """A file of a zip, read when it is needed."""

    archive: zipfile.ZipFile
    name: str
    lock: threading.Lock

    def read(self) -> bytes:
        try:
            with self.lock:
                return self.archive.read(self.name)
        except (zipfile.BadZipFile, OSError, EOFError) as error:
            raise ImageError(f"{self.archive.filename}: {self.name} cannot be read: {error}") from error


_File = tuple[PurePosixPath, "Path | _Member", str]
"""Name below the root, where its bytes are, and what identifies them."""


def _list_folder(path: Path) -> list[_File]:
    if not path.is_dir():
        raise FitError(f"no folder or zip at {path}")
    try:
        found = find_images([str(path)])
    except ImageError:
        return []
    stats = [(file, file.stat()) for file in found]
    return [
        (PurePosixPath(file.relative_to(path).as_posix()), file, f"{stat.st_size}:{stat.st_mtime_ns}")
        for file, stat in stats
    ]


def _list_zip(path: Path) -> list[_File]:
    try:
        archive = zipfile.ZipFile(path)
        members = sorted(archive.infolist(), key=lambda member: member.filename)
    except (zipfile.BadZipFile, OSError) as error:
        raise ImageError(f"{path} is not a readable zip, or is cut short: {error}") from error
    lock = threading.Lock()
    return [
        (PurePosixPath(member.filename), _Member(archive, member.filename, lock), f"{member.file_size}:{member.CRC}")
        for member in members
        if PurePosixPath(member.filename).suffix.lower() in EXTENSIONS
    ]


class _Sources(Sequence[Source]):
    """Files in order; the members of a zip are read on access, so that a large zip need not fit into memory."""

    def __init__(self, files: Sequence[Path | _Member]) -> None:
        self._files = files

    def __len__(self) -> int:
        return len(self._files)

    @overload
    def __getitem__(self, index: int) -> Source: ...
    @overload
    def __getitem__(self, index: slice) -> Sequence[Source]: ...
    def __getitem__(self, index: int | slice) -> Source | Sequence[Source]:
        if isinstance(index, slice):
            return _Sources(self._files[index])
        file = self._files[index]
        return file.read() if isinstance(file, _Member) else file


def _image_set(files: list[_File], depth: int, classes: tuple[str, ...] | None = None) -> ImageSet:
    """Return the set of `files`, whose class is the folder at `depth` of their name where each has one."""
    digest = hashlib.sha256("".join(f"{name}\0{content}\n" for name, _, content in files).encode()).hexdigest()
    sources = _Sources([file for _, file, _ in files])
    if not all(len(name.parts) > depth + 1 for name, _, _ in files):
        return ImageSet(sources, None, (), digest)
    named = [name.parts[depth] for name, _, _ in files]
    classes = classes or tuple(sorted(set(named)))
    index = {name: label for label, name in enumerate(classes)}
    return ImageSet(sources, np.array([index[name] for name in named]), classes, digest)
