"""The frozen tokens of many images, computed once, kept on disk, memory-mapped; a killed run continues where it stopped."""

from __future__ import annotations

import hashlib
import math
import shutil
from collections.abc import Callable, Iterator, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import torch

from mimexport.backbone import Backbone
from mimexport.blocks import OpenBlock
from mimexport.features import ComputedFeatures
from mimexport.fitting.views import show
from mimexport.loaded_model import LoadedModel
from mimexport.provenance import code_digest
from mimruntime.cpus import available_cpus
from mimruntime.decode import Source
from mimruntime.errors import OutputError
from mimruntime.manifest import Preprocess
from mimruntime.writing import write_file

_BATCH = 64
_PROGRESS = "done"


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of n images; every array is a memory map.

    Attributes:
        patches: (n, N, D) float16, out of the last block, without norm.
        cls: (n, D) float32, likewise; width 0 where the backbone has no [cls]. Vectors of [cls] are nearly parallel, and
            what tells them apart does not survive in float16.
        energy: (n, N) float32, squared length of the patches that enter the last block.
        attention: (n, heads, N) float16, of [cls] to the patches in the last block; no heads where there is no [cls].
        kept: (n, N) int16, place in the grid of every patch; None where all patches are there, row by row.
    """

    patches: np.ndarray
    cls: np.ndarray
    energy: np.ndarray
    attention: np.ndarray
    kept: np.ndarray | None = None

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, rows: slice | np.ndarray) -> Tokens:
        kept = None if self.kept is None else self.kept[rows]
        return Tokens(self.patches[rows], self.cls[rows], self.energy[rows], self.attention[rows], kept)


class TokenStore:
    """Computes tokens of images with one backbone and keeps them under `folder`.

    Args:
        loaded: architecture and digest of the weights, which name the files, as the code and its tools do.
        backbone: made from them.
        preprocess: of the model.
        folder: of the cache; grows by about 2·N·D bytes an image and view.
    """

    def __init__(self, loaded: LoadedModel, backbone: Backbone, preprocess: Preprocess, folder: Path) -> None:
        self._backbone = backbone
        self._preprocess = preprocess
        self._folder = folder
        self._identity = f"{loaded.timm_name} {loaded.sha256} {preprocess} {backbone.keep} {code_digest(heads=False)}"
        self._mean, self._std = (
            backbone.per_channel(255 * torch.tensor(loaded.config[key])) for key in ("mean", "std")
        )

    def tokens(
        self,
        images: Sequence[Source],
        digest: str,
        *,
        view: int,
        seed: int = 0,
        progress: Callable[[int, int], None] = lambda done, total: None,
    ) -> Tokens:
        """Return the tokens of one view of `images`, computing those that are not stored yet.

        Args:
            images: decodable sources; one that is not stops the run with its name.
            digest: changes whenever the images or their order do.
            view: `views.WHOLE`, or the number of a random view.
            seed: of the random views.
            progress: called with images done and in all.

        Raises:
            ImageError: a source cannot be decoded.
            OutputError: the cache cannot be written, or has no room for them.
        """
        identity = f"{self._identity}{digest}{len(images)}{view}{seed if view >= 0 else ''}"
        folder = self._folder / hashlib.sha256(identity.encode()).hexdigest()[:24]
        files = self._files(folder, len(images))
        try:
            folder.mkdir(parents=True, exist_ok=True)
            done = _done(folder, files)
            _check_room(folder, sum(file.row_bytes for file in files.values()) * (len(images) - done), len(images))
            for chunk, part in self._compute(images, done, view, seed):
                for name, values in part.items():
                    files[name].write(chunk.start, values)
                write_file(folder / _PROGRESS, str(chunk.stop).encode())
                progress(chunk.stop, len(images))
            return Tokens(**{name: file.read() for name, file in files.items()})
        except OSError as error:
            raise OutputError(
                f"cannot write the token cache {folder}: {error.strerror or error}; what was computed is kept, make room"
                " or choose another --cache, and run again"
            ) from error

    def _files(self, folder: Path, count: int) -> dict[str, _File]:
        shape = self._backbone.shape
        block = self._backbone.last_block
        heads = block.heads if shape.has_cls and isinstance(block, OpenBlock) else 0
        layout: dict[str, tuple[tuple[int, ...], str]] = {
            "patches": ((shape.patches, shape.dim), "<f2"),
            "cls": ((shape.dim if shape.has_cls else 0,), "<f4"),
            "energy": ((shape.patches,), "<f4"),
            "attention": ((heads, shape.patches), "<f2"),
        }
        if self._backbone.keep is not None:
            layout["kept"] = (shape.patches,), "<i2"
        return {
            name: _File(folder / f"{name}.bin", (count, *size), np.dtype(dtype))
            for name, (size, dtype) in layout.items()
        }

    def _compute(
        self, images: Sequence[Source], start: int, view: int, seed: int
    ) -> Iterator[tuple[slice, dict[str, np.ndarray]]]:
        with ThreadPoolExecutor(available_cpus()) as pool, torch.inference_mode():
            for first in range(start, len(images), _BATCH):
                chunk = slice(first, min(first + _BATCH, len(images)))
                shown = pool.map(
                    lambda i: show(images[i], i, view, seed, self._preprocess), range(chunk.start, chunk.stop)
                )
                yield chunk, self._run(np.stack(list(shown)))

    def _run(self, pixels: np.ndarray) -> dict[str, np.ndarray]:
        patches = (self._backbone.patchify(torch.from_numpy(pixels).float()) - self._mean) / self._std
        tokens, kept = self._backbone.encode(patches)
        features = ComputedFeatures(self._backbone, tokens, None, kept)
        has_cls = features.shape.has_cls
        cls, out = features.cls_and_patches if has_cls else (tokens.new_zeros(len(tokens), 0), features.raw_patches)
        attended = has_cls and self._backbone.reduced
        attention = features.cls_attention if attended else tokens.new_zeros(len(tokens), 0, features.shape.patches)
        found = {
            "patches": out.half().numpy(),
            "cls": cls.numpy(),
            "energy": features.entering_energy.numpy(),
            "attention": attention.half().numpy(),
        }
        return found if kept is None else found | {"kept": kept.expand(len(tokens), -1).numpy()}


@dataclass(frozen=True, slots=True)
class _File:
    """Rows of one array on disk; runs side by side write the same values into the same places."""

    path: Path
    shape: tuple[int, ...]
    dtype: np.dtype[Any]

    @property
    def row_bytes(self) -> int:
        return self.dtype.itemsize * math.prod(self.shape[1:])

    def holds(self, rows: int) -> bool:
        return self.path.exists() and self.path.stat().st_size >= rows * self.row_bytes

    def write(self, start: int, values: np.ndarray) -> None:
        # Written and not mapped: a full disk under a map would kill the process.
        self.path.touch()
        with self.path.open("r+b") as stream:
            stream.seek(start * self.row_bytes)
            stream.write(values.astype(self.dtype).tobytes())

    def read(self) -> np.ndarray:
        # Copied on write, since torch takes no array that is read-only; and nothing cannot be mapped.
        return np.memmap(self.path, self.dtype, "c", shape=self.shape) if self.row_bytes else np.empty(self.shape)


def _done(folder: Path, files: Mapping[str, _File]) -> int:
    """Return how many images are stored whole."""
    try:
        done = int((folder / _PROGRESS).read_text())
    except (FileNotFoundError, ValueError):
        return 0
    return done if all(file.holds(done) for file in files.values()) else 0


def _check_room(folder: Path, needed: int, count: int) -> None:
    """Say before hours of computing what would end it."""
    free = shutil.disk_usage(folder).free
    if needed > free:
        raise OutputError(
            f"the tokens of {count} images need {needed / 1e6:,.0f} MB more in {folder}, where {free / 1e6:,.0f} MB are free;"
            " make room or choose another --cache"
        )
