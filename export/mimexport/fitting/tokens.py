"""The frozen tokens of many images, computed once, kept on disk, memory-mapped; a killed run continues where it stopped."""

from __future__ import annotations

import contextlib
from collections import deque
from collections.abc import Callable, Generator, Iterable, Iterator, Sequence
from concurrent.futures import Executor, Future, ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import torch
from torch import Tensor

from mimexport.backbone import Backbone
from mimexport.blocks import OpenBlock
from mimexport.device import full_precision, lone_threads
from mimexport.features import ComputedFeatures
from mimexport.fitting.views import show
from mimexport.loaded_model import LoadedModel
from mimexport.provenance import code_digest
from mimruntime.cpus import available_cpus
from mimruntime.decode import Source
from mimruntime.manifest import Preprocess
from mimruntime.rows import CHUNK, Report, open_rows

Array = np.ndarray | Tensor
_GPU_CHUNK = 4 * CHUNK
"""Images that a GPU computes between two saves; a save takes as long as the tokens of 64 small images."""
_CPU_CHUNK = 16
"""Most images that a CPU thread computes at once; more are slower, and memory bounds all threads together to `CHUNK`."""


@dataclass(frozen=True, slots=True)
class Tokens:
    """Tokens of n images; every array is a memory map, or lies in the memory of a GPU.

    Attributes:
        patches: (n, N, D) float16, out of the last block, without norm.
        cls: (n, D) float32, likewise; width 0 where the backbone has no [cls]. Vectors of [cls] are nearly parallel, and
            what tells them apart does not survive in float16.
        energy: (n, N) float32, squared length of the patches that enter the last block.
        attention: (n, heads, N) float16, of [cls] to the patches in the last block; no heads where there is no [cls].
        kept: (n, N) int16, place in the grid of every patch; None where all patches are there, row by row.
    """

    patches: Array
    cls: Array
    energy: Array
    attention: Array
    kept: Array | None = None

    def __len__(self) -> int:
        return len(self.patches)

    def __getitem__(self, rows: slice | np.ndarray) -> Tokens:
        kept = None if self.kept is None else self.kept[rows]
        return Tokens(self.patches[rows], self.cls[rows], self.energy[rows], self.attention[rows], kept)

    def near(self, device: torch.device) -> Tokens:
        """Return the tokens in the memory of `device` if it has room for twice as many, else as they are."""
        parts: dict[str, Array] = {
            name: getattr(self, name) for name in self.__slots__ if getattr(self, name) is not None
        }
        stored = sum(part.nbytes for part in parts.values())
        if device.type != "cuda" or 2 * stored > torch.cuda.mem_get_info(device)[0]:
            return self
        return Tokens(**{name: as_tensor(part, device) for name, part in parts.items()})


def as_tensor(part: Array, device: torch.device) -> Tensor:
    """Return an array of `Tokens` on a device, in its own precision."""
    return (torch.from_numpy(np.asarray(part)) if isinstance(part, np.ndarray) else part).to(device)


class TokenStore:
    """Computes tokens of images with one backbone and keeps them under `folder`.

    Args:
        loaded: architecture and digest of the weights, which name the files, as the code and its tools do.
        backbone: made from them; its device computes. Tokens of another device are not reused: they differ in the last
            bits, and vectors of [cls] differ by little more.
        preprocess: of the model.
        folder: of the cache; grows by about 2·N·D bytes an image and view.
        report: told in a line that another run is waited for, and what was found damaged.
    """

    def __init__(
        self,
        loaded: LoadedModel,
        backbone: Backbone,
        preprocess: Preprocess,
        folder: Path,
        report: Report = lambda line: None,
    ) -> None:
        self._backbone = backbone
        self._preprocess = preprocess
        self._folder = folder
        self._report = report
        self._layout = _layout(backbone)
        self._identity = (
            f"{loaded.timm_name} {loaded.sha256} {preprocess} {backbone.keep} {code_digest(heads=False)}"
            f" {backbone.device.type}"
        )
        self._mean, self._std = (
            backbone.per_channel(255 * torch.tensor(loaded.config[key])).to(backbone.device) for key in ("mean", "std")
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
        with open_rows(self._folder, identity, self._layout, self._report) as stored:
            stored.require_room(len(images))
            with contextlib.closing(self._compute(images, stored.done, view, seed)) as computed:
                for rows in computed:
                    stored.append(rows)
                    progress(stored.done, len(images))
            found = stored.read()
            return Tokens(**{name: found[name] for name in self._layout.names or ()})

    def _compute(self, images: Sequence[Source], start: int, view: int, seed: int) -> Generator[np.ndarray, None, None]:
        """Yield the rows of the images from `start` on, in order, some at a time."""

        def load(index: int) -> np.ndarray:
            return show(images[index], index, view, seed, self._preprocess)

        def chunks(size: int) -> Iterator[range]:
            return (range(first, min(first + size, len(images))) for first in range(start, len(images), size))

        with full_precision():
            if self._backbone.device.type == "cpu":
                with lone_threads() as (pool, threads):
                    parts = chunks(max(1, min(_CPU_CHUNK, CHUNK // threads)))
                    yield from _in_order(pool, lambda part: self._run(np.stack([*map(load, part)])), parts, 2 * threads)
            else:
                with ThreadPoolExecutor(available_cpus()) as pool:
                    for part in chunks(_GPU_CHUNK):
                        yield self._run(np.stack([*pool.map(load, part)]))

    @torch.inference_mode()
    def _run(self, pixels: np.ndarray) -> np.ndarray:
        patches = (self._backbone.patchify(as_tensor(pixels, self._backbone.device).float()) - self._mean) / self._std
        tokens, kept = self._backbone.encode(patches)
        features = ComputedFeatures(self._backbone, tokens, None, kept)
        rows = np.zeros(len(tokens), self._layout)
        if features.shape.has_cls:
            cls, out = features.cls_and_patches
            rows["cls"] = cls.cpu().numpy()
        else:
            out = features.raw_patches
        rows["patches"] = out.half().cpu().numpy()
        rows["energy"] = features.entering_energy.cpu().numpy()
        if rows["attention"].size:
            rows["attention"] = features.cls_attention.half().cpu().numpy()
        if kept is not None:
            rows["kept"] = kept.expand(len(tokens), -1).cpu().numpy()
        return rows


def _in_order(
    pool: Executor, work: Callable[[range], np.ndarray], chunks: Iterable[range], ahead: int
) -> Iterator[np.ndarray]:
    """Yield what threads make of each chunk, in order; at most `ahead` results wait to be taken."""
    window: deque[Future[np.ndarray]] = deque()
    for chunk in chunks:
        window.append(pool.submit(work, chunk))
        if len(window) > ahead:
            yield window.popleft().result()
    while window:
        yield window.popleft().result()


def _layout(backbone: Backbone) -> np.dtype[np.void]:
    """Return the fields of `Tokens` for one image."""
    shape, block = backbone.shape, backbone.last_block
    heads = block.heads if shape.has_cls and isinstance(block, OpenBlock) else 0
    fields: list[tuple[str, str, tuple[int, ...]]] = [
        ("patches", "<f2", (shape.patches, shape.dim)),
        ("cls", "<f4", (shape.dim if shape.has_cls else 0,)),
        ("energy", "<f4", (shape.patches,)),
        ("attention", "<f2", (heads, shape.patches)),
    ]
    if backbone.keep is not None:
        fields.append(("kept", "<i2", (shape.patches,)))
    return np.dtype(fields, align=True)  # torch takes strides of whole elements alone
