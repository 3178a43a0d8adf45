"""Open the data set named by the option `--data`."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass
from pathlib import Path

from mimeval.datasets.cifar10 import open_cifar10
from mimeval.datasets.crops import open_crops
from mimeval.datasets.dataset import Dataset
from mimeval.datasets.drawn import open_drawn
from mimeval.datasets.fetch import Progress
from mimeval.datasets.folder import open_folder
from mimeval.datasets.imagenet import open_imagenet, open_imagenette, open_tiny_imagenet
from mimeval.datasets.revisited import open_revisited
from mimeval.datasets.shared_images import note_shared
from mimeval.datasets.shifted import parse_shift, shift
from mimeval.datasets.stl10 import open_stl10
from mimeval.datasets.subset import limited
from mimeval.errors import DataError
from mimruntime.errors import UnknownNameError


@dataclass(frozen=True, slots=True)
class Family:
    """A kind of data set.

    Attributes:
        open: opens the complete data set.
        path: "needed", "optional" or "none".
        foreign: whether the split comes from others, so that train and test may share images.

    """

    open: Callable[[_DatasetRequest], Dataset]
    path: str
    foreign: bool


@dataclass(frozen=True, slots=True)
class _DatasetRequest:
    """Arguments for opening a data set: path or None, folder for downloads, seed and progress callback."""

    path: Path | None
    cache: Path
    seed: int
    progress: Progress

    @property
    def given(self) -> Path:
        """The path of a family that needs one."""
        assert self.path is not None  # noqa: S101 - `parse` checks it
        return self.path


FAMILIES: dict[str, Family] = {
    "folder": Family(lambda asked: open_folder(asked.given), "needed", True),
    "zip": Family(lambda asked: open_folder(asked.given), "needed", True),
    "imagenet": Family(lambda asked: open_imagenet(asked.given), "needed", True),
    "imagenette": Family(lambda asked: open_imagenette(asked.path, asked.cache, asked.progress), "optional", True),
    "cifar10": Family(lambda asked: open_cifar10(asked.path, asked.cache, asked.progress), "optional", True),
    "tiny-imagenet": Family(
        lambda asked: open_tiny_imagenet(asked.path, asked.cache, asked.progress), "optional", True
    ),
    "stl10": Family(lambda asked: open_stl10(asked.path, asked.cache, asked.progress), "optional", True),
    "roxford5k": Family(lambda asked: open_revisited("roxford5k", asked.given), "needed", False),
    "rparis6k": Family(lambda asked: open_revisited("rparis6k", asked.given), "needed", False),
    "drawn": Family(lambda asked: open_drawn(seed=asked.seed), "none", False),
    "crops": Family(lambda asked: open_crops(seed=asked.seed), "none", False),
}


def open_dataset(
    spec: str,
    *,
    cache: Path,
    limit: int | None = None,
    train_limit: int | None = None,
    seed: int = 0,
    progress: Progress = lambda here, total: None,
) -> Dataset:
    """Open the data set that `spec` names.

    Args:
        spec: `NAME`, `NAME:PATH` (`FAMILIES`), or the path of a folder or zip. The prefix `shifted:` moves subjects out of
            the centre (`shifted.KINDS`).
        cache: folder for downloaded and unpacked files.
        limit: largest number of test images, sampled with balanced classes.
        train_limit: largest number of training images, sampled with balanced classes.
        seed: seed of all samples.
        progress: called with bytes done and total during downloads, and with images during reading.

    Raises:
        UnknownNameError: there is no data set and no path of that name.
        DataError: the data are missing or damaged, cannot be downloaded, or cannot be split for an evaluation.
        ImageError: an archive is truncated or damaged, or an image cannot be read.
        OutputError: the cache is not writable.

    """
    kinds, spec = parse_shift(spec)
    name, path = parse(spec)
    family = FAMILIES[name]
    whole = family.open(_DatasetRequest(path, cache / "datasets", seed, progress))
    dataset = limited(whole, limit, train_limit, seed)
    noted = note_shared(dataset, cache, progress) if family.foreign else dataset
    return shift(noted, kinds, seed=seed) if kinds else noted


def parse(spec: str) -> tuple[str, Path | None]:
    """Return the name of a family, and the path if one is given.

    Raises:
        UnknownNameError: the text is neither a family nor a path.
        DataError: the family needs a path, or does not accept one.

    """
    name, colon, rest = spec.partition(":")
    if name in FAMILIES:
        family = FAMILIES[name]
        if family.path == "needed" and not rest:
            raise DataError(f"data set '{spec}' needs a path; give {name}:PATH")
        if family.path == "none" and colon:
            raise DataError(f"data set '{spec}': {name} takes no path; give only {name}")
        return name, _path(rest) if rest else None
    path = _path(spec)
    if not path.exists():
        if colon or path.name != spec:
            raise DataError(f"no data set and no folder or zip at {spec}; data sets: {', '.join(FAMILIES)}")
        raise UnknownNameError("data set", spec, FAMILIES)
    return "folder", path


def _path(text: str) -> Path:
    try:
        path = Path(text).expanduser()
        path.exists()  # raises for an invalid file name
    except (RuntimeError, OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"data set '{text[:80]}' is not a valid path ({reason})") from error
    return path
