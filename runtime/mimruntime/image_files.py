"""List the image files of a folder or zip; each is read on demand."""

from __future__ import annotations

import hashlib
import lzma
import threading
import zipfile
import zlib
from collections.abc import Sequence
from dataclasses import dataclass, replace
from pathlib import Path, PurePosixPath

from mimruntime.errors import ImageError
from mimruntime.image_names import PassedOver, is_image_name
from mimruntime.image_paths import find_images, nothing_found

TRAIN_PARTS = ("train", "training")
TEST_PARTS = ("val", "valid", "validation", "test", "testing")
"""Names of folders that split images into training and test sets (any case); they are not classes."""
_HELD_OUT = 5
"""Without these folders, one image of five per class is a test image."""


@dataclass(frozen=True, slots=True)
class ImageFile:
    """A file in a folder or zip.

    Attributes:
        name: path relative to the folder, or name in the zip.
        size: bytes.
        stamp: changes when the content changes: size with modification time, or with CRC in a zip.
        place: path or zip member to read.

    """

    name: PurePosixPath
    size: int
    stamp: str
    place: Path | ZipMember

    def read(self) -> bytes:
        """Return the encoded image.

        Raises:
            ImageError: the file is missing, damaged or cannot be read; the message names it.

        """
        if isinstance(self.place, ZipMember):
            return self.place.read()
        try:
            return self.place.read_bytes()
        except OSError as error:
            raise ImageError(f"{self.place} cannot be read: {error.strerror or error}") from error


@dataclass(frozen=True, slots=True, eq=False)
class ZipMember:
    """A member of an open zip; a lock makes reading thread-safe."""

    archive: zipfile.ZipFile
    name: str
    lock: threading.Lock

    def read(self) -> bytes:
        """Return the content.

        Raises:
            ImageError: the member is damaged, encrypted or uses an unsupported compression.

        """
        try:
            with self.lock:
                return self.archive.read(self.name)
        except (zipfile.BadZipFile, OSError, EOFError, RuntimeError, ValueError, zlib.error, lzma.LZMAError) as error:
            raise ImageError(f"{self.archive.filename}: {self.name} cannot be read: {error}") from error


def list_images(path: Path) -> list[ImageFile]:
    """Return the images in a folder or a zip, by name; hidden ones are skipped, other files are counted in one line of the log.

    Raises:
        ImageError: the path does not exist or contains no images, or the zip is truncated or damaged.

    """
    return _in_zip(path) if path.is_file() else _in_folder(path)


def folder_around(files: Sequence[ImageFile]) -> PurePosixPath:
    """Return the single top folder around train/ or class folders, as in many archives; else the empty path."""
    top = files[0].name.parts[0]
    if any(file.name.parts[0] != top for file in files):
        return PurePosixPath()
    inner = {file.name.parts[1].lower() for file in files if len(file.name.parts) > 2}
    around_classes = top.lower() not in {*TRAIN_PARTS, *TEST_PARTS} and all(len(file.name.parts) > 2 for file in files)
    return PurePosixPath(top) if around_classes or inner & {*TRAIN_PARTS} else PurePosixPath()


def inside(folder: PurePosixPath, files: Sequence[ImageFile]) -> list[ImageFile]:
    """Return `files` with names relative to `folder`, which must contain all of them."""
    return [replace(file, name=file.name.relative_to(folder)) for file in files]


def divided_by_owner(files: Sequence[ImageFile]) -> tuple[list[ImageFile], list[ImageFile]] | None:
    """Return the images in train/ and those in val/ (or test/); None if these folders do not exist."""
    parts = {file.name.parts[0].lower() for file in files if len(file.name.parts) > 1}
    train, test = (next((part for part in kind if part in parts), None) for kind in (TRAIN_PARTS, TEST_PARTS))
    if train is None or test is None:
        return None
    below = {part: [file for file in files if file.name.parts[0].lower() == part] for part in (train, test)}
    return below[train], below[test]


def held_out(files: Sequence[ImageFile]) -> list[bool]:
    """Return which images of CLASS/image are test images: a fifth of each class, at least one, but none of a single image.

    Names alone decide. So an evaluation never judges a head by images it was fitted on, whatever the seeds of the two, and
    whether they read a folder or its zip.
    """
    classes: dict[str, list[str]] = {}
    for file in files:
        classes.setdefault(file.name.parts[0], []).append(str(file.name))
    chosen: set[str] = set()
    for names in classes.values():
        drawn = sorted(names, key=lambda name: hashlib.sha256(name.encode("utf-8", "surrogateescape")).digest())
        chosen |= {*drawn[: max(1, len(names) // _HELD_OUT)]} if len(names) > 1 else set()
    return [str(file.name) in chosen for file in files]


def open_zip(path: Path) -> zipfile.ZipFile:
    """Open a zip for reading.

    Raises:
        ImageError: the file is not a zip, or is truncated.

    """
    try:
        return zipfile.ZipFile(path)
    except (zipfile.BadZipFile, OSError) as error:
        raise ImageError(f"{path} is not a readable zip, or is cut short: {error}") from error


def _in_folder(path: Path) -> list[ImageFile]:
    if not path.is_dir():
        raise ImageError(f"no folder or zip at {path}")
    files = []
    for image in find_images([path]):
        try:
            stat = image.stat()
        except OSError as error:
            raise ImageError(f"{image} cannot be read: {error.strerror or error}") from error
        name = PurePosixPath(image.relative_to(path).as_posix())
        files.append(ImageFile(name, stat.st_size, f"{stat.st_size}:{stat.st_mtime_ns}", image))
    return files


def _in_zip(path: Path) -> list[ImageFile]:
    archive, lock, passed = open_zip(path), threading.Lock(), PassedOver()
    files = []
    for member in sorted(archive.infolist(), key=lambda member: member.filename):
        name = PurePosixPath(member.filename)
        if member.is_dir() or any(part.startswith((".", "__MACOSX")) for part in name.parts):
            continue
        if is_image_name(name.name):
            place = ZipMember(archive, member.filename, lock)
            files.append(ImageFile(name, member.file_size, f"{member.file_size}:{member.CRC}", place))
        else:
            passed.add(name.name)
    if not files:
        raise ImageError(nothing_found(str(path), passed))
    passed.log()
    return files
