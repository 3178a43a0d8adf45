"""ImageNet and its published subsets, in folders named by WordNet ids; downloaded if the licence allows it."""

from __future__ import annotations

import re
from collections.abc import Sequence
from dataclasses import replace
from pathlib import Path, PurePosixPath

from mimeval.datasets.dataset import Dataset
from mimeval.datasets.fetch import Archive, Progress, fetch, unpacked
from mimeval.datasets.folder import divided, open_folder, read_tree
from mimeval.errors import DataError
from mimruntime.errors import ImageError
from mimruntime.image_files import ImageFile, open_zip

IMAGENETTE = Archive(
    "https://s3.amazonaws.com/fast-ai-imageclas/imagenette2-160.tgz", "e793b78cc4c9e9a4ccc0c1155377a412", 99_003_388
)
"""The publisher states no checksum; this one is torchvision's."""
TINY = Archive("http://cs231n.stanford.edu/tiny-imagenet-200.zip", "90528d7ca1a48142e341f4ef8d21d0de", 248_100_043)
"""The publisher states no checksum; this one is used by a dozen public data loaders."""
_WNID = re.compile(r"n\d{8}")
_ANNOTATIONS = PurePosixPath("val/val_annotations.txt")


def open_imagenet(path: Path) -> Dataset:
    """Read `train/WNID/image` and `val/WNID/image`. ImageNet may not be redistributed, so it is never downloaded.

    Raises:
        ImageError: the path does not exist or contains no images.
        DataError: class folders are not WordNet ids, for example if all validation images are in one folder.

    """
    return _named("imagenet", path, open_folder(path))


def open_imagenette(path: Path | None, cache: Path, progress: Progress) -> Dataset:
    """Read Imagenette (10 classes of ImageNet, shorter side 160 px) at `path`, or download it.

    Raises:
        ImageError, DataError, OutputError: as `fetch.unpacked` and `folder.open_folder`.

    """
    folder = path or unpacked(IMAGENETTE, cache, progress)
    return _named("imagenette", folder, open_folder(folder))


def open_tiny_imagenet(path: Path | None, cache: Path, progress: Progress) -> Dataset:
    """Read Tiny ImageNet (200 classes, 64×64 px) at `path`, folder or zip, or download it.

    The published form has all validation images in one folder and their classes in `val/val_annotations.txt`. Class folders
    are also supported.

    Raises:
        ImageError, DataError, OutputError: as `fetch.fetch` and `folder.open_folder`.

    """
    path = path or fetch(TINY, cache, progress)
    files, folders = read_tree(path)
    if any(file.name.parts[:2] == ("val", "images") for file in files):
        files = _by_annotation(path, files)
        folders = {folder for folder in folders if folder.name != "images"}
    return _named("tiny-imagenet", path, divided(path, files, folders))


def _named(name: str, path: Path, dataset: Dataset) -> Dataset:
    if strange := next((label for label in dataset.classes if not _WNID.fullmatch(label)), None):
        raise DataError(
            f"{path} has a class '{strange}', expected WordNet ids such as n01440764; read it as folder:{path}"
        )
    return replace(dataset, name=name)


def _by_annotation(path: Path, files: Sequence[ImageFile]) -> list[ImageFile]:
    """Return `files` with the validation images moved to val/CLASS/."""
    wnids = dict(line.split("\t")[:2] for line in _annotations(path).splitlines() if "\t" in line)
    moved = []
    for file in files:
        name = file.name
        if name.parts[:2] == ("val", "images"):
            if name.name not in wnids:
                raise DataError(f"{path}: {_ANNOTATIONS} does not say which class {name} is")
            name = PurePosixPath("val", wnids[name.name], name.name)
        moved.append(replace(file, name=name))
    return moved


def _annotations(path: Path) -> str:
    try:
        if path.is_dir():
            return next(path.glob(f"**/{_ANNOTATIONS}")).read_text(encoding="utf-8")
        with open_zip(path) as archive:
            return archive.read(next(n for n in archive.namelist() if n.endswith(str(_ANNOTATIONS)))).decode()
    except (StopIteration, OSError, UnicodeDecodeError) as error:
        raise ImageError(
            f"{path}: {_ANNOTATIONS} with the classes of the validation images cannot be read; unpack the archive again"
        ) from error
