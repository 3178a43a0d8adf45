"""What a person types after `--data` becomes a data set."""

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
        open: what was asked for -> the whole of it.
        path: "needed", "optional" or "none".
        foreign: somebody else divided it, so that train and test may share images.

    """

    open: Callable[[_DatasetRequest], Dataset]
    path: str
    foreign: bool


@dataclass(frozen=True, slots=True)
class _DatasetRequest:
    """What the families open by: a path or none, where to download to, the seed, and whom to tell of progress."""

    path: Path | None
    cache: Path
    seed: int
    progress: Progress

    @property
    def given(self) -> Path:
        """The path, of families that need one."""
        assert self.path is not None  # noqa: S101 - `parse` has refused it
        return self.path


FAMILIES: dict[str, Family] = {
    "folder": Family(lambda asked: open_folder(asked.given, seed=asked.seed), "needed", True),
    "zip": Family(lambda asked: open_folder(asked.given, seed=asked.seed), "needed", True),
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
        spec: `NAME`, `NAME:PATH` (`FAMILIES`), or the path of a folder or zip; `shifted:` before it moves subjects out of
            the centre (`shifted.KINDS`).
        cache: folder for what is downloaded and unpacked.
        limit: test images at most, drawn from `seed` in balance of classes.
        train_limit: likewise for the images to learn from.
        seed: of every draw.
        progress: of downloads, called with bytes here and in all, and of reading, with images.

    Raises:
        UnknownNameError: no data set and no path of that name.
        DataError: missing, out of reach, broken, or not divisible into what an evaluation needs.
        ImageError: an archive that is cut short or damaged, an image that cannot be read.
        OutputError: the cache cannot be written.

    """
    kinds, spec = parse_shift(spec)
    name, path = parse(spec)
    family = FAMILIES[name]
    whole = family.open(_DatasetRequest(path, cache / "datasets", seed, progress))
    dataset = limited(whole, limit, train_limit, seed)
    noted = note_shared(dataset, cache, progress) if family.foreign else dataset
    return shift(noted, kinds, seed=seed) if kinds else noted


def parse(spec: str) -> tuple[str, Path | None]:
    """Return the name of a family, and the path if there is one.

    Raises:
        UnknownNameError: neither a family nor a path.
        DataError: a path too many, or none where one is needed.

    """
    name, colon, rest = spec.partition(":")
    if name in FAMILIES:
        family = FAMILIES[name]
        if family.path == "needed" and not rest:
            raise DataError(f"data set '{spec}': where is it? give {name}:PATH")
        if family.path == "none" and colon:
            raise DataError(f"data set '{spec}': {name} takes no path")
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
        path.exists()  # raises for a name no file can have
    except (RuntimeError, OSError, ValueError) as error:
        reason = error.strerror if isinstance(error, OSError) else error
        raise DataError(f"data set '{text[:80]}': no path ({reason})") from error
    return path
